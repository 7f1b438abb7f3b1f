"""What a sharing scheme promises: a vector that peers exchange in place of their models, and how a peer learns with it.

A protocol moves one flat vector and never asks what it means, so a scheme works under all of them: it says what vector
everybody begins with, and makes each peer's learner, which answers `Train` with an update to the shared vector and
`Evaluate` with the score of what the peer makes of it. What stays at home lives in the learner.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from veilmesh.core import Registry
from veilmesh.core.zerosum import Pair
from veilmesh.crypto.codecs.base import Mask, Vector
from veilmesh.tasks.models.base import Shape
from veilmesh.tasks.work import Settings

__all__ = ["SHARINGS", "Learner", "Own", "Serves", "Serving", "Setting", "Sharing"]


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """What everybody knows: the network that the scenario names, how peers train it, and the public pictures."""

    model: Mapping[str, Any]  # name and options of the network, as tasks.models builds it
    shape: Shape
    classes: int
    settings: Settings
    seed: int  # public: batches and beginnings are drawn from it
    peers: int  # that have data
    public_x: NDArray[np.float32]  # (N, C, H, W) in [0, 1], of nobody
    public_y: NDArray[np.int64]  # (N,), or (N, H, W) where pixels have classes


@dataclass(frozen=True, slots=True, eq=False)
class Own:
    """What one peer has besides: its examples, and where its secrets come from. A star's hub has a single example that
    is nobody's and is only ever asked to `Evaluate`."""

    index: int  # in the roster; names the stream of its batches
    x: NDArray[np.float32]  # (n, C, H, W) in [0, 1], n >= 1
    y: NDArray[np.int64]
    test_x: NDArray[np.float32]
    test_y: NDArray[np.int64]
    importance: NDArray[np.float64] | None  # (classes,) what each class counts for in scores; None: alike
    private: int  # what the scheme draws this peer's secrets from
    secret: int | None = None  # what private training draws from, where that is not the public seed
    pairs: tuple[Pair, ...] = ()  # what it has in common with each neighbour, for noise that cancels


class Learner(Protocol):
    """Does a peer's `Train` and `Evaluate` tasks, whose vectors are shared ones."""

    def run(self, tasks: Sequence[object]) -> list[object]:
        """The answers, in order: `Trained`, `Evaluated`. Raises LocalError on anything else."""
        ...


class Sharing(Protocol):
    """A scheme's configuration, and the maker of its learners. Torch is imported in its methods, and only there: who
    runs a protocol's machine has no need of it."""

    like_model: ClassVar[bool]  # whether a shared vector has the network's parameters for its coordinates
    remembers: ClassVar[bool]  # whether learners keep anything from one task to the next

    def initial(self, setting: Setting) -> Vector:
        """The shared vector (d,) that everybody begins with. Raises BadInput where the scheme does not fit."""
        ...

    def learner(self, setting: Setting, own: Own) -> Learner:
        """What does one peer's work. Pure in its arguments, whatever the order in which peers are asked for."""
        ...


class Serving(Protocol):
    """A server's side of a scheme in which clients are told something else than the server's model."""

    @property
    def begun(self) -> Vector:
        """The model (d,) that the server begins with."""
        ...

    @property
    def hidden(self) -> Mask:
        """The coordinates (d,) of it that no client is ever told: for those who measure what they know of them."""
        ...

    def proxy(self, x: Vector, client: int, round_: int) -> bytes:
        """What the client of that place in the roster is told of the model `x` (d,) in a round: a codec's bytes."""
        ...


@runtime_checkable
class Serves(Protocol):
    """A sharing scheme that has a server's side."""

    def served(self, setting: Setting, private: int) -> Serving:
        """That side; `private` is what the server draws its secrets from. Pure in its arguments."""
        ...


SHARINGS: Registry[Sharing] = Registry("sharing", "veilmesh.swarm.sharing")
