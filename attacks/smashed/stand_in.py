"""A stand-in for the data owner: the stages that the adversary does not play, trained on public labelled pictures.

It trains against the adversary's own stages as they were at every step, so it learns to say what they understand, which
is what the data owner's stages learn.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from veilmesh.attacks.seen.own_stage import own_stages, tail_over_time
from veilmesh.attacks.seen.smashed import StageMap, observe_smashed
from veilmesh.attacks.smashed.decoders import batches, redraw
from veilmesh.attacks.smashed.passive import public_pictures
from veilmesh.attacks.view import View
from veilmesh.core import BadInput
from veilmesh.peer.machine import PeerId

__all__ = ["Moment", "PublicBatches", "StandIn", "StandIns", "Start", "moments"]

Start: TypeAlias = Literal["public", "random"]
"""What a stand-in begins with: the parameters that all began with, which are public, or others, as in the papers."""


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """One step, as the adversary sees it: its own stages before it, and what came in: (B, ...), labels (B,) if seen."""

    head: PeerId
    step: int
    stages: nn.Module
    activations: Tensor
    labels: NDArray[np.int64] | None


def moments(view: View) -> Iterator[Moment]:
    """Every step of data owners that the adversary does not control, in order of time."""
    parts: dict[tuple[PeerId, int], list[tuple[NDArray[np.float32], NDArray[np.int64] | None]]] = {}
    for one in observe_smashed(view):
        parts.setdefault((one.head, one.step), []).append((one.activations, one.labels))
    for step, head, module in tail_over_time(view):
        if (head, step) not in parts:
            continue
        found = parts[head, step]
        labels = [y for _, y in found if y is not None]
        told = np.concatenate(labels) if len(labels) == len(found) else None
        yield Moment(head, step, module, torch.from_numpy(np.concatenate([z for z, _ in found])), told)


class PublicBatches:
    """Public pictures with their classes, in batches like those that were seen. Raises BadInput where there are none,
    or their classes are not known."""

    def __init__(self, view: View, draws: torch.Generator) -> None:
        self.pictures, labels = public_pictures(view)
        if labels is None:
            raise BadInput(
                "This attack trains on public pictures with one class each; take decoder-inversion or unsplit."
            )
        self.labels, self._draws = labels, draws
        self._of = {int(c): torch.nonzero(labels == c)[:, 0] for c in torch.unique(labels)}
        self._any: dict[int, Iterator[Tensor]] = {}

    def like(self, moment: Moment) -> tuple[Tensor, Tensor]:
        """Pictures (B, C, H, W) and classes (B,): of the classes that were seen, or of any."""
        size = len(moment.activations)
        if moment.labels is None:
            chosen = next(self._any.setdefault(size, batches(len(self.pictures), size, self._draws)))
        else:
            chosen = torch.stack([self._one(int(label)) for label in moment.labels])
        return self.pictures[chosen], self.labels[chosen]

    def _one(self, label: int) -> Tensor:
        places = self._of.get(label, torch.arange(len(self.labels)))
        return places[torch.randint(len(places), (), generator=self._draws)]


class StandIn:
    """The stages below the adversary's, and those above. `rate`: of Adam; None: trained as the data owner trains."""

    def __init__(self, view: View, start: Start, rate: float | None, draws: torch.Generator) -> None:
        own, stages = own_stages(view), StageMap(view.public)
        self.below = nn.Sequential(*(stages.fresh(stage) for stage in range(own.low)))
        self.above = nn.Sequential(*(stages.fresh(stage) for stage in range(own.high + 1, len(stages.stages))))
        if start == "random":
            redraw(self.below, draws)
            redraw(self.above, draws)
        self.parameters = [*self.below.parameters(), *self.above.parameters()]
        self._public, self._rate, self._round = view.public, rate, -1
        self._optimizer = self._begun()

    def _begun(self) -> torch.optim.Optimizer:
        public, rate = self._public, self._rate
        if not self.parameters:
            raise BadInput("The stages below the adversary's have no parameters; take decoder-inversion.")
        if rate is not None or public.optimizer == "adam":
            return torch.optim.Adam(self.parameters, rate or public.learning_rate)
        return torch.optim.SGD(self.parameters, public.learning_rate, float(public.split.get("momentum", 0.0)))

    def round(self, number: int) -> None:
        """A round begins: a data owner's optimizer does so too."""
        if number != self._round and self._rate is None:
            self._optimizer = self._begun()
        self._round = number

    def loss(self, moment: Moment, said: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy that the adversary's stages make of activations `said` (B, ...)."""
        return functional.cross_entropy(self.above(moment.stages(said)), labels)

    def learn(self, loss: Tensor) -> None:
        """One step down `loss`; nobody else's parameters are touched."""
        for parameter, gradient in zip(self.parameters, torch.autograd.grad(loss, self.parameters), strict=True):
            parameter.grad = gradient
        self._optimizer.step()

    @torch.no_grad()
    def labels(self, moment: Moment, z: Tensor) -> NDArray[np.int64]:
        """The classes (B,) that activations `z` (B, ...) come to, as far as this can tell."""
        found: NDArray[np.int64] = self.above(moment.stages(z)).argmax(dim=1).numpy()
        return found

    @torch.no_grad()
    def average(self, others: "list[StandIn]") -> None:
        """Become the mean of `others`."""
        for places in zip(self.parameters, *(other.parameters for other in others), strict=True):
            places[0].copy_(torch.stack([p.detach() for p in places[1:]]).mean(dim=0))


class StandIns:
    """One for each data owner; one for all where the head is handed on; their means where heads are averaged."""

    def __init__(self, view: View, start: Start, rate: float | None, draws: torch.Generator) -> None:
        self._view, self._start, self._rate, self._draws = view, start, rate, draws
        self._shared = view.public.strategy == "round-robin"
        self._averages = bool(view.public.weights)
        self._round = 0
        self._found: dict[PeerId | None, StandIn] = {}

    def of(self, moment: Moment) -> StandIn:
        """The stand-in for the data owner of `moment`."""
        round_ = moment.step // self._view.public.local_steps
        if self._averages and round_ > self._round:
            self._mean()
        self._round = max(self._round, round_)
        key = None if self._shared else moment.head
        if key not in self._found:
            self._found[key] = StandIn(self._view, self._start, self._rate, self._draws)
        self._found[key].round(round_)
        return self._found[key]

    def _mean(self) -> None:
        every = list(self._found.values())
        if len(every) > 1:
            every[0].average(every)
            for other in every[1:]:
                other.average(every[:1])
