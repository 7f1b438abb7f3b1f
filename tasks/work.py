"""What a peer may ask of its trainer, as data, and which pictures a step uses. No torch here.

`batch_indices` is public and pure because two places must agree on it to the last index: the trainer that draws a
batch, and the scorer in `sim/` that recomputes what an attack's guess has to be compared with.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from veilmesh.core import LocalError, generator

__all__ = [
    "Evaluate", "Evaluated", "Indices", "Private", "Settings", "Train", "Trained", "Vector", "batch_indices",
    "batch_place", "epoch_order", "poisson_indices", "sampling_rate",
]  # fmt: skip

Vector: TypeAlias = NDArray[np.float32]
"""A network's parameters, or an update to them: one flat float32 vector of shape (d,)."""

Indices: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Private:
    """Training with differential privacy (DP-SGD): an example's gradient is clipped to the L2 norm `clip`, and noise of
    `noise` times that is added to the sum of them; in a gossip also, for each neighbour, noise of `pair` times that
    which the neighbour takes away again (DECOR)."""

    clip: float
    noise: float
    pair: float = 0.0


@dataclass(frozen=True, slots=True)
class Settings:
    """Local training of one round: `local_steps` steps on `batch` pictures each, of SGD or of Adam.

    Adam is Kingma and Ba's (2015), with the betas 0.9 and 0.999 and an epsilon of 1e-8; `momentum` is SGD's. The
    optimizer's state starts from zero in every round, so a round depends on nothing but what its task says. With
    `private`, gradients are private ones of Poisson samples, and what an optimizer makes of them, or a protocol, is
    post-processing. Raises LocalError on Adam with momentum.
    """

    batch: Annotated[int, Field(ge=1)]
    local_steps: Annotated[int, Field(ge=1)]
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    optimizer: Literal["sgd", "adam"] = "sgd"
    private: Private | None = None

    def __post_init__(self) -> None:
        if self.optimizer == "adam" and self.momentum:
            raise LocalError("momentum is for sgd; adam has its own")


@dataclass(frozen=True, slots=True, eq=False)
class Train:
    """Do the local steps of `round` (0, 1, ...) from `parameters` (d,).

    Every gradient is taken of the loss plus `proximal` / 2 times the squared distance to `parameters` (FedProx; 0:
    none), and `correction` (d,) is added to it (SCAFFOLD's c - c_i).
    """

    round: int
    parameters: Vector
    proximal: float = 0.0
    correction: Vector | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """`update` (d,): new parameters minus old; `loss`: mean over the local steps, each before its step, and of the
    pictures alone: a proximal term or a correction is not in it.

    `samples` is how many pictures stand behind the update: batch times local steps; in private training, how many were
    to be expected.
    """

    update: Vector
    loss: float
    samples: int


@dataclass(frozen=True, slots=True, eq=False)
class Evaluate:
    """Score `parameters` (d,) on the test pictures."""

    parameters: Vector


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Share of test pictures (of pixels, where every pixel has a class) named rightly, 0 to 1, and the mean loss."""

    accuracy: float
    loss: float


def batch_indices(
    seed: int, peer_index: int, round: int, step: int, n: int, batch: int, local_steps: int = 1
) -> Indices:
    """Which of its `n` pictures a peer uses in local step `step` (0..local_steps-1) of `round`: (min(batch, n),) int64.

    Without replacement inside an epoch: the n pictures in a fresh seeded order, n // batch batches of them, what is
    left over sitting out until the next order. A pure function; `local_steps` is needed to place `round` and `step` in
    the epoch. Raises LocalError if `step` is not one of them.
    """
    epoch, start, stop = batch_place(round, step, n, batch, local_steps)
    return epoch_order(seed, peer_index, epoch, n)[start:stop]


def sampling_rate(n: int, batch: int) -> float:
    """The chance of each of a peer's `n` pictures to be in a Poisson sample of `batch` of them, on average."""
    return min(1.0, batch / n)


def poisson_indices(seed: int, peer_index: int, round: int, step: int, n: int, batch: int, again: int = 0) -> Indices:
    """Which of its `n` pictures a peer uses in a step of private training: each by itself, at `sampling_rate`; (k,).

    There may be none. `again` counts how often the round was trained before. A pure function. Whoever knows `seed`
    knows the sample, and for him subsampling protects nobody.
    """
    name = ("poisson", peer_index, round, step, *((again,) if again else ()))
    return np.flatnonzero(generator(seed, *name).random(n) < sampling_rate(n, batch))


def batch_place(round: int, step: int, n: int, batch: int, local_steps: int) -> tuple[int, int, int]:
    """The epoch that a step falls in, and where in the epoch's order its batch starts and stops."""
    if not 0 <= step < local_steps:
        raise LocalError(f"there is no local step {step} of {local_steps}")
    size = min(batch, n)
    epoch, slot = divmod(round * local_steps + step, n // size)
    return epoch, slot * size, (slot + 1) * size


def epoch_order(seed: int, peer_index: int, epoch: int, n: int) -> Indices:
    """The order in which a peer goes through its `n` pictures in `epoch`: a permutation, (n,) int64."""
    return generator(seed, "batch", peer_index, epoch).permutation(n)
