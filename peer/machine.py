"""The vocabulary of a protocol: events in, effects out.

A protocol is a machine: `handle(event, now) -> list[Effect]`. It has no clock, no socket, no thread and no global
randomness; `now` (seconds, any fixed origin) and its generator are given to it. The same machine therefore runs as a
real process over any transport and ten thousand times in one process in virtual time. (Prior art: h11 and aioquic for
the shape, magic-wormhole for the size.) Effects are carried out only after `handle` has returned, so a machine's
state and what it said never disagree.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from veilmesh.crypto.identity import PeerId

__all__ = [
    "CancelTimer", "Effect", "Event", "Keep", "Machine", "Note", "PeerId", "PeersChanged", "Received", "Resumable",
    "Send", "SetTimer", "Started", "State", "Stop", "TimerFired", "Work", "WorkDone", "WorkFailed",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Started:
    """The mesh is up: every peer of `present` has answered from the other side. Always the first event."""

    present: frozenset[PeerId]


@dataclass(frozen=True, slots=True)
class Received:
    """An authentic, opened message body from `sender`; its content is still the sender's word."""

    sender: PeerId
    body: bytes


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The timer set under `name` is due."""

    name: str


@dataclass(frozen=True, slots=True)
class WorkDone:
    """The work asked for under `name` has ended with `result`."""

    name: str
    result: object


@dataclass(frozen=True, slots=True)
class WorkFailed:
    """The work asked for under `name` could not be done; `reason` is one line."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class PeersChanged:
    """The neighbours that are believed to be alive are now `present`."""

    present: frozenset[PeerId]


@dataclass(frozen=True, slots=True)
class Send:
    """Say `body` to a neighbour: sealed, signed and carried at most once, in any order."""

    to: PeerId
    body: bytes


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Fire `TimerFired(name)` at time `at` (seconds, on the clock of `now`); setting a name again moves it."""

    name: str
    at: float


@dataclass(frozen=True, slots=True)
class CancelTimer:
    """Forget the timer `name`, if there is one."""

    name: str


@dataclass(frozen=True, slots=True)
class Work:
    """Do something slow, given as data, elsewhere; the answer comes back as `WorkDone(name, result)`."""

    name: str
    task: object


@dataclass(frozen=True, slots=True)
class Note:
    """Say something to the record: plain numbers and strings only. Notes are for people, never for machines."""

    kind: str
    data: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stop:
    """The machine is done; `result` is what it leaves behind. No event reaches it afterwards."""

    result: object = None


State: TypeAlias = Mapping[str, NDArray[np.float32] | NDArray[np.float64] | float | int | str]
"""What a machine remembers, by name."""


@dataclass(frozen=True, slots=True, eq=False)
class Keep:
    """After `round` rounds of all, `state` is everything that the machine needs to go on: write it down.

    Arrays are the machine's own, not copies: neither the machine nor whoever gets them ever writes into them.
    """

    round: int
    state: State


Event: TypeAlias = Started | Received | TimerFired | WorkDone | WorkFailed | PeersChanged
Effect: TypeAlias = Send | SetTimer | CancelTimer | Work | Note | Keep | Stop


class Machine(Protocol):
    """A protocol's decisions, and nothing else."""

    def handle(self, event: Event, now: float) -> list[Effect]:
        """What to do about `event` at time `now`. Raises RemoteError, with its state unchanged, on a bad message."""
        ...


@runtime_checkable
class Resumable(Machine, Protocol):
    """A machine whose protocol has rounds that all peers share, so that what all kept of one round fits together."""

    def resume(self, kept: Keep) -> None:
        """Be the machine that said `kept`. Before any event; `Started` then begins the next round.

        What is said in rounds after `kept.round` is said again by everybody. Raises KeyError if something is missing.
        """
        ...
