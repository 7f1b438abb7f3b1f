"""What a protocol of split mode is given, and what it gives: a plan of who plays which stage, and a machine for each.

Stage 0 is the head. `Plan.route` says, for every data owner, who plays each stage for its examples; a data owner that
is also on the far end of its own route keeps its labels (U-shaped). The machines are put together from two halves: a
`Driver` for the data owner, and a `Station` for every other stage that a member plays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from veilmesh.core import Registry
from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import Machine, PeerId

__all__ = ["SPLITS", "HeadEvaluate", "HeadTrain", "Plan", "Seat", "SplitKit", "SplitStrategy", "connected"]


@dataclass(frozen=True, slots=True)
class Seat:
    """A member: what it is called, and whether it is a data owner ("peer"), plays stages ("stage"), or stands by."""

    name: str
    role: Literal["peer", "stage", "standby"]


@dataclass(frozen=True, slots=True)
class Plan:
    """Who is who. Members are numbered in roster order, data owners first."""

    seats: tuple[Seat, ...]
    route: tuple[tuple[int, ...], ...]  # per data owner: the member that plays each stage, the head's first
    edges: tuple[tuple[int, int], ...]  # who talks to whom, each pair once, the smaller first
    labels: Literal["own", "sent", "held"]  # where the last stage has labels from
    copies: bool = False  # whether stages above the heads are trained as one copy for each head
    takes_turns: bool = False  # whether the data owners train one after the other, and hand the head on
    encrypted: bool = False  # whether stage 1 is a linear layer on ciphertexts, trained as the data owner's share of it
    answers: bool = False  # whether stage 1 is trained by its player alone, and is only asked, on ciphertexts

    @property
    def heads(self) -> int:
        """How many data owners there are."""
        return len(self.route)

    @property
    def stages(self) -> int:
        """How many stages the network is cut into."""
        return len(self.route[0])

    @property
    def standbys(self) -> tuple[int, ...]:
        """Members that replace one that dies."""
        return tuple(i for i, seat in enumerate(self.seats) if seat.role == "standby")

    def played(self, member: int) -> tuple[int, ...]:
        """The stages that a member plays, rising."""
        return tuple(sorted({s for route in self.route for s, player in enumerate(route) if player == member}))


def connected(seats: Sequence[Seat], route: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    """The links that a plan needs: along every route, from every data owner to all who play stages for it, and from
    everybody to the standbys."""
    pairs = {(a, b) for way in route for a, b in zip(way, way[1:], strict=False)}
    pairs |= {(way[0], player) for way in route for player in way}
    players = {player for way in route for player in way}
    pairs |= {(player, i) for i, seat in enumerate(seats) if seat.role == "standby" for player in players}
    pairs |= {(i, j) for i, a in enumerate(seats) for j, b in enumerate(seats) if a.role == b.role == "standby"}
    return tuple(sorted({(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]}))


@dataclass(frozen=True, slots=True, eq=False)
class HeadTrain:
    """In a swarm of heads: train the head from `parameters` (d,) for `round`, through the stages above it."""

    round: int
    parameters: Vector


@dataclass(frozen=True, slots=True, eq=False)
class HeadEvaluate:
    """In a swarm of heads: how good the network is with a head of `parameters` (d,)."""

    parameters: Vector


@dataclass(frozen=True, slots=True)
class SplitKit:
    """All that a machine knows when it is made."""

    me: PeerId
    order: tuple[PeerId, ...]  # the roster
    plan: Plan
    rounds: int
    steps: int  # of training in one round
    size: int  # parameters of the head
    samples: int  # examples behind a round
    micro_batches: int  # that a step's batch is divided into
    in_flight: int  # how many of them may be on their way at a time; 0: all
    patience: float  # seconds to wait for what is missing
    evaluate_every: int
    heads: Machine | None = None
    """The machine of the swarm that this head is a member of, where heads are averaged: its works are `HeadTrain` and
    `HeadEvaluate`."""

    @property
    def place(self) -> int:
        """This member's place in the roster."""
        return self.order.index(self.me)


class SplitStrategy(Protocol):
    """A protocol's configuration."""

    owners: ClassVar[int | None]  # how many data owners it has; None: as many as the scenario says
    averages: ClassVar[bool]  # whether heads are averaged, in a swarm of their own

    def plan(self, peers: int) -> Plan:
        """Who is who among `peers` data owners and whoever else it takes. Raises BadInput for a number that does not
        go."""
        ...

    def machine(self, kit: SplitKit) -> Machine:
        """The machine of member `kit.place`."""
        ...


SPLITS: Registry[SplitStrategy] = Registry("split strategy", "veilmesh.split.strategies")
