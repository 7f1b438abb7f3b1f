"""Progressive layer matching at full length: pictures and label maps, one gradient tensor more in every stage.

Harenčák, Gajdošech, Madaras, arXiv 2601.04912, the reconstruction experiment on segmentation, as in its authors'
notebook: a picture and a label map begin as N(0.5, 0.1). In stage i = 0, 1, ... only the first i + 1 gradient tensors
are compared, in 1201 steps of Adam with a step size of 0.015 - 0.001 i, on

    sum_{j <= i} (15 - j) ||g_j(x, y) - g*_j||^2  +  2 ||x - clip(x, 0, 1)||^2  +  1e-4 TV(x).

`progressive` is the short form of it, by the search that all inversions here share: boxes in place of the penalty on
what is outside of [0, 1], logits in place of label maps. Three things are ours here too: a stage hands on its best
iterate by its own loss, not its last one; tensors come in the order in which the network uses them, which is the order
of depth whatever the network lists first; and the gradient is the update over the learning rate and the local steps.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from veilmesh.attacks.matching.descent import Adam, Evaluation, Found, Variable
from veilmesh.attacks.matching.device import Device, choose_device
from veilmesh.attacks.matching.distance import Cosine
from veilmesh.attacks.matching.predict import SingleGradient
from veilmesh.attacks.network import Network
from veilmesh.attacks.seen.observed import Observed, observe_updates
from veilmesh.attacks.view import ATTACKS, Guess, View
from veilmesh.core import BadInput, generator

__all__ = ["ProgressiveMatching"]

_MIDDLE, _SPREAD = 0.5, 0.1  # of the normal distribution that pictures and label maps begin as
_LEAST = 1e-6  # of a sum of label maps


@ATTACKS.register("progressive-matching")
@dataclass(frozen=True, slots=True)
class ProgressiveMatching:
    """Progressive layer matching: pictures and label maps searched through ever more gradient tensors, first to last.

    Cost: `stages` times `iterations` double backward passes for each target and restart, 18 015 as published.

    Args:
        iterations: Adam steps of each stage.
        stages: how many, at most one a tensor; in the last, so many tensors are compared.
        rate: Adam's step size in the first stage; it falls by an equal part in each.
        tv: weight of the total variation, a sum over the picture.
        outside: weight of the squared distance to pictures in [0, 1].
        match: "squared" distances, the first tensors weighted most, or one "cosine" over the tensors compared.
        labels: "searched" with the pictures: one map for two classes, a map a class for more; or "told", an easier
            setting: the mask is known.
        restarts: runs from other beginnings; the one with the lowest loss of its own is kept.
        targets: at most so many rounds of each victim, the earliest exactly known ones first.
        device: what to compute on; auto is the fastest there is.
    """

    reconstructs: ClassVar[str] = "pictures"
    per_pixel: ClassVar[bool] = True

    iterations: Annotated[int, Field(ge=1)] = 1201
    stages: Annotated[int, Field(ge=1)] = 15
    rate: Annotated[float, Field(gt=0)] = 0.015
    tv: Annotated[float, Field(ge=0)] = 1e-4
    outside: Annotated[float, Field(ge=0)] = 2.0
    match: Literal["squared", "cosine"] = "squared"
    labels: Literal["searched", "told"] = "searched"
    restarts: Annotated[int, Field(ge=1)] = 1
    targets: Annotated[int, Field(ge=1)] = 1
    device: Device = "auto"

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`; one number is drawn from `rng`, and starts are named by it and by who is guessed at."""
        seed = int(rng.integers(1 << 62))
        network = Network(view.public, choose_device(self.device), per_pixel=True)
        tensor = _numbered(network)
        for observed in observe_updates(view, self.targets):
            network.load(observed.start)
            yield _Search(self, view, network, observed, tensor, seed).guess()


