"""Inverting Gradients on its own ConvNet, and the same by PyPI's breaching in another interpreter.

Both get the same network, parameters, picture and label, bring pictures to [-1, 1], and begin from noise of the same
kind. The paper's settings: cosine, sign, Adam, steps that fall tenfold at 3/8, 5/8 and 7/8.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from attacking import Bench, Labels, Pictures, Ran, attack, quality  # these two are beside this file
from seen_by_neighbour import Setting, make_public, make_view

from veilmesh.core import generator

__all__ = ["inverting_gradients"]

HERE = Path(__file__).resolve().parent
TV = 1e-6  # of the paper's ConvNet, on pictures of standard deviation 1


def inverting_gradients(bench: Bench) -> Iterator[str]:
    """Cosine matching on the paper's ConvNet, batch 1; normalisation as an untrained network's in evaluation."""
    asked = bench.asked
    model = {"name": "ig-convnet", "norm": "frozen"}
    # The paper's steps and variation are of pictures in [-1, 1] here: half as large, and twice, in [0, 1].
    options = {"iterations": asked.iterations, "tv": 2 * TV, "rate": 0.05, "device": asked.device}
    rows: list[Compared] = []
    yield f"{'Inverting Gradients':22} {'in':11} {'it/CPU-s':>8} {'it/s':>7} {'PSNR':>6}   breaching: it/CPU-s, PSNR"
    forms = (True, False) if asked.float32 else (True,)
    pictures = list(enumerate(bench.chosen(asked.skip + asked.pictures)))[asked.skip :]
    for number, (x, y) in pictures:
        setting = Setting(model, bench.data.classes, seed=number)
        other = breaching(bench, setting, x, y)
        for half in forms:
            ran = attack("cosine-inversion", {**options, "half": half}, make_view(setting, x, y))
            rows.append(Compared.of(half, asked.iterations, ran, quality(ran.guess, x)[0], other))
            yield f"picture {number}, class {int(y[0]):<5} {rows[-1]}"
    for half in forms:
        yield Compared.summary([row for row in rows if row.half == half])


@dataclass(frozen=True, slots=True)
class Compared:
    """One picture by this program (iterations per CPU-second, and per second; PSNR in dB) and perhaps by the other."""

    half: bool
    speed: float
    wall: float
    psnr: float
    their_speed: float | None
    their_psnr: float | None

    @classmethod
    def of(cls, half: bool, iterations: int, ran: Ran, psnr: float, other: dict[str, Any] | None) -> "Compared":
        """The other program's seconds are of its loop alone, ours of everything."""
        theirs = (other["iterations"] / other["seconds"], other["psnr"]) if other else (None, None)
        return cls(half, iterations / ran.seconds, iterations / ran.wall, psnr, *theirs)

    @property
    def form(self) -> str:
        """What is computed in bfloat16: second derivatives where the processor has tiles for them, or nothing."""
        return "half" if self.half else "float32"

    def __str__(self) -> str:
        line = f"{self.form:11} {self.speed:>8.2f} {self.wall:>7.2f} {self.psnr:>6.2f}"
        if self.their_speed is None or self.their_psnr is None:
            return line
        return f"{line}   {self.their_speed:>19.2f}, {self.their_psnr:.2f}: {self.speed / self.their_speed:.2f} times"

    @staticmethod
    def summary(rows: "list[Compared]") -> str:
        """The means over pictures; of the difference, with its standard error."""
        mean = statistics.fmean(row.psnr for row in rows)
        line = f"{rows[0].form}: mean PSNR {mean:.2f} dB"
        pairs = [(row, row.their_speed, row.their_psnr) for row in rows if row.their_speed and row.their_psnr]
        if not pairs:
            return line
        ratio = statistics.median(row.speed / speed for row, speed, _ in pairs)
        gains = [row.psnr - theirs for row, _, theirs in pairs]
        gain = f"{statistics.fmean(gains):+.2f}"
        if len(gains) > 1:
            gain += f" +- {statistics.stdev(gains) / len(gains) ** 0.5:.2f}"
        return f"{line}, {gain} dB and {ratio:.2f} times the iterations per CPU-second of breaching (median)"


def breaching(bench: Bench, setting: Setting, x: Pictures, y: Labels) -> dict[str, Any] | None:
    """The other program's figures on the same parameters and picture; None where it is not there, or cannot."""
    python = bench.asked.breaching
    if python is None or x.shape[1:] != (3, 32, 32) or bench.data.classes != 10:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = write_shared(Path(folder), setting, x, y)
        command = [str(python), str(HERE / "breaching_side.py"), str(path), "--iterations"]
        command += [str(bench.asked.iterations), "--tv", str(TV)]
        around = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=around, timeout=7200)
    if done.returncode:
        sys.stderr.write(done.stderr[-2000:])
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def write_shared(folder: Path, setting: Setting, x: Pictures, y: Labels) -> Path:
    """The file that both sides read: picture, label, start and parameters."""
    from safetensors.numpy import save_file

    from veilmesh.tasks.models.build import build_model, layout

    public = make_public(setting, x)
    options = {key: value for key, value in setting.model.items() if key != "name"}
    rows = layout(build_model(str(setting.model["name"]), options, public.shape, public.classes, 0))
    parts = {
        f"parameter.{i:04}": public.initial[at : at + int(np.prod(size))].copy() for i, (_, size, at) in enumerate(rows)
    }
    noise = generator(setting.seed, "start").standard_normal(x.shape, dtype=np.float32)
    start = (0.5 + 0.25 * noise).clip(0, 1).astype(np.float32)  # drawn as this program's starts are
    path = folder / "shared.safetensors"
    save_file({"picture": x.copy(), "label": y.copy(), "start": start, **parts}, str(path))
    return path
