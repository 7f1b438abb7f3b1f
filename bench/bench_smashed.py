"""Decoder inversion against the depth of the cut: UnSplit's network, 3000 public and 100 private CIFAR-10 pictures.

The setting of published figures, which is an easier one: the head is told, and untrained. One thread; seconds are CPU
seconds of this process and include everything, from the activations of public pictures on. Beside each figure stand
what a plain decoder of transposed convolutions makes of the same head, pictures and seconds, and the floors. Everything
printed is measured. `--seconds`: how many CPU seconds the plain decoder is given; ours takes what it takes, and is told
how many public pictures and steps.

Where there is no file of CIFAR-10, the pictures are crops of photographs.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from veilmesh.attacks.smashed.known_head import Recipe, activations, invert
from veilmesh.core import generator
from veilmesh.sim.floors import floors
from veilmesh.sim.measures import psnr, ssim
from veilmesh.split.cut import divide, pieces
from veilmesh.tasks.data.base import SOURCES, Dataset
from veilmesh.tasks.models.build import build_model

__all__ = ["main"]

DEPTHS = {1: "relu11", 4: "pool1", 7: "conv22", 11: "relu31"}

Pictures = NDArray[np.float32]


def plain_decoder(channels: int, doublings: int) -> nn.Module:
    """Transposed convolutions up to 32x32, as decoders of smashed data are mostly written."""
    layers: list[nn.Module] = [nn.Conv2d(channels, 128, 3, padding=1), nn.ReLU()]
    for _ in range(doublings):
        layers += [nn.ConvTranspose2d(128, 128, 4, 2, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(128, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 3, 3, padding=1), nn.Sigmoid()]
    return nn.Sequential(*layers)


def plain(head: nn.Module, z: Pictures, public: Pictures, seconds: float) -> Pictures:
    """Train a plain decoder with Adam, 1e-3, batches of 64, for so many CPU seconds; what it makes of `z`."""
    begin = time.process_time()
    torch.manual_seed(0)
    x = torch.from_numpy(public)
    said = activations(head, x)
    decoder = plain_decoder(said.shape[1], int(np.log2(x.shape[2] / said.shape[2])))
    optimizer = torch.optim.Adam(decoder.parameters(), 1e-3)
    while time.process_time() - begin < seconds:
        chosen = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        (decoder(said[chosen]) - x[chosen]).square().mean().backward()
        optimizer.step()
    return activations(decoder, torch.from_numpy(z)).numpy()


def timed(run: Callable[[], Pictures]) -> tuple[Pictures, float]:
    """What it gives, and its CPU seconds."""
    begin = time.process_time()
    return run(), time.process_time() - begin


def rows(data: Dataset, asked: argparse.Namespace) -> Iterator[str]:
    """A line for each depth."""
    network = build_model("cifarnet", {}, data.shape, data.classes, seed=0)
    names = [name for name, _ in pieces(network)]
    public, private = data.train_x[: asked.public], data.test_x[: asked.private]
    known = floors(private, public)
    best = [np.mean([getattr(f, kind)[0] for f in known]) for kind in ("grey", "mean", "nearest")]
    blind = np.mean([f.blind for f in known])
    yield f"floors: grey {best[0]:.2f}, mean {best[1]:.2f}, nearest {best[2]:.2f}, blind {blind:.2f} dB"
    both = "  ".join(f"{who:>8} {'SSIM':>5} {'CPU-s':>6}" for who in ("plain dB", "ours dB"))
    yield f"{'depth':>5} {'':8} {'activations':>12}  {both}"
    for depth in asked.depths:
        head = divide(network, [names.index(DEPTHS[depth]) + 1])[0]
        for parameter in head.parameters():
            parameter.requires_grad_(False)
        z = activations(head, torch.from_numpy(private)).numpy()
        recipe = Recipe(asked.iterations, asked.refinements)
        mine, took = timed(lambda: invert(head, z, public[: asked.used], recipe, generator(0, "bench")))  # noqa: B023  # called at once
        other, its = timed(lambda: plain(head, z, public, asked.seconds or took))  # noqa: B023  # called at once
        shape = "x".join(map(str, z.shape[1:]))
        yield (
            f"{depth:>5} {DEPTHS[depth]:8} {shape:>12}  {psnr(other, private).mean():>8.2f} "
            f"{ssim(other, private).mean():>5.2f} {its:>6.1f}  {psnr(mine, private).mean():>8.2f} "
            f"{ssim(mine, private).mean():>5.2f} {took:>6.1f}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="CIFAR-10 as parquet; photos where none is given")
    parser.add_argument("--depths", type=int, nargs="+", choices=[*DEPTHS], default=[*DEPTHS])
    parser.add_argument("--public", type=int, default=3000, help="public pictures that there are")
    parser.add_argument("--used", type=int, default=1000, help="public pictures that ours learns from")
    parser.add_argument("--private", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=0, help="of our decoder's training")
    parser.add_argument("--refinements", type=int, default=20, help="steps through the head; 0: the decoder alone")
    parser.add_argument("--seconds", type=float, default=0.0, help="CPU seconds of the plain decoder; 0: those of ours")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    name, given = ("cifar10", {"path": asked.data}) if asked.data else ("photos", {})
    data = SOURCES.build(name, given).load()
    print(f"pictures: {name}; {asked.used} of {asked.public} public, {asked.private} private; one thread")
    for text in rows(data, asked):
        print(text, flush=True)


if __name__ == "__main__":
    main()
