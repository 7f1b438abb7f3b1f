"""What a node counts, and what of it is worth a note: a flood of anything must not flood the record."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from veilmesh.core import RemoteError
from veilmesh.peer.machine import Note, PeerId

__all__ = ["Ledger", "Tally"]

_NOTED: Final = 10  # refusals of each kind
_DETAIL: Final = 200  # characters


@dataclass(slots=True)
class Tally:
    """What a node counted."""

    refusals: Counter[str] = field(default_factory=Counter)
    congested: int = 0  # bodies dropped because a neighbour did not take them in time
    flooded: int = 0  # bodies dropped because a neighbour said them faster than the machine takes them
    messages_sent: int = 0
    messages_received: int = 0
    slots: int = 0  # of cover traffic that left
    idle_slots: int = 0  # of these, with nothing to say
    missed_slots: int = 0  # that were left out, because this peer was busy


class Ledger:
    """Counts, and notes the first of what it counts.

    Args:
        note: told every note.
    """

    def __init__(self, note: Callable[[Note], None]) -> None:
        self._note = note
        self.tally = Tally()

    def refused(self, error: RemoteError, peer: PeerId | None) -> None:
        """Bytes were dropped for what `peer`, if it is known whom, did wrong."""
        why = error.refusal.value
        self.tally.refusals[why] += 1
        if self.tally.refusals[why] <= _NOTED:
            # A detail may repeat what a remote peer wrote, and the record is read on terminals.
            detail = "".join(c if c.isprintable() else "?" for c in str(error)[:_DETAIL])
            self._note(Note("refused", {"why": why, "detail": detail, "from": str(peer or "?")}))

    def flooded(self, by: PeerId) -> None:
        """A body was dropped because `by` said too many."""
        self.tally.flooded += 1
        if self.tally.flooded == 1:
            self._note(Note("flooded", {"by": str(by)}))

    def congested(self, to: PeerId, is_data: bool) -> None:
        """A body was dropped because `to` does not take what waits for it."""
        self.tally.congested += 1
        if is_data:
            self._note(Note("congested", {"to": str(to)}))
