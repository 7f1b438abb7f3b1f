"""UnSplit: pictures and a clone of the head are sought together, without any data."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from veilmesh.attacks.seen.smashed import StageMap, boundaries, observe_smashed
from veilmesh.attacks.smashed.decoders import generator_of, redraw
from veilmesh.attacks.smashed.passage import Passage
from veilmesh.attacks.smashed.passive import Seen, guess_of, rounds_seen
from veilmesh.attacks.smashed.stand_in import Start
from veilmesh.attacks.view import ATTACKS, Guess, View

__all__ = ["UnSplit"]


@ATTACKS.register("unsplit")
@dataclass(frozen=True, slots=True)
class UnSplit:
    """Pictures and a clone of the head, found in turns by what the head said; no public pictures.

    Erdogan, Kupcu, Cicek, WPES 2022, "UnSplit: data-oblivious model inversion, model stealing, and label inference
    attacks against split learning" (arXiv 2108.09033), algorithm 1: descend on the pictures, then on the clone, again
    and again; the clone is kept from batch to batch. Theirs: `iterations` 1000, `picture_steps` and `clone_steps` 100,
    both rates 1e-3, `start` "random", one picture at a time, and `magnitude` 1. Their published CIFAR-10 figures are of
    pictures stretched to the whole of [0, 1], which alone was worth 7 dB where it was measured; nothing is stretched
    here.

    Args:
        iterations: turns of pictures and clone.
        tv, magnitude: weights of the mean squared difference of neighbours, and of the mean square of the pixels.
    """

    reconstructs: ClassVar[str] = "pictures"

    iterations: Annotated[int, Field(ge=1)] = 30
    picture_steps: Annotated[int, Field(ge=1)] = 10
    clone_steps: Annotated[int, Field(ge=0)] = 2
    picture_rate: Annotated[float, Field(gt=0)] = 0.03
    clone_rate: Annotated[float, Field(gt=0)] = 1e-3
    tv: Annotated[float, Field(ge=0)] = 0.01
    magnitude: Annotated[float, Field(ge=0)] = 0.0
    start: Start = "public"
    targets: Annotated[int, Field(ge=1)] = 4
    first: Annotated[int, Field(ge=0)] = 0

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`. Raises BadInput where no cut is seen."""
        observe_smashed(view)  # says so where there is nothing
        stages, low = StageMap(view.public), boundaries(view)[0]
        clone = nn.Sequential(*(stages.fresh(stage) for stage in range(low)))
        if self.start == "random":
            redraw(clone, generator_of(rng))
        for seen in sorted(rounds_seen(view, self.targets, self.first), key=lambda s: (s.round, s.head)):
            silent = Passage.of(view.public, seen.activations).silent
            yield self._guess(clone, seen, view.public.shape, silent)

    def _guess(self, clone: nn.Module, seen: Seen, shape: tuple[int, int, int], silent: bool) -> Guess:
        z = seen.activations
        said = (z != 0).float() if silent else torch.ones_like(z)
        x = torch.full((len(z), *shape), 0.5, requires_grad=True)
        learned = list(clone.parameters())
        mine = torch.optim.Adam([x], self.picture_rate, amsgrad=True)
        its = torch.optim.Adam(learned, self.clone_rate, amsgrad=True) if learned else None
        for _ in range(self.iterations):
            for _ in range(self.picture_steps):
                (x.grad,) = torch.autograd.grad(_misfits(clone, x, z, said).mean() + self._prior(x), [x])
                mine.step()
            for _ in range(self.clone_steps if its else 0):
                loss = _misfits(clone, x.detach(), z, said).mean()
                for parameter, gradient in zip(learned, torch.autograd.grad(loss, learned), strict=True):
                    parameter.grad = gradient
                assert its is not None
                its.step()
        with torch.no_grad():
            return guess_of(seen, x.detach().clamp(0, 1), _misfits(clone, x.clamp(0, 1), z, said), None)

    def _prior(self, x: Tensor) -> Tensor:
        steps = [x.diff(dim=axis).square().mean() for axis in (2, 3) if x.shape[axis] > 1]
        return self.tv * torch.stack([*steps, x.new_zeros(())]).sum() + self.magnitude * x.square().mean()


def _misfits(clone: nn.Module, x: Tensor, z: Tensor, said: Tensor) -> Tensor:
    apart: Tensor = ((clone(x) - z).square() * said).flatten(1).mean(dim=1)
    return apart
