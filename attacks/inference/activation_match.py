"""Membership in split mode: whose activations were on the wire was trained on.

A candidate goes through the head that the adversary knows. In the first steps that is the head that all began with;
later it is, only where a controlled data owner is given it (heads that are averaged or handed on). A member's
activations are then among those that were seen, exactly in the step that the head is known of, nearly in those after.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from veilmesh.attacks.inference.base import INFERENCES, Candidates, Scores
from veilmesh.attacks.seen.own_stage import tail_over_time
from veilmesh.attacks.seen.smashed import StageMap, boundaries, observe_smashed
from veilmesh.attacks.smashed.told_heads import HeadsSeen
from veilmesh.attacks.view import View
from veilmesh.core import BadInput
from veilmesh.peer.machine import PeerId

__all__ = ["ActivationMatch", "activations_by_round"]

Floats = NDArray[np.float64]


@INFERENCES.register("activation-match")
@dataclass(frozen=True, slots=True)
class ActivationMatch:
    """A picture whose activations were seen was trained on; or, by the loss, one that the network knows too well.

    `activations` (ours): the smallest distance to what was seen in a round, over the median one, through the head with
    which that round began, as far as it is known. Behind a head that is known no further than its beginning, only the
    first rounds are looked at. `loss`: minus the loss (Yeom et al. 2018, arXiv 1709.01604) of that head and the
    adversary's own tail, which it trained itself; it needs a current head, so a data owner that colludes.

    Args:
        by: which.
        rounds: so many of the first are looked at; where heads are told, all are.
    """

    infers: ClassVar[str] = "members"

    by: Literal["activations", "loss"] = "activations"
    rounds: Annotated[int, Field(ge=1)] = 8

    def run(self, view: View, candidates: Mapping[PeerId, Candidates], rng: np.random.Generator) -> Iterator[Scores]:
        """As `Inference.run`; draws nothing from `rng`. Raises BadInput where the vantage is not next to a head, or
        has no tail for `loss`."""
        stages = StageMap(view.public)
        heads, seen = HeadsSeen(view, stages), activations_by_round(view)
        tail = self._tail(view) if self.by == "loss" else None
        for victim in sorted(set(seen) & set(candidates)):
            if not len(candidates[victim].labels):
                continue
            asked = candidates[victim]
            last = max(seen[victim])
            if tail is not None:
                z = _through(stages, heads.before(victim, last)[1], asked.pictures)
                values = -_losses(tail, z, asked.labels)
            else:
                known = [
                    r for r in sorted(seen[victim]) if r < self.rounds or "began" not in heads.before(victim, r)[0]
                ]
                found = [
                    _nearness(_through(stages, heads.before(victim, r)[1], asked.pictures), seen[victim][r])
                    for r in known
                ]
                values = -np.min(found, axis=0)
            yield Scores(victim, "local", last, values, float(np.median(values)))

    def _tail(self, view: View) -> nn.Module:
        """The stages above the heads, as they are in the end. Raises BadInput."""
        if boundaries(view)[-1:] != [len(view.public.split["cuts"])] or boundaries(view)[0] != 1:
            raise BadInput("The loss needs every stage above the head; take the vantage `tail` of a run with one cut.")
        module = None
        for _, _, trained in tail_over_time(view):
            module = trained
        if module is None:
            raise BadInput("No step was seen whole, so there is no tail to ask; run it longer.")
        return module.eval()


def activations_by_round(view: View) -> dict[PeerId, dict[int, Tensor]]:
    """What left each data owner in each round (B, F). Raises BadInput where that is not seen."""
    if boundaries(view)[:1] != [1]:
        raise BadInput("This needs what leaves a head; take the vantage of the member next to it, as tail or body.")
    parts: dict[PeerId, dict[int, list[NDArray[np.float32]]]] = {}
    for one in observe_smashed(view, 1):
        flat = one.activations.reshape(len(one.activations), -1)
        parts.setdefault(one.head, {}).setdefault(one.step // view.public.local_steps, []).append(flat)
    return {h: {r: torch.from_numpy(np.concatenate(z)) for r, z in rounds.items()} for h, rounds in parts.items()}


def _through(stages: StageMap, head: NDArray[np.float32], pictures: NDArray[np.float32]) -> Tensor:
    module = stages.load(0, head).eval()
    with torch.no_grad():
        out: Tensor = module(torch.from_numpy(np.ascontiguousarray(pictures)))
    return out


def _nearness(asked: Tensor, seen: Tensor) -> Floats:
    """The smallest distance of each of `asked` (N, ...) to `seen` (B, F), over its median one: (N,).

    What training has added to all activations alike is taken away: both are centred.
    """
    flat = asked.flatten(1)
    exact, moved = torch.cdist(flat, seen), torch.cdist(flat - flat.mean(0), seen - seen.mean(0))
    found = []
    for distances in (exact, moved):
        found.append(distances.min(1).values / distances.median(1).values.clamp_min(1e-12))
    return np.asarray(torch.minimum(*found).double().numpy())


def _losses(tail: nn.Module, z: Tensor, labels: NDArray[np.int64]) -> Floats:
    with torch.no_grad():
        found = functional.cross_entropy(tail(z).double(), torch.from_numpy(labels), reduction="none")
    return np.asarray(found.numpy())
