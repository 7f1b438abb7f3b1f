"""What goes wrong in a run on purpose, and how fast its links and its members are: as data.

In virtual time the network carries it out; a mesh of real processes does it with signals and with sleep.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["STAGES", "Action", "Churn", "Fault", "Links", "actions", "misplaced", "number"]

STAGES = r"(middle|standby):[0-9]{1,6}|tail|body"
"""What members of split mode are called that have no data of their own."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Links(_Strict):
    """How long things take. `latency` and `step` are those of virtual time; a real mesh has its own."""

    latency: float = Field(default=0.01, ge=0, description="seconds a message takes")
    step: float = Field(default=0.001, gt=0, description="seconds a task takes: a round's training, or an evaluation")
    slow: dict[str, Annotated[float, Field(ge=1)]] = Field(
        default={}, description="how many times as long the work of these peers takes, by name: { 'peer:3' = 10 }"
    )


class Churn(_Strict):
    """Members that come and go, from the start until `until` seconds: every so often one is killed and one joins."""

    every: float = Field(default=5.0, gt=0, description="seconds between two")
    until: float = Field(default=60.0, gt=0, description="seconds after the start; then the rest goes on in peace")


class Fault(_Strict):
    """One thing that goes wrong, `at` so many seconds after the start: a peer is killed, or stands still for some."""

    at: float = Field(ge=0)
    kill: str | None = None
    pause: str | None = None
    seconds: float | None = Field(default=None, gt=0, description="how long the pause is")

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        if (self.kill is None) == (self.pause is None):
            raise ValueError("a fault is one of kill = 'peer:N' and pause = 'peer:N'; give exactly one of them")
        if self.pause is not None and self.seconds is None:
            raise ValueError(f"the pause of {self.pause} has no end; give its seconds")
        if self.kill is not None and self.seconds is not None:
            raise ValueError(f"{self.kill} is killed for good; leave out seconds, or take pause")
        return self

    @property
    def whom(self) -> str:
        """The peer it befalls, by name."""
        return self.kill or self.pause or ""


@dataclass(frozen=True, slots=True)
class Action:
    """What is done to the process of peer `peer`, `at` so many seconds after the start."""

    at: float
    peer: int
    what: Literal["kill", "pause", "go on", "churn"]  # churn: one is killed, one joins; who, the run's seed says
    seconds: float | None = None  # how long a pause is


def actions(faults: Sequence[Fault], churn: Churn | None = None, names: Sequence[str] = ()) -> list[Action]:
    """What is to be done for `faults` and `churn`, in order of time. Of pauses that overlap, the last ends all.

    `names`: what members are called, in roster order.
    """
    times = int(churn.until / churn.every) if churn else 0
    found = [Action(n * churn.every, -1, "churn") for n in range(1, times + 1)] if churn else []
    for fault in faults:
        peer = names.index(fault.whom) if fault.whom in names else number(fault.whom)
        found.append(Action(fault.at, peer, "kill" if fault.kill else "pause", fault.seconds))
        if fault.seconds is not None and not _still_paused(fault, faults):
            found.append(Action(fault.at + fault.seconds, peer, "go on"))
    return sorted(found, key=lambda action: action.at)


def _still_paused(fault: Fault, faults: Sequence[Fault]) -> bool:
    """Whether, when this pause ends, its peer is in another one."""
    end = fault.at + (fault.seconds or 0)
    others = [f for f in faults if f is not fault and f.pause == fault.pause and f.seconds is not None]
    return any(other.at <= end < other.at + (other.seconds or 0) for other in others)


def misplaced(links: Links, faults: Sequence[Fault], peers: int, world: str) -> str | None:
    """Why these links and faults cannot be had, as a sentence without its full stop; None if they can."""
    for name in [*links.slow, *(fault.whom for fault in faults)]:
        if not re.fullmatch(rf"peer:[0-9]{{1,6}}|{STAGES}", name):
            return (
                f"{name!r} is no peer that can be slow, killed or paused; write peer:N (peers count from 0), or what a "
                "member of split mode is called: tail, body, middle:N, standby:N"
            )
        if name.startswith("peer:") and number(name) >= peers:
            return f"there is no {name} among {peers} peers (they count from 0)"
    if world == "memory" and faults:
        return "faults need a process for each peer, or virtual time; set world to libp2p or virtual"
    if world == "memory" and links.slow:
        return "in the memory world a slow peer would slow down all of them; set world to libp2p or virtual"
    return None


def number(name: str) -> int:
    """3, for `peer:3`."""
    return int(name.removeprefix("peer:"))
