"""Attacks on single updates: how fast, how good, and beside another program's where one is given.

Sections, each a table: `ig` (Inverting Gradients on its own ConvNet), `idlg` (LeNet, at most five starts), `analytic`
(decibels without a cap), `imprint` (pictures out of a batch of 64, and milliseconds of reading them), `aware` (what
knowing the defence gains), `line` (peers that are no neighbours: `bench_line.py`). One thread; seconds are CPU seconds
of this process, so that a busy machine changes them little. Everything printed is measured.

`--breaching PYTHON`: an interpreter that has PyPI's breaching. The two then take turns on the same network, parameters,
picture, label and normalisation, and the ratio is what to quote. Pictures are CIFAR-10 where there is a parquet file of
it, and otherwise the faces that come with scikit-image.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attacking import Bench, Labels, Pictures, attack, quality  # these three are beside this file
from inverting import inverting_gradients
from seen_by_neighbour import Setting, make_view

from veilmesh.attacks import observe_updates
from veilmesh.attacks.inversion.imprint import ReadImprint, prepare
from veilmesh.attacks.network import Network
from veilmesh.attacks.payloads.base import PAYLOADS
from veilmesh.core import BadInput, generator
from veilmesh.tasks.data.base import SOURCES

__all__ = ["main"]

HERE = Path(__file__).resolve().parent
PICTURES = HERE.parents[1] / "shared" / "data" / "cifar10-test-1000.parquet"
GOOD = 30.0  # dB from which a picture counts as recovered


def improved_leakage(bench: Bench) -> Iterator[str]:
    """iDLG on the paper's LeNet: does it arrive, within five starts?"""
    setting = {"name": "lenet"}
    found, seconds = [], 0.0
    for number, (x, y) in enumerate(bench.chosen(10)):
        view = make_view(Setting(setting, bench.data.classes, seed=number), x, y)
        ran = attack("idlg", {"restarts": 5, "device": bench.asked.device}, view)
        found.append(quality(ran.guess, x)[0])
        seconds += ran.seconds
    solved = sum(value >= GOOD for value in found)
    yield f"iDLG, LeNet: {solved} of {len(found)} at {GOOD:g} dB or more, {seconds / len(found):.1f} CPU-s a picture"
    yield "  " + " ".join(f"{value:.1f}" for value in found)


def analytic(bench: Bench) -> Iterator[str]:
    """A fully connected layer and one picture: closed form. Decibels without a cap."""
    model = {"name": "mlp", "hidden": [1024]}
    found, seconds = [], []
    for number, (x, y) in enumerate(bench.chosen(10)):
        ran = attack("analytic", {}, make_view(Setting(model, bench.data.classes, seed=number), x, y))
        error = np.square(ran.guess.pictures[:1].astype(np.float64) - x).mean()
        found.append(float(-10 * np.log10(max(error, 1e-30))))
        seconds.append(ran.seconds)
    worst, middle = min(found), statistics.median(found)
    milliseconds = 1e3 * statistics.median(seconds)
    yield f"analytic, MLP, batch 1: worst {worst:.0f} dB, median {middle:.0f} dB uncapped, {milliseconds:.0f} ms"


def imprint(bench: Bench) -> Iterator[str]:
    """A crafted layer of bins and a batch of 64: how many pictures come out whole, and what that costs when."""
    count = min(64, len(bench.data.test_x))
    x, y = bench.data.test_x[:count], bench.data.test_y[:count]
    yield f"imprint, batch {count:<10} {'bins':>5} {'paper':>6} {'ms':>6} {'ours':>6} {'ms':>6} {'before':>8}"
    for before, model in (("a convnet", {"name": "imprinted", "inner": {"name": "convnet"}}), ("", {"name": "mlp"})):
        for bins in (128, 512):
            sized = {**model, "bins": bins} if before else {**model, "hidden": [bins]}
            done = [_imprinted(bench, sized, form, x, y) for form in ((1, False), (3, True))]
            readings = " ".join(f"{found:>6} {1e3 * seconds:>6.1f}" for found, seconds, _ in done)
            where = f"before {before}" if before else "an MLP's first layer"
            yield f"  {where:23} {bins:>5} {readings} {1e3 * done[-1][2]:>8.0f}"
    yield f"  pictures at {GOOD:g} dB or more; ms of reading alone; before the round: ms of crafting and finding bins"