@dataclass(frozen=True, slots=True, eq=False)
class _Search:
    """The stages of one target."""

    options: ProgressiveMatching
    view: View
    network: Network
    observed: Observed
    tensor: Tensor  # (d,) the number of the tensor, by depth, that each coordinate is of
    seed: int

    def guess(self) -> Guess:
        """What the best of the restarts comes to."""
        founds = [self._descended(restart) for restart in range(self.options.restarts)]
        found = min(founds, key=lambda one: float(torch.nan_to_num(one.loss, nan=torch.inf)))
        pictures = found.values["x"][0].clamp(0, 1).cpu().numpy().astype(np.float32)
        labels = self.probabilities(found.values)[0]
        classes = labels.argmax(1) if labels.is_floating_point() else labels
        loss = min(float(torch.nan_to_num(found.loss, nan=torch.inf)), float(np.finfo(np.float32).max))
        details = {"exact": self.observed.exact, "coverage": self.observed.coverage, "distance": float(found.distance)}
        one = self.observed
        return Guess(one.victim, one.round, pictures, classes.cpu().numpy().astype(np.int64), loss, details, one.among)

    def _descended(self, restart: int) -> Found:
        """All stages, each from where the one before it was best."""
        options, goal = self.options, self._goal()
        variables = self._beginning(restart)
        stages = min(options.stages, int(self.tensor.max()) + 1)
        predictor = SingleGradient(self.network)
        for stage in range(stages):
            counts = self._counts(stage)
            rate = options.rate * (1 - stage / options.stages)
            objective = _Objective(self, predictor, goal, counts)
            found = Adam(options.iterations, rate, sign="plain", schedule="constant").run(objective, variables)
            variables = {name: Variable(found.values[name], v.box) for name, v in variables.items()}
        return found

    def _goal(self) -> Tensor:
        """(d,) what was observed, as a gradient."""
        public = self.view.public
        gradient = self.observed.update.astype(np.float64) / -(public.learning_rate * public.local_steps)
        return torch.from_numpy(gradient).float().to(self.network.device)

    def _counts(self, stage: int) -> Tensor:
        """(d,) how much each coordinate counts: 15, 14, ... from the first tensor on, and 0 for those to come."""
        weight = (self.options.stages - self.tensor).clamp_min(0) * (self.tensor <= stage)
        seen = self.network.exchanged_statistics(None)  # running statistics are no gradient
        return weight.float() if seen is None else weight * seen

    def _beginning(self, restart: int) -> dict[str, Variable]:
        public, one = self.view.public, self.observed
        drawn = generator(self.seed, "progressive", one.victim, one.round, restart)
        most = public.batch * public.local_steps * max(1, len(one.among))
        count = int(np.clip(one.samples, 1, most))
        variables = {"x": Variable(self._drawn(drawn, (1, count, *public.shape)))}
        if self.options.labels == "searched":
            _, classes, *pixels = self.network.answers(count)
            maps = (1, count, 1 if classes == 2 else classes, *pixels)
            variables["labels"] = Variable(self._drawn(drawn, maps).clamp_(0, 1), (0.0, 1.0))
        return variables

    def _drawn(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
        numbers = _MIDDLE + _SPREAD * rng.standard_normal(shape, dtype=np.float32)
        return torch.from_numpy(numbers.astype(np.float32)).to(self.network.device)

    def probabilities(self, values: Mapping[str, Tensor]) -> Tensor:
        """Labels (1, B, ...) as told, or (1, B, K, ...) as the maps say them."""
        if "labels" not in values:
            return self._told(values["x"].shape[1])
        maps = values["labels"]
        if maps.shape[2] == 1:
            return torch.cat([1 - maps, maps], dim=2)
        return maps / maps.sum(2, keepdim=True).clamp_min(_LEAST)

    def _told(self, count: int) -> Tensor:
        if self.view.told is None:
            raise BadInput("Nobody told this attack the labels; let them be searched.")
        labels = np.asarray(self.view.told(self.observed.victim, self.observed.round))[:count]
        return torch.from_numpy(labels).to(self.network.device).unsqueeze(0)


@dataclass(frozen=True, slots=True, eq=False)
class _Objective:
    """What one stage minimises."""

    search: _Search
    predictor: SingleGradient
    goal: Tensor
    counts: Tensor

    def __call__(self, values: Mapping[str, Tensor], share: float) -> Evaluation:
        """Losses, distances and derivatives at `values`."""
        leaves = {name: value.detach().requires_grad_(True) for name, value in values.items()}
        x, every = leaves["x"], list(leaves.values())
        # Before the prediction's way back, which ends the history of what both have in common.
        penalty, slopes = self._penalty(x, every)
        predicted = self.predictor.predict(x, self.search.probabilities(leaves))
        distance, pull = self._distance(predicted.gradient)
        moved = predicted.back(pull, every)
        sums = [a + b for a, b in zip(slopes, moved, strict=True)]
        return Evaluation(distance + penalty, distance, dict(zip(leaves, sums, strict=True)))

    def _distance(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """(1,) and its derivative (1, d): not over the target's own, as the paper's is not."""
        if self.search.options.match == "cosine":
            return Cosine(self.goal, (self.counts > 0).float()).at(gradient)
        error = gradient - self.goal
        return (self.counts * error.square()).sum(1), 2 * self.counts * error

    def _penalty(self, x: Tensor, every: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        options = self.search.options
        steps = sum((x.diff(dim=axis).abs().sum() for axis in (3, 4)), x.new_zeros(()))
        penalty = options.tv * steps + options.outside * (x - x.clamp(0, 1)).square().sum()
        slopes = torch.autograd.grad(penalty, every, allow_unused=True, materialize_grads=True)
        return penalty.detach().unsqueeze(0), list(slopes)


def _numbered(network: Network) -> Tensor:
    """(d,) for every coordinate, which tensor it is of: tensors by where the network first uses their layer, and within
    a layer as it lists them."""
    first: dict[int, int] = {}

    def meet(module: torch.nn.Module, _: object) -> None:
        for parameter in module.parameters(recurse=False):
            first.setdefault(id(parameter), len(first))

    handles = [module.register_forward_pre_hook(meet) for module in network.module.modules()]
    try:
        with torch.no_grad():
            network.module(torch.zeros(1, *network.shape, device=network.device))
    finally:
        for handle in handles:
            handle.remove()
    numbers = torch.tensor([first.setdefault(id(p), len(first)) for p in network.parameters])
    sizes = torch.tensor([p.numel() for p in network.parameters])
    return torch.repeat_interleave(numbers, sizes).to(network.device)
