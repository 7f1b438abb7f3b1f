"""The stages above a boundary, trained again by whoever sees what enters them and the gradients that come back.

An example's gradient there is J^T (p - y), with J the derivative of its logits and p their softmax: for every label it
would be another one. Parameters begin as public ones do, so the label that fits is found, and with it the step that the
label owner took: the next step begins where its own does.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from veilmesh.attacks.seen.own_stage import settings_of
from veilmesh.attacks.seen.smashed import Smashed, StageMap
from veilmesh.attacks.view import Public
from veilmesh.split.part import Part
from veilmesh.tasks.models.layers import BatchNorm

__all__ = ["Candidates", "Upper", "above", "candidates", "coupled", "jacobian", "joint_likelihood"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """What a micro-batch's gradients would be: `gradients` (K, B, d) for each label; `log_p` (B, K): what the network
    says of the examples."""

    gradients: Floats
    log_p: Floats


def above(public: Public, boundary: int) -> nn.Sequential:
    """The stages above `boundary` as one network of its own, with the parameters that they begin with."""
    stages = StageMap(public)
    return nn.Sequential(*(stages.load(at, stages.initial(at)) for at in range(boundary, len(stages.stages))))


def jacobian(module: nn.Module, one: Smashed) -> tuple[Floats, Floats]:
    """The derivatives (K, B, d) of every logit of `one`'s examples, and log-probabilities (B, K). Examples are taken as
    independent of each other, which batch normalisation makes them only nearly."""
    x = torch.from_numpy(np.array(one.activations)).requires_grad_()
    logits: Tensor = module(x)
    rows = [torch.autograd.grad(logits[:, k].sum(), x, retain_graph=True)[0] for k in range(logits.shape[1])]
    log_p = functional.log_softmax(logits.detach().double(), dim=1)
    return torch.stack(rows).flatten(2).double().numpy(), log_p.numpy()


def candidates(module: nn.Module, one: Smashed) -> Candidates:
    """What `one`'s gradients would be behind `module`, for every label."""
    down, log_p = jacobian(module, one)
    mean = np.einsum("bk,kbd->bd", np.exp(log_p), down)
    return Candidates((mean - down) * (one.share / len(log_p)), log_p)


def coupled(module: nn.Module) -> bool:
    """Whether an example's gradient depends on the others of its batch: behind batch normalisation."""
    return any(isinstance(layer, BatchNorm) for layer in module.modules())


def joint_likelihood(module: nn.Module, one: Smashed, prior: Floats) -> Floats:
    """Behind batch normalisation: the log-likelihood (B, K) of each label while all others are what fits best.
    `prior` (B, K), logs: where one search begins; another begins at a least-squares p - y.

    The gradients of the whole batch are linear in all of its labels; one label at a time is changed, the best change
    first, until none helps.
    """
    x = torch.from_numpy(np.array(one.activations)).requires_grad_()
    logits: Tensor = module(x)
    rows = [torch.autograd.grad(each, x, retain_graph=True)[0].flatten() for each in logits.flatten()]
    down = torch.stack(rows).double().numpy() * (one.share / len(x))  # (B * K, B * d)
    assert one.gradients is not None
    seen = one.gradients.reshape(-1).astype(np.float64)
    log_p = functional.log_softmax(logits.detach().double(), dim=1).numpy()
    gram, told = down @ down.T, down @ seen
    solved = (np.linalg.pinv(gram, rcond=1e-9, hermitian=True) @ told).reshape(log_p.shape)
    found = [_search(gram, told, log_p, start) for start in (solved.argmin(axis=1), prior.argmax(axis=1))]
    cost, worse = min(found, key=lambda each: each[0])
    floor = 1e-9 * float(seen @ seen) + 1e-30
    variance = max(floor, cost + float(seen @ seen)) / len(seen)
    return np.asarray(-worse / (2 * variance))


def _search(gram: Floats, told: Floats, log_p: Floats, labels: NDArray[np.int64]) -> tuple[float, Floats]:
    """The squared misfit, less a constant, at the labels that were found from `labels` (B,); and by how much it is more
    for each other label (B, K)."""
    batch, classes = log_p.shape
    at = np.arange(batch) * classes
    own, every = np.diag(gram).reshape(batch, classes), np.arange(batch * classes).reshape(batch, classes)
    labels = labels.copy()
    for _ in range(8 * batch):
        off = np.exp(log_p).reshape(-1)
        off[at + labels] -= 1
        rest = (gram @ off - told).reshape(batch, classes)
        now = at + labels
        more = 2 * (rest.reshape(-1)[now][:, None] - rest) + own.reshape(-1)[now][:, None] + own
        more -= 2 * gram[now[:, None], every]
        best = int(more.argmin())
        if more.reshape(-1)[best] >= -1e-15:
            break
        labels[best // classes] = best % classes
    return float(off @ gram @ off - 2 * off @ told), np.maximum(more, 0)


class Upper:
    """The stages above a boundary, as they learn. Not for two threads.

    Args:
        public: says their architecture, and how they are trained.
        boundary: the entrance of the lowest of them.
    """

    def __init__(self, public: Public, boundary: int) -> None:
        self._part = Part(above(public, boundary), settings_of(public))

    @property
    def coupled(self) -> bool:
        """As the function of that name."""
        return coupled(self._part.module)

    def candidates(self, one: Smashed) -> Candidates:
        """As the function of that name, with the parameters of now."""
        return candidates(self._part.module, one)

    def joint(self, one: Smashed, prior: Floats) -> Floats:
        """As `joint_likelihood`, with the parameters of now."""
        return joint_likelihood(self._part.module, one, prior)

    def learn(self, one: Smashed, labels: Floats) -> None:
        """Take `one`'s part of its step, with label probabilities (B, K); the step is done with its last part."""
        place = one.step, 0, one.micro
        x = torch.from_numpy(np.array(one.activations))
        logits = self._part.forward(x, place, learns_input=False)
        loss = functional.cross_entropy(logits, torch.from_numpy(labels).float()) * one.share
        self._part.leaves(place, loss, None)
        self._part.backward(place, None)
        self._part.step(one.step, 0, one.of)
