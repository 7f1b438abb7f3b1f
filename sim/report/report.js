// What the page gains from a script: a switch for light and dark, charts that are read out at the pointer or with the
// arrow keys, and everything folded open for printing. Nothing that is printed depends on it.
"use strict";

(() => {
  const root = document.documentElement;

  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;

  const addThemeSwitch = () => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "theme";
    const name = () => { button.textContent = dark() ? "Light" : "Dark"; };
    button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; name(); });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
    name();
    document.querySelector(".top").append(button);
  };

  const nearest = (points, x) => points.reduce((best, point) => Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best);

  const amount = (bytes) => {
    const power = Math.min(4, Math.max(0, Math.floor(Math.log10(bytes) / 3)));
    return `${Number((bytes / 1000 ** power).toPrecision(3))}\u202f${["B", "kB", "MB", "GB", "TB"][power]}`;
  };

  const addReadOut = (svg) => {
    const series = JSON.parse(svg.dataset.series);
    const [low, high, start, end, top, bottom] = JSON.parse(svg.dataset.frame);
    const figure = svg.closest("figure");
    const values = [...figure.querySelectorAll(".legend .value")];
    const last = values.map((value) => value.textContent);
    const at = figure.querySelector(".at");
    const rounds = [...new Set(series.flat().map((point) => point[0]))].sort((a, b) => a - b);
    const write = (y) => svg.dataset.shares === "true" ? `${(100 * y).toFixed(1)}\u202f%` : String(Number(y.toPrecision(3)));
    const along = {
      round: (x) => `round ${x}`,
      s: (x) => `${Number(x.toPrecision(3))}\u202fs`,
      B: (x) => amount(10 ** x),
    }[svg.dataset.unit];
    const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
    cursor.setAttribute("class", "cursor");
    let index = rounds.length;

    const show = () => {
      const round = rounds[index];
      const x = start + (end - start) * (high > low ? (round - low) / (high - low) : 0.5);
      for (const [name, value] of [["x1", x], ["x2", x], ["y1", top], ["y2", bottom]]) cursor.setAttribute(name, value);
      svg.append(cursor);
      at.textContent = along(round);
      series.forEach((points, i) => { values[i].textContent = write(nearest(points, round)[1]); });
    };
    const hide = () => {
      index = rounds.length;
      cursor.remove();
      at.textContent = "";
      values.forEach((value, i) => { value.textContent = last[i]; });
    };
    svg.addEventListener("pointermove", (event) => {
      const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      const round = low + (high - low) * (point.x - start) / (end - start);
      index = rounds.indexOf(nearest(rounds.map((r) => [r]), round)[0]);
      show();
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      index = Math.min(rounds.length - 1, Math.max(0, index + step));
      show();
    });
    svg.setAttribute("tabindex", "0");
  };

  addThemeSwitch();
  document.querySelectorAll("svg.chart").forEach(addReadOut);
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
})();
