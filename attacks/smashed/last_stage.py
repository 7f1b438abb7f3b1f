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

__all__ = ["Candidates", "Upper", "above", "candidates", "coupled", "jacobian", "uncoupled"]

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


def uncoupled(module: nn.Module, one: Smashed) -> tuple[Floats, Candidates]:
    """Behind batch normalisation: what p - y must have been (B, K), by least squares over the whole batch at once, and
    what it would be for every label."""
    x = torch.from_numpy(np.array(one.activations)).requires_grad_()
    logits: Tensor = module(x)
    rows = [torch.autograd.grad(each, x, retain_graph=True)[0].flatten() for each in logits.flatten()]
    down = torch.stack(rows).double().numpy()  # (B * K, B * d)
    assert one.gradients is not None
    seen = np.linalg.lstsq(down.T, one.gradients.reshape(-1).astype(np.float64), rcond=1e-6)[0]
    log_p = functional.log_softmax(logits.detach().double(), dim=1).numpy()
    classes = log_p.shape[1]
    every = np.exp(log_p) - np.eye(classes)[:, None]  # (K, B, K)
    return seen.reshape(-1, classes), Candidates(every * (one.share / len(log_p)), log_p)


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

    def expected(self, one: Smashed) -> tuple[Floats, Candidates]:
        """What was seen of `one`, and what would have been for every label, with the parameters of now."""
        if self.coupled:
            return uncoupled(self._part.module, one)
        assert one.gradients is not None
        return one.gradients.reshape(len(one.gradients), -1).astype(np.float64), candidates(self._part.module, one)

    def learn(self, one: Smashed, labels: Floats) -> None:
        """Take `one`'s part of its step, with label probabilities (B, K); the step is done with its last part."""
        place = one.step, 0, one.micro
        x = torch.from_numpy(np.array(one.activations))
        logits = self._part.forward(x, place, learns_input=False)
        loss = functional.cross_entropy(logits, torch.from_numpy(labels).float()) * one.share
        self._part.leaves(place, loss, None)
        self._part.backward(place, None)
        self._part.step(one.step, 0, one.of)