def _imprinted(
    bench: Bench, model: dict[str, Any], form: tuple[int, bool], x: Pictures, y: Labels
) -> tuple[int, float, float]:
    """Pictures that come out, the seconds of reading them, and those of what whoever crafts does before the round."""
    functionals, peel = form
    payload = {"name": "imprint", "functionals": functionals}
    setting = Setting(model, bench.data.classes, payload=payload, public=bench.data.public_x)
    view = make_view(setting, x, y)
    reader = ReadImprint(peel=peel)
    (observed,) = observe_updates(view)
    public, network = view.public, Network(view.public)
    crafter = PAYLOADS.build("imprint", {"functionals": functionals})
    crafting = _seconds(lambda: crafter.craft(public, public.initial, generator(0, "payload")))
    preparing = _seconds(lambda: prepare(Network(public), observed.start))
    bins = prepare(network, observed.start)
    reading = _seconds(lambda: reader.pictures(network, bins, observed, public))
    guess = next(reader.run(view, generator(0, "attack")))
    return sum(value >= GOOD for value in quality(guess, x)), reading, crafting + preparing


def _seconds(call: Callable[[], object], times: int = 5) -> float:
    """The median CPU seconds of a call."""
    taken = []
    for _ in range(times):
        begin = time.process_time()
        call()
        taken.append(time.process_time() - begin)
    return statistics.median(taken)


DEFENCES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("none", {}),
    ("noise 0.3x", {"guard": {"name": "noise", "ratio": 0.3}}),
    ("noise 1x", {"guard": {"name": "noise", "ratio": 1.0}}),
    ("noise 3x", {"guard": {"name": "noise", "ratio": 3.0}}),
    ("sign", {"codec": {"name": "sign"}}),
    ("top-k 1 %", {"codec": {"name": "top-k", "keep": 0.01}}),
)


def aware(bench: Bench) -> Iterator[str]:
    """What an attacker gains who knows the defence, as everybody in the mesh does; and the better of the two."""
    model = {"name": "convnet", "width": 64, "depth": 3}
    options = {"iterations": bench.asked.iterations, "device": bench.asked.device}
    yield f"{'defence-aware':24} {'naive':>7} {'aware':>7} {'gain':>7} {'best':>7}   dB, {bench.asked.victims} pictures"
    for name, defence in DEFENCES:
        means = {"cosine-inversion": 0.0, "adaptive": 0.0}
        for number, (x, y) in enumerate(bench.chosen(bench.asked.victims)):
            view = make_view(Setting(model, bench.data.classes, seed=number, **defence), x, y)
            for attacker in means:
                ran = attack(attacker, options, view)
                means[attacker] += quality(ran.guess, x)[0] / bench.asked.victims
        naive, knowing = means.values()
        yield f"{name:24} {naive:>7.2f} {knowing:>7.2f} {knowing - naive:>+7.2f} {max(naive, knowing):>7.2f}"


def line_graph(bench: Bench) -> Iterator[str]:
    """Peers that are no neighbours of the attacker: a program of its own."""
    script = HERE / "bench_line.py"
    if not script.exists():
        yield "line graph: no bench_line.py beside this file"
        return
    given = ["--data", str(bench.asked.data)] if bench.asked.data.is_file() else []
    done = subprocess.run([sys.executable, str(script), *given], capture_output=True, text=True, timeout=3600)
    yield done.stdout.rstrip() if not done.returncode else f"line graph: {done.stderr.strip().splitlines()[-1]}"


SECTIONS: dict[str, Callable[[Bench], Iterator[str]]] = {
    "ig": inverting_gradients,
    "idlg": improved_leakage,
    "analytic": analytic,
    "imprint": imprint,
    "aware": aware,
    "line": line_graph,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=PICTURES, help="CIFAR-10 as parquet; faces where there is none")
    parser.add_argument("--breaching", type=Path, metavar="PYTHON", help="an interpreter that has breaching")
    parser.add_argument("--only", nargs="+", choices=[*SECTIONS], default=[*SECTIONS])
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--pictures", type=int, default=3, help="of the section ig")
    parser.add_argument("--skip", type=int, default=0, help="pictures of the section ig to leave out at the beginning")
    parser.add_argument("--float32", action="store_true", help="the section ig without bfloat16 as well")
    parser.add_argument("--victims", type=int, default=5, help="pictures of the section aware")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or mps")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    try:
        name, given = ("cifar10", {"path": asked.data}) if asked.data.is_file() else ("faces", {})
        bench = Bench(SOURCES.build(name, given).load(), asked)
        print(f"pictures: {name}, {'x'.join(map(str, bench.data.shape))}; {asked.device}, one thread")
        for section in asked.only:
            try:
                for text in SECTIONS[section](bench):
                    print(text, flush=True)
            except BadInput as error:
                print(f"{section}: {error}")
    except BadInput as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
