"""What a strategy is given, and what it gives: a kit in, a machine out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import networkx as nx

from veilmesh.core import Registry
from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import Machine, PeerId
from veilmesh.peer.outcome import Outcome
from veilmesh.swarm.aggregators.base import Aggregator
from veilmesh.swarm.aggregators.mean import Mean
from veilmesh.swarm.sealer import Sealer

__all__ = ["STRATEGIES", "Evaluated", "Kit", "Outcome", "Strategy", "Trained", "WorkSource"]


class Trained(Protocol):
    """What training comes back with."""

    @property
    def update(self) -> Vector: ...
    @property
    def loss(self) -> float: ...
    @property
    def samples(self) -> int: ...


class Evaluated(Protocol):
    """What an evaluation comes back with."""

    @property
    def accuracy(self) -> float: ...
    @property
    def loss(self) -> float: ...


class WorkSource(Protocol):
    """Makes the tasks a machine asks for: the protocol knows that a peer trains, never how."""

    def train(self, round_: int, parameters: Vector, proximal: float = 0.0, correction: Vector | None = None) -> object:
        """The task whose result is a `Trained`.

        `proximal`: the weight of half the squared distance to `parameters`, added to what is minimised. `correction`
        (d,): added to every gradient.
        """
        ...

    def evaluate(self, parameters: Vector) -> object:
        """The task whose result is an `Evaluated`."""
        ...


@dataclass(frozen=True, slots=True)
class Kit:
    """All that a machine knows when it is made."""

    me: PeerId
    order: tuple[PeerId, ...]  # the roster; every sum follows it, so that arrival order cannot change a bit
    weights: Mapping[PeerId, float]  # this peer's row of W, own weight included; empty in a star
    server: PeerId | None  # the star's hub
    initial: Vector  # (d,) common to all
    rounds: int
    patience: float  # seconds to wait for what is missing in a round
    evaluate_every: int
    sealer: Sealer
    work: WorkSource
    examples: int = (1 << 31) - 1  # the most that can stand behind one update: batch x local steps, where that is known
    aggregator: Aggregator = Mean()
    seed: int = 0  # public, common to all: what everybody must be able to draw alike; no private stream follows from it
    rows: Mapping[int, Mapping[int, float]] = field(default_factory=dict)  # W by places in `order`, public; shared
    stride: float = 1.0  # local steps x learning rate: a round of plain SGD goes so far along a gradient of length one
    keep_every: int = 0  # rounds between two checkpoints; 0: none
    private: int = 0  # what this peer draws secrets from; in the laboratory it follows from the scenario's seed
    links: Callable[[Sequence[PeerId]], Mapping[PeerId, float]] | None = None
    """In a mesh whose members come and go: of those that are there (this one too, sorted), this peer's row of W, own
    weight included; alike for everybody who is given the same members. None: whoever is there at the start is all
    there ever is, and `weights` is the row."""
    late: bool = False  # joins a run that is under way; with `links` only
    proxy: Callable[[Vector, PeerId, int], bytes] | None = None
    """At a star's hub: a codec's bytes of what a client is told of the model (d,) in a round. None: all of it."""
    proxied: bool = False  # at its clients: whether they are told a proxy, in any codec, and not the model as it is
    secret: bytes = b""
    """32 bytes that only this peer has, and drew for this start of it, for protocols that hide something from the other
    peers. Empty in the laboratory: then such secrets follow from `private`, and runs can be repeated."""


class Strategy(Protocol):
    """A protocol's configuration, and the maker of its machines."""

    centralised: ClassVar[bool]
    aggregates: ClassVar[bool]  # whether the scenario's aggregator is what makes one model of many

    def machine(self, kit: Kit) -> Machine:
        """The machine of peer `kit.me`."""
        ...

    def weights(self, graph: "nx.Graph[int]") -> dict[int, dict[int, float]]:
        """The mixing matrix W of this protocol on `graph`, row by row; empty where a server does the mixing.

        The keys of a row are a peer and its neighbours. A protocol without a fixed matrix keeps the keys and gives
        Metropolis-Hastings weights, which then say nothing but who may speak to whom. Raises BadInput if the protocol
        cannot run on `graph`.
        """
        ...


STRATEGIES: Registry[Strategy] = Registry("strategy", "veilmesh.swarm.strategies")
