"""What every defence leaves to its best attacker: naive cosine matching beside what knows the guard and the codec.

A victim takes one step on one picture, with an untrained ReLU convnet of 69,322 parameters; its update goes through a
guard and a codec to a curious neighbour, who infers the label first. Every picture has a network seed of its own, and
`--seeds` more of them. `naive` is Inverting Gradients as it comes (`cosine-inversion`, TV 1e-4); the others are
`adaptive`: `auto`, its own choice; `best`, chosen among all that fit by what they explain of the message; and with
`--variants` each that fits by itself. `max` is the best attacker by its mean over pictures: the privacy of a defence.

Mean PSNR in dB, capped at 60, beside that of a grey picture; in brackets the share of pictures at 20 dB or more. The
rules of `adaptive` were tuned on CIFAR-10's training pictures, which are not among these. One thread; pictures are
CIFAR-10 where there is a parquet file of it, otherwise the faces that come with scikit-image.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from seen_by_neighbour import Setting, make_public, make_view  # beside this file

from veilmesh.attacks import ATTACKS, View
from veilmesh.attacks.view import Public
from veilmesh.core import BadInput, generator
from veilmesh.sim.score import psnr
from veilmesh.tasks.data.base import SOURCES, Dataset

__all__ = ["main"]

PICTURES = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10-test-1000.parquet"
MODEL = {"name": "convnet", "width": 57, "depth": 3}
GOOD = 20.0  # dB

DEFENCES: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "clip 0.1": {"guard": {"name": "clip", "norm": 0.1}},
    "noise 0.3": {"guard": {"name": "noise", "ratio": 0.3}},
    "noise 1": {"guard": {"name": "noise", "ratio": 1.0}},
    "noise 3": {"guard": {"name": "noise", "ratio": 3.0}},
    "private-update": {"guard": {"name": "private-update", "clip": 0.1, "noise": 0.01}},
    "correlated-noise": {"guard": {"name": "correlated-noise", "clip": 0.1, "noise": 0.01, "pair": 0.0}},
    "8-bit": {"codec": {"name": "8-bit"}},
    "8-bit-zstd": {"codec": {"name": "8-bit-zstd"}},
    "4-bit": {"codec": {"name": "4-bit"}},
    "nf4": {"codec": {"name": "nf4"}},
    "2-bit": {"codec": {"name": "2-bit"}},
    "2-bit, unbiased": {"codec": {"name": "2-bit", "unbiased": True}},
    "sign": {"codec": {"name": "sign"}},
    "top-k 10 %": {"codec": {"name": "top-k", "keep": 0.1}},
    "top-k 1 %": {"codec": {"name": "top-k", "keep": 0.01}},
    "top-k-plain 10 %": {"codec": {"name": "top-k-plain", "keep": 0.1}},
    "rand-k 10 %": {"codec": {"name": "rand-k", "keep": 0.1}},
    "rand-k 1 %": {"codec": {"name": "rand-k", "keep": 0.01}},
    "low-rank 4": {"codec": {"name": "low-rank", "rank": 4}},
    "noise 1, sign": {"guard": {"name": "noise", "ratio": 1.0}, "codec": {"name": "sign"}},
    "noise 1, top-k 10 %": {"guard": {"name": "noise", "ratio": 1.0}, "codec": {"name": "top-k", "keep": 0.1}},
}

VARIANTS: Mapping[str, tuple[str, ...]] = {
    "sign": ("hinge", "cosine"),
    "2-bit": ("ternary", "rounded", "cosine"),
    "top-k": ("masked", "selected", "thresholded", "cosine"),
    "top-k-plain": ("masked", "selected", "thresholded", "cosine"),
    "8-bit": ("rounded", "cosine"),
    "8-bit-zstd": ("rounded", "cosine"),
    "4-bit": ("rounded", "cosine"),
    "nf4": ("intervals", "cosine"),
    "rand-k": ("masked", "cosine"),
    "low-rank": ("projected", "cosine"),
}
"""Of each codec; the one that fits it best is `auto` already."""

Pictures = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Tried:
    """One attacker on one defence: PSNR (dB) of every picture, and how many labels were right."""

    name: str
    values: list[float]
    labels: int

    def __str__(self) -> str:
        share = sum(value >= GOOD for value in self.values) / len(self.values)
        return f"{self.name} {statistics.fmean(self.values):.1f} ({share:.0%})"


def attackers(codec: str, asked: argparse.Namespace) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """What to try behind a codec: (title, attack, options)."""
    yield "naive", "cosine-inversion", {}
    yield "auto", "adaptive", {}
    if asked.variants:
        for variant in VARIANTS.get(codec, ()):
            yield variant, "adaptive", {"variant": variant}
        yield "best", "adaptive", {"variant": "best"}


def views(data: Dataset, defence: Mapping[str, Any], asked: argparse.Namespace) -> Iterator[tuple[View, Pictures, int]]:
    """What the neighbour sees of each picture (1, C, H, W), the picture, and its label."""
    for number in range(asked.pictures * asked.seeds):
        place = number % asked.pictures
        x, y = data.test_x[place : place + 1], data.test_y[place : place + 1]
        setting = Setting(MODEL, data.classes, public=data.public_x if asked.public else None, seed=number, **defence)
        yield make_view(setting, x, y), x, int(y[0])


def tried(data: Dataset, defence: Mapping[str, Any], asked: argparse.Namespace) -> list[Tried]:
    """Every attacker on one defence."""
    codec = str(defence.get("codec", {}).get("name", "dense"))
    found = []
    for title, name, options in attackers(codec, asked):
        attack = ATTACKS.build(name, {"iterations": asked.iterations, "device": asked.device, **options})
        values, labels = [], 0
        for view, x, label in views(data, defence, asked):
            (guess,) = attack.run(view, generator(0, "attack"))
            values.append(float(psnr(guess.pictures, x)[0]))
            labels += int(guess.labels[0] == label)
        found.append(Tried(title, values, labels))
    return found


def line(name: str, found: list[Tried], grey: float) -> str:
    """One defence in the table."""
    best = max(found, key=lambda one: statistics.fmean(one.values))
    gain = statistics.fmean(best.values) - statistics.fmean(found[0].values)
    labels = f"{best.labels}/{len(best.values)}"
    figures = "  ".join(map(str, found))
    return f"{name:20} {grey:6.1f}  max {best} {gain:+5.1f}  labels {labels:6}  {figures}"


def parameters(data: Dataset) -> int:
    """How many the network has."""
    public: Public = make_public(Setting(MODEL, data.classes), data.test_x[:1])
    return int(public.initial.size)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=PICTURES, help="CIFAR-10 as parquet; faces where there is none")
    parser.add_argument("--pictures", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1, help="network seeds for every picture")
    parser.add_argument("--iterations", type=int, default=600)
    parser.add_argument("--only", nargs="+", choices=[*DEFENCES], default=[*DEFENCES], metavar="DEFENCE")
    parser.add_argument("--variants", action="store_true", help="each way of comparing by itself, too")
    parser.add_argument("--public", action="store_true", help="let attackers have public pictures")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or mps")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    try:
        name, given = ("cifar10", {"path": asked.data}) if asked.data.is_file() else ("faces", {})
        data = SOURCES.build(name, given).load()
        grey = statistics.fmean(float(psnr(np.full_like(x, 0.5), x)[0]) for x in data.test_x[: asked.pictures, None])
        print(f"{name}, {asked.pictures} pictures, {parameters(data):,} parameters, {asked.iterations} iterations")
        print(f"{'defence':20} {'grey':>6}  best attacker, its mean PSNR in dB, over naive; then every attacker")
        for defence in asked.only:
            print(line(defence, tried(data, DEFENCES[defence], asked), grey), flush=True)
    except BadInput as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
