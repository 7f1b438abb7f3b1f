"""Local training of a network that a hypernetwork generates: HyperFL's two steps of a round, as data in, data out.

Source: HyperFL, Guo et al. 2025: first the classifier psi learns, the extractor as it was generated; then
the hypernetwork phi and the embedding v, psi as it is now. Only the update to phi leaves; v and psi stay here from one
round to the next. Both steps use the pictures of the round, as `batch_indices` says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from veilmesh.core import BadInput, LocalError
from veilmesh.tasks.data.base import Labels, Pictures
from veilmesh.tasks.models.hypernetwork import Hypernetwork
from veilmesh.tasks.optimizers import Sgd
from veilmesh.tasks.scoring import score
from veilmesh.tasks.work import Evaluate, Evaluated, Settings, Train, Trained, Vector, batch_indices

__all__ = ["GeneratedTrainer", "Rates"]


@dataclass(frozen=True, slots=True)
class Rates:
    """How both steps learn: SGD with `momentum`, from nothing in every round, and `decay` times the parameters added to
    every gradient after that is clipped to the L2 norm `clip`, for phi, v and psi each by itself.

    `classifier_steps`: how many steps psi makes; 0: as many as phi.
    """

    learning_rate: float  # of phi and v
    classifier_rate: float
    momentum: float
    decay: float
    clip: float
    classifier_steps: int = 0


class GeneratedTrainer:
    """Does the training and scoring of a peer that shares a hypernetwork. Deterministic; not for two threads at once.

    Args:
        x, y, test_x, test_y: as `tasks.training.Trainer`'s, and so are `seed`, `peer_index` and `importance`.
        net: what is public about the hypernetwork. Its network is this trainer's alone.
        v, psi: what this peer begins with, (embedding,) and by name.
        settings: the batch and the local steps of a round; the rates are `rates`'.
    """

    def __init__(
        self, x: Pictures, y: Labels, test_x: Pictures, test_y: Labels, net: Hypernetwork, v: Tensor,
        psi: Mapping[str, Tensor], settings: Settings, rates: Rates, seed: int, peer_index: int,
        importance: NDArray[np.float64] | None = None,
    ) -> None:  # fmt: skip
        self._x, self._y, self._test_x, self._test_y = (torch.tensor(part) for part in (x, y, test_x, test_y))
        self._net, self._settings, self._rates = net, settings, rates
        self._seed, self._peer, self._importance = seed, peer_index, importance
        self._v = v.clone()
        self._psi = torch.cat([psi[name].reshape(-1) for name in net.own])
        sizes = {"phi": net.size, "v": len(v), "psi": len(self._psi)}
        self._rate = {"phi": rates.learning_rate, "v": rates.learning_rate, "psi": rates.classifier_rate}
        self._sgd = {name: Sgd(size, self._rate[name], rates.momentum) for name, size in sizes.items()}

    @property
    def embedding(self) -> Tensor:
        """v as it is now, (embedding,)."""
        return self._v.clone()

    @property
    def classifier(self) -> dict[str, Tensor]:
        """psi as it is now, by name."""
        return {name: part.clone() for name, part in self._classifier(self._psi).items()}

    @property
    def network(self) -> nn.Module:
        """The network whose parameters are generated; what is not, is its own: a backbone's."""
        return self._net.network

    def run(self, tasks: Sequence[object]) -> list[object]:
        """The answers to `Train` and `Evaluate` tasks, in their order. Raises LocalError on anything else."""
        return [self._run_one(task) for task in tasks]

    def _run_one(self, task: object) -> object:
        match task:
            case Train():
                return self._train(task)
            case Evaluate(parameters=parameters):
                return self._evaluate(self._vector(parameters))
        raise LocalError(f"a trainer cannot do a {type(task).__name__}")

    def _train(self, task: Train) -> Trained:
        phi = self._vector(task.parameters)
        self._net.network.train()
        self._learn_classifier(task.round, phi)
        correction = None if task.correction is None else self._vector(task.correction)
        start_v = self._v
        update, update_v = self._sgd["phi"].begin(), self._sgd["v"].begin()
        losses: list[float] = []
        samples = 0
        for step in range(self._settings.local_steps):
            x, y = self._batch(task.round, step)
            here = phi + update if step else phi
            loss, gradient, gradient_v = self._gradients(here, self._v, x, y)
            if task.proximal and step:  # its gradient is proportional to the way gone, which is nothing at first
                gradient += task.proximal * update
            if correction is not None:
                gradient += correction
            self._step("phi", update, gradient)
            self._step("v", update_v, gradient_v)
            self._v = start_v + update_v
            losses.append(loss)
            samples += len(y)
        return self._trained(task.round, update.numpy(), losses, samples)

    def _learn_classifier(self, round: int, phi: Tensor) -> None:
        """The round's first step: psi learns on what the extractor makes of the pictures, phi and v as they are."""
        with torch.no_grad():
            theta = self._net.generate(phi, self._v)
        start, update = self._psi, self._sgd["psi"].begin()
        for step in range(self._rates.classifier_steps or self._settings.local_steps):
            x, y = self._batch(round, step % self._settings.local_steps)
            psi = self._psi.detach().requires_grad_()
            loss = functional.cross_entropy(self._net.forward(theta, self._classifier(psi), x), y)
            (gradient,) = torch.autograd.grad(loss, psi)
            self._step("psi", update, self._regular(gradient, self._psi))
            self._psi = start + update

    def _gradients(self, phi: Tensor, v: Tensor, x: Tensor, y: Tensor) -> tuple[float, Tensor, Tensor]:
        """The loss, and the gradients of phi and v: the extractor's own gradient, sent back through the heads."""
        phi, v = phi.detach().requires_grad_(), v.detach().requires_grad_()
        theta = self._net.generate(phi, v)
        leaves = {name: part.detach().requires_grad_() for name, part in theta.items()}
        loss = functional.cross_entropy(self._net.forward(leaves, self._classifier(self._psi), x), y)
        back = torch.autograd.grad(loss, list(leaves.values()))
        by_phi, by_v = torch.autograd.grad(list(theta.values()), (phi, v), grad_outputs=back)
        return loss.item(), self._regular(by_phi, phi.detach()), self._regular(by_v, v.detach())

    def _regular(self, gradient: Tensor, at: Tensor) -> Tensor:
        """A gradient, clipped, with weight decay."""
        norm = float(gradient.norm())
        if norm > self._rates.clip:
            gradient = gradient * (self._rates.clip / norm)
        return gradient.add(at, alpha=self._rates.decay)

    def _step(self, name: str, update: Tensor, gradient: Tensor) -> None:
        """Add to `update` what the gradient comes to."""
        self._sgd[name].gradient.copy_(gradient)
        self._sgd[name].step(update)

    def _trained(self, round: int, update: Vector, losses: list[float], samples: int) -> Trained:
        loss = sum(losses) / len(losses)
        if not isfinite(loss) or not np.isfinite(update).all() or not self._psi.isfinite().all():
            raise BadInput(f"Training diverged in round {round}: the loss is not finite; use lower rates of sharing.")
        return Trained(update, loss, samples)

    @torch.no_grad()
    def _evaluate(self, phi: Tensor) -> Evaluated:
        theta, psi = self._net.generate(phi, self._v), self._classifier(self._psi)
        self._net.network.eval()
        return score(lambda x: self._net.forward(theta, psi, x), self._test_x, self._test_y, self._importance)

    def _classifier(self, flat: Tensor) -> dict[str, Tensor]:
        shapes = [self._net.shapes[name] for name in self._net.own]
        pieces = torch.split(flat, [int(np.prod(shape)) for shape in shapes])
        return {name: piece.view(shape) for name, piece, shape in zip(self._net.own, pieces, shapes, strict=True)}

    def _batch(self, round: int, step: int) -> tuple[Tensor, Tensor]:
        settings = self._settings
        place = (round, step, len(self._x), settings.batch, settings.local_steps)
        drawn = torch.from_numpy(batch_indices(self._seed, self._peer, *place))
        return self._x[drawn], self._y[drawn]

    def _vector(self, values: Vector) -> Tensor:
        """A copy of `values` (d,): they may be read-only, which torch has no word for."""
        if values.shape != (self._net.size,) or values.dtype != np.float32:
            raise LocalError(f"a vector of {values.dtype} {values.shape} for a hypernetwork of {self._net.size}")
        return torch.tensor(values)
