"""Peers that run as on an edge device: few cores, little memory, a slow link. What a scenario says of them, and what a
run's record does.

The peer and its worker are held to it as real processes (`peer.confinement`, `peer.shaping_relay`); their neighbours
are not. Only in the libp2p world: there every member has processes and sockets of its own.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from veilmesh.peer.shaping import Pace

__all__ = ["Edge", "Laps", "edge_figures"]

_BYTES: Final = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_BITS: Final = {"bit": 1, "kbit": 10**3, "Mbit": 10**6, "Gbit": 10**9}
_SLOWED: Final = ("libp2p", "mqtt")  # transports whose connections a relay can stand in
_BEYOND: Final = ("announce", "discovery", "relay", "serve")  # ways of a transport that no relay here stands in


def _measured(value: object, units: Mapping[str, int], example: str) -> object:
    """A number of the smallest unit, from text with a unit."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+)", value)
    if not found or found[2] not in units:
        raise ValueError(f"{value!r} is no such amount; write a number and one of {', '.join(units)}, as in {example}")
    return float(found[1]) * units[found[2]]


def _memory(value: object) -> object:
    amount = _measured(value, _BYTES, "'1GiB'")
    return int(amount) if isinstance(amount, float) else amount


def _rate(value: object) -> object:
    return _measured(value, _BITS, "'1Mbit'")


class Edge(BaseModel):
    """Some peers run as on an edge device; without a limit, they are only measured as one.

    `memory` is of the peer and its worker together, whose peaks are summed. `rate` and `delay` are those of the one
    link that all of a peer's connections share, each way: a round trip is twice the delay.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    peers: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0,), min_length=1, description="by number")
    cores: int | None = Field(default=None, ge=1, description="processor cores each of them has")
    memory: Annotated[int, BeforeValidator(_memory), Field(gt=0)] | None = Field(
        default=None, description="bytes each of them has, or '1GiB'"
    )
    rate: Annotated[float, BeforeValidator(_rate), Field(ge=1000)] | None = Field(
        default=None, description="bits a second of its link, or '1Mbit'"
    )
    delay: float = Field(default=0.0, ge=0, le=10, description="seconds a byte takes over its link, one way")

    @property
    def pace(self) -> Pace | None:
        """How slow the link is; None: as it comes."""
        return Pace(self.rate or 0.0, self.delay) if self.rate or self.delay else None

    def place(self, name: str) -> int | None:
        """The how-manieth edge device the member of this name is; None: it is none."""
        names = [f"peer:{index}" for index in self.peers]
        return names.index(name) if name in names else None

    def misplaced(self, peers: int, world: str, transport: Mapping[str, Any], is_open: bool) -> str | None:
        """Why these devices cannot be had in such a run, as a sentence without its full stop; None if they can."""
        if world != "libp2p":
            return (
                f"an edge device needs processes and sockets of its own, which the {world} world has none of; set "
                "world to libp2p"
            )
        for index in self.peers:
            if index >= peers:
                return f"there is no peer:{index} to be an edge device among {peers} peers (they count from 0)"
        if is_open:
            return "an edge device is one of those who begin a mesh; leave out edge, or door.open"
        if self.pace is None:
            return None
        other = [name for name in _BEYOND if transport.get(name)]
        if transport["name"] not in _SLOWED or other:
            what = " and ".join(f"transport.{name}" for name in other) or f"transport {transport['name']!r}"
            return f"what passes {what} is not slowed down; leave it out, or edge.rate and edge.delay"
        return None


@dataclass(slots=True)
class Laps:
    """When each member ended its rounds, from what it notes: how long they took."""

    _ends: dict[int, dict[str, list[float]]] = field(default_factory=dict)

    def note(self, index: int, kind: str, t: float) -> None:
        """Member `index` noted `kind` at `t` seconds."""
        if kind in ("round", "trained"):
            self._ends.setdefault(index, {}).setdefault(kind, []).append(t)

    def of(self, index: int) -> tuple[float | None, float | None]:
        """The median and the longest time from one end of a round to the next, in seconds; None of fewer than two.

        Where a member says nothing of the ends of rounds (the client of a star), those of its training count.
        """
        found = self._ends.get(index, {})
        ends = found.get("round") or found.get("trained") or []
        laps = [after - before for before, after in zip(ends, ends[1:], strict=False)]
        return (round(median(laps), 4), round(max(laps), 4)) if laps else (None, None)


def edge_figures(edge: Edge | None, members: Iterable[Any]) -> dict[str, Any]:
    """The record's figures of the edge devices alone, means over them, the worst where that is what counts; nothing
    where a run has none."""
    devices = [m for m in members if edge is not None and edge.place(m.name) is not None]
    if not devices:
        return {}
    return {
        "edge": {
            "members": [m.name for m in devices],
            "finished": sum(m.ended == "finished" for m in devices),
            "rounds": min(m.rounds for m in devices),
            "round_seconds": _mean(m.round_seconds for m in devices),
            "round_seconds_longest": _most(m.round_seconds_longest for m in devices),
            "peak_memory_mb": _most(m.peak_memory_mb for m in devices),
            "bytes_sent": _mean(m.bytes_sent for m in devices),
            "bytes_received": _mean(m.bytes_received for m in devices),
            "cpu_seconds": _mean(m.cpu_seconds for m in devices),
            "limits": devices[0].limits,
        }
    }


def _known(values: Iterable[float | None]) -> Sequence[float]:
    return [value for value in values if value is not None]


def _mean(values: Iterable[float | None]) -> float | None:
    known = _known(values)
    return sum(known) / len(known) if known else None


def _most(values: Iterable[float | None]) -> float | None:
    return max(_known(values), default=None)
