"""What a hijacker reads off the activations of heads that speak its language by now."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field

from veilmesh.attacks.seen.smashed import Smashed, observe_smashed, require_split
from veilmesh.attacks.smashed.pilot import Begins, Pilot, make_pilot
from veilmesh.attacks.view import ATTACKS, Guess, View

__all__ = ["FshaReading"]


@ATTACKS.register("fsha")
@dataclass(frozen=True, slots=True)
class FshaReading:
    """The pictures that a feature-space hijacker reads off activations, with the decoder of its pilot.

    The second half of hijack `fsha` (Pasquini, Ateniese and Bernaschi, CCS 2021): `iterations` and `begins` are those
    of the hijack, so that the pilot is the same again. Read are the last `targets` rounds of every victim that were
    seen whole, because the hijack takes time. Without the hijack it is a decoder of heads that have only just begun.
    """

    iterations: Annotated[int, Field(ge=1)] = 400
    begins: Begins = "public"
    targets: Annotated[int, Field(ge=1)] = 4

    reconstructs: ClassVar[str] = "pictures"

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`."""
        require_split(view.public)
        seen, steps = observe_smashed(view), view.public.local_steps
        if not seen:
            return
        pilot = make_pilot(view.public, seen[0].boundary, self.iterations, self.begins)
        for _, of_victim in groupby(seen, key=lambda one: one.head):
            rounds = [list(group) for _, group in groupby(of_victim, key=lambda one: one.step // steps)]
            for group in [group for group in rounds if _is_whole(group, steps)][-self.targets :]:
                yield _guess(pilot, group, steps)


def _is_whole(group: Sequence[Smashed], steps: int) -> bool:
    """Whether every micro-batch of every step of a round was seen."""
    return len({one.step for one in group}) == steps and len(group) == steps * group[0].of


def _guess(pilot: Pilot, group: Sequence[Smashed], steps: int) -> Guess:
    z = torch.from_numpy(np.concatenate([one.activations for one in group]).astype(np.float32))
    pictures = pilot.pictures(z)
    again = pilot.features(pictures)  # far from what was seen, where the head does not speak the language
    loss = float(((again - z) ** 2).mean() / (z**2).mean().clamp_min(1e-12))
    told = [one.labels for one in group if one.labels is not None]
    labels = np.concatenate(told) if len(told) == len(group) else np.zeros(0, np.int64)
    return Guess(group[0].head, group[0].step // steps, pictures.numpy(), labels, loss)
