"""From a local update to bytes and back: guards, then the codec; the envelope comes later, in the peer's node.

The order is fixed: what a guard removes is gone before anything is encoded, and the codec's loss is what the error
feedback (or the public copies of gossip) remember, never the guard's.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from veilmesh.core import Refusal, RemoteError, generator, seed_number
from veilmesh.core.zerosum import Pair
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import Codec, Decoded, Vector
from veilmesh.peer.machine import Note
from veilmesh.swarm.guards.base import Guard, Layout, RoundInfo, Watching

__all__ = ["RANGE", "Sealer", "astray"]

RANGE = np.float32(1e6)
"""The largest magnitude a coordinate may have on the wire. No network that trains has one near it, and sums of what
neighbours say then stay finite: one of them could otherwise end all the others with a single 3e38."""


def astray(x: Vector) -> str | None:
    """Why a model or an update (d,) of our own is not fit to be said any more; None where it is."""
    if not np.isfinite(x).all():
        return "the model is no longer finite"
    return f"the model has diverged beyond {RANGE:g}" if (np.abs(x) > RANGE).any() else None


class Sealer:
    """One peer's guards and codec, with their own random streams.

    Args:
        guards: applied in order to every local update.
        codec: what updates are encoded with.
        dimension: d, the length of every vector.
        seed: the scenario's seed; streams are named by purpose, `index` and round.
        index: this peer's place in the roster.
        pairs: what this peer has in common with each neighbour, for guards whose noise cancels.
        layout: what is where in a vector, for guards that look at single layers.
        initial: (d,) the common beginning, for guards that compare.
    """

    def __init__(
        self, guards: Sequence[Guard], codec: Codec, dimension: int, seed: int, index: int, pairs: Sequence[Pair] = (),
        layout: Layout = (), initial: Vector | None = None,
    ) -> None:  # fmt: skip
        self._guards = tuple(guards)
        self._codec = codec
        self._seed = seed
        self._index = index
        self._pairs = tuple(pairs)
        self._layout = layout
        self._watched = any(isinstance(guard, Watching) for guard in self._guards)
        self._left = initial  # what this peer had when it spoke last, and nothing was wrong
        self._alarms: list[Note] = []
        self._guarded = (-1, 0)  # the last round that was guarded, and how many were a second time so far
        self.dimension = dimension

    def guard(self, update: Vector, info: RoundInfo) -> Vector:
        """The update (d,) this peer is willing to show, and trains on itself.

        A peer that falls back to a round guards another update in it, with other draws: the same noise twice would be
        none in the difference.
        """
        last, again = self._guarded
        self._guarded = (max(last, info.round), again + (info.round <= last))
        name = (self._index, info.round, *((self._guarded[1],) if self._guarded[1] else ()))
        info = self._informed(info, first=last < 0)
        alarms = []
        for place, guard in enumerate(self._guards):
            rng = generator(self._seed, "guard", place, *name)
            before, update = update, guard.outgoing(update, info, rng)
            if isinstance(guard, Watching) and before.any() and not update.any():
                alarms.append(Note("canary", {"round": info.round, "why": guard.alarm(before, info)}))
        if self._watched and info.start is not None and not alarms:
            self._left = info.start + update
        self._alarms += alarms
        return update

    def _informed(self, info: RoundInfo, first: bool) -> RoundInfo:
        """All that guards are told. Who comes late, or comes back, has left nothing that its `first` round goes on."""
        info = replace(info, pairs=self._pairs) if self._pairs else info
        if not self._watched:
            return info
        return replace(info, layout=self._layout, left=None if first and info.round else self._left)

    def alarms(self) -> list[Note]:
        """What guards found wrong since this was asked last."""
        alarms, self._alarms = self._alarms, []
        return alarms

    @property
    def lossless(self) -> bool:
        """Whether receivers read just what was encoded."""
        return self._codec.lossless

    def part(self, dimension: int, *name: str | int) -> "Sealer":
        """The same peer's codec for a part of the vector, of `dimension`, with random streams of that `name`."""
        return Sealer((), self._codec, dimension, seed_number(self._seed, "part", *name), self._index)

    def encode(self, x: Vector, round_: int) -> tuple[bytes, Vector]:
        """The bytes of `x` (d,), and what every receiver will read in them."""
        blob = table.encode(self._codec, x, generator(self._seed, "codec", self._index, round_))
        return blob, table.decode(blob, self.dimension).values

    def decode(self, blob: bytes) -> Decoded:
        """What a remote peer's bytes say. Raises RemoteError if they say nothing of this dimension and RANGE."""
        decoded = table.decode(blob, self.dimension)
        _check_range(decoded.values)
        return decoded

    def decode_lossless(self, blob: bytes) -> Vector:
        """As `decode`, where the protocol asks for every coordinate as it is. Raises RemoteError."""
        values = table.decode_lossless(blob, self.dimension)
        _check_range(values)
        return values


def _check_range(values: Vector) -> None:
    if (np.abs(values) > RANGE).any():
        raise RemoteError(Refusal.MISMATCH, f"coordinates beyond {RANGE:g}")
