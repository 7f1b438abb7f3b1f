"""How long a masked sum waits: its timers, by how much of a round's patience is over.

From an eighth on, what has not been answered is said again; after half, and every eighth from there, who is silent is
left out; after all of it the sum is given up.
"""

from veilmesh.peer.machine import CancelTimer, Effect, Note, SetTimer
from veilmesh.swarm.strategies.secure_session import SecureSession

__all__ = ["TIMERS", "expired", "no_longer", "waiting"]

_SHARES = {"again": 1 / 8, "silent": 1 / 2, "sum": 1.0}

TIMERS = tuple(_SHARES)
"""The names of these timers."""


def waiting(now: float, patience: float) -> list[Effect]:
    """Start them. `patience`: seconds."""
    return [SetTimer(name, now + share * patience) for name, share in _SHARES.items()]


def expired(name: str, session: SecureSession, round_: int, now: float, patience: float) -> list[Effect]:
    """What follows when one has run out. The session may be over then."""
    if name == "sum":
        return [*session.give_up()]
    later = SetTimer(name, now + patience / 8)
    if name == "again":
        return [later, *session.again()]
    late = Note("late", {"round": round_, "peers": [str(p) for p in session.missing]})
    return [late, later, *session.expire()]


def no_longer() -> list[Effect]:
    """Stop them all."""
    return [CancelTimer(name) for name in TIMERS]
