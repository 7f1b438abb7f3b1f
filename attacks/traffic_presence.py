"""Who was there, and when: what a broker is told of peers that come, drop and leave.

Presence is said to everybody, in clear and signed: it is how peers find out that somebody is listening. Whoever carries
it knows when each connected, when its connection broke, and when it ended. Chunks and acknowledgements are counted:
they tell that a frame passed, which its chunks tell anyhow, and when its receiver had it.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from veilmesh.attacks.view import Sighting, View
from veilmesh.peer.machine import PeerId

__all__ = ["Attendance", "Overseen", "oversee"]

_PRESENCE: Final = ("here", "lost", "closed")


@dataclass(frozen=True, slots=True)
class Attendance:
    """One peer's time at the broker, in seconds of the run."""

    peer: PeerId
    joined: float | None
    failed: tuple[float, ...]  # when its connection was found broken
    left: float | None  # when it said that it had ended; None: it never did


@dataclass(frozen=True, slots=True)
class Overseen:
    """What a broker sees besides frames. Means are of bytes a message."""

    attendance: tuple[Attendance, ...]  # by peer
    counts: Mapping[str, int]  # of messages: here, lost, closed, chunk, ack
    sizes: Mapping[str, float]


def oversee(view: View) -> Overseen:
    """What the sightings of a broker's view tell."""
    who = sorted({s.who for s in view.sightings if s.what in _PRESENCE})
    counts = Counter(s.what for s in view.sightings)
    total = Counter[str]()
    for sighting in view.sightings:
        total[sighting.what] += sighting.size
    return Overseen(
        attendance=tuple(_attendance(peer, view.sightings) for peer in who),
        counts=dict(sorted(counts.items())),
        sizes={what: total[what] / counts[what] for what in sorted(counts)},
    )


def _attendance(peer: PeerId, seen: tuple[Sighting, ...]) -> Attendance:
    when = {what: sorted(s.now for s in seen if s.who == peer and s.what == what) for what in _PRESENCE}
    joined, left = when["here"][:1], when["closed"][-1:]
    return Attendance(peer, joined[0] if joined else None, tuple(when["lost"]), left[0] if left else None)
