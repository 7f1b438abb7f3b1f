"""What a node allows and how long it waits; what its envelopes carry."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

__all__ = ["IN_CLEAR", "Kind", "Limits"]

IN_CLEAR: Final = 0
"""Not a kind of envelope: an announcement, which is a frame of its own."""


class Kind(IntEnum):
    """What an envelope carries; part of its signed header."""

    DATA = 1  # a message of the protocol, for the machine
    PRESENCE = 2  # I am here; one byte says whether I have heard you
    GOODBYE = 3  # I am done; nothing more will come
    ASKING = 4  # here is the digest of whom I know; tell me whom you know, if that differs
    ROSTER = 5  # announcements of members
    COVER = 6  # a slot of cover traffic: what it holds, and of which kind, is said inside the seal


@dataclass(frozen=True, slots=True)
class Limits:
    """Deadlines, in seconds, and bounds."""

    start: float = 30.0  # for every neighbour to answer
    heartbeat: float = 1.0
    patience: float = 10.0  # silence before a neighbour is suspected
    grace: float = 1.0  # silence after its connection broke
    flush: float = 10.0  # for what was said last to leave
    linger: float = 10.0  # for the neighbours to say goodbye
    settle: float = 0.25  # between the last goodbye and closing the transport
    outbox: int = 256  # frames waiting for one neighbour
    backlog: int = 256  # bodies of one neighbour waiting for the machine
    waiting_bytes: int = 128 << 20  # of either, for each neighbour: as much as its largest body (MAX_BODY)
    forget: float = 60.0  # times patience: silence before a member of a growing mesh is forgotten
    strangers: int = 64  # that discovery found, and that have not been let in: so many are said hello to at once
