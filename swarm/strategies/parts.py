"""From a model to the parts that an all-reduce says, and back.

Lossless codec: the model after training h_i = x_i + u_i is what is averaged, to the last bit alike in the whole group.
Lossy codec: models of peers from different groups differ by more than a codec C should be asked to say. So changes are
averaged, with error feedback at both ends (Tang et al. 2019, "DoubleSqueeze"), and beside them rounded models, Q being
eight bits of the deviation from the common beginning:

    w_i = u_i + e_i;  q_i = C(w_i);  e_i = w_i - q_i
    x_i = x_i + C(mean q) + Q(mean l) - l_i,  l_i = Q(x_i)         the latter two on one coordinate in `sweep` a round
    what C(mean q) and Q(mean l) leave out, times the number of models averaged, is added to their reducer's own e

The sum over peers of x + e is then just what was learnt, with any codec; and groups that went different ways are drawn
together. Q rounds by a stream common to all, so that among equal models the last two terms are nothing.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from veilmesh.core import Refusal, RemoteError, generator
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import Vector
from veilmesh.crypto.codecs.quantised import EightBit
from veilmesh.crypto.feedback import ErrorFeedback
from veilmesh.swarm import messages
from veilmesh.swarm.strategies.base import Kit
from veilmesh.swarm.strategies.butterfly import Butterfly, Piece, mean

__all__ = ["Parts", "Said"]

Said = tuple[bytes, bytes]
"""A piece as it is said: its values in the run's codec, its levels in eight bits."""


class Parts:
    """One peer's encoder, with its memory of what the codec has left out."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self._memory = ErrorFeedback(kit.sealer.dimension)
        self._said = kit.initial  # of this round: the model, or its change
        self._levels = np.zeros_like(kit.initial)  # and the levels, where there are any

    @property
    def left_out(self) -> Vector:
        """(d,) what this peer still has to say."""
        return self._memory.memory

    def wanted(self, x: Vector, update: Vector) -> Vector:
        """(d,) what is to be averaged: the model after training, or with a lossy codec its change."""
        return x + update if self._kit.sealer.lossless else self._memory.outgoing(update)

    def say(self, butterfly: Butterfly, round_: int, wanted: Vector, x: Vector) -> list[Said]:
        """Every part as it is said, in its turn."""
        self._said, said = np.empty_like(wanted), list[Said]()
        for part in butterfly.parts:
            span, stripe = butterfly.span(part), butterfly.levels(part)
            sealer = self._kit.sealer.part(butterfly.length(part), "said", part)
            blob, self._said[span] = sealer.encode(wanted[span], round_)
            levels, self._levels[stripe] = self._eight_bits((x - self._kit.initial)[stripe], round_, part)
            said.append((blob, levels))
        if not self._kit.sealer.lossless:
            self._memory.sent(wanted, self._said)
        return said

    def own(self, butterfly: Butterfly, part: int) -> Piece:
        """This peer's own piece of a part, as the others read it."""
        levels = self._levels[butterfly.levels(part)]
        return self._said[butterfly.span(part)], levels[:0] if self._kit.sealer.lossless else levels

    def average(self, butterfly: Butterfly, round_: int, part: int, pieces: Sequence[Piece]) -> tuple[Piece, Said]:
        """The average of pieces, as everybody will read it, and as it is said. What that leaves out, out of as many
        models as there are pieces, is this peer's to say later."""
        values, levels = mean(pieces)
        blob, said = self._kit.sealer.part(butterfly.length(part), "averaged", part).encode(values, round_)
        level_blob, levels_said = self._eight_bits(levels, round_, part)
        if not self._kit.sealer.lossless:
            owed = self._memory.memory.copy()
            owed[butterfly.span(part)] += np.float32(len(pieces)) * (values - said)
            owed[butterfly.levels(part)] += np.float32(len(pieces)) * (levels - levels_said)
            self._memory.memory = owed
        return (said, levels_said), (blob, level_blob)

    def mixed(self, butterfly: Butterfly, x: Vector, averages: Mapping[int, Piece]) -> Vector:
        """The next model (d,), from the averages by part; where there is none, this peer's own."""
        x, change = x.copy(), self._said.copy()
        for part, (values, levels) in averages.items():
            change[butterfly.span(part)] = values
            if not self._kit.sealer.lossless:
                stripe = butterfly.levels(part)
                x[stripe] += levels - self._levels[stripe]
        return change if self._kit.sealer.lossless else x + change

    def read(self, butterfly: Butterfly, message: messages.Part | messages.Averaged) -> Piece:
        """What a message says of its part. Raises RemoteError."""
        sealer = self._kit.sealer.part(butterfly.length(message.part))
        if not self._kit.sealer.lossless:
            levels = self._kit.sealer.part(butterfly.level_count(message.part)).decode(message.levels).values
            return sealer.decode(message.blob).values, levels
        if message.levels:
            raise RemoteError(Refusal.MISMATCH, "levels beside what is lossless")
        return sealer.decode_lossless(message.blob), np.zeros(0, np.float32)

    def _eight_bits(self, levels: Vector, round_: int, part: int) -> tuple[bytes, Vector]:
        """Rounded alike by everybody, so that what is equal stays equal."""
        if self._kit.sealer.lossless:
            return b"", levels
        blob = table.encode(EightBit(), levels, generator(self._kit.seed, "levels", round_, part))
        return blob, table.decode(blob, levels.size).values
