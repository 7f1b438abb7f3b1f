"""The closed table of wire ids, and the two doors through which vectors become bytes and bytes vectors.

An id, once given away, is never given to another codec: an old peer would read the new one's bytes with the old
decoder. To retire a codec, leave its number in a comment.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np

from veilmesh.core import LocalError, Refusal, RemoteError
from veilmesh.crypto.codecs.base import Codec, Decoded, Vector
from veilmesh.crypto.codecs.bfloat16 import BFloat16
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.crypto.codecs.fewbits import EightBitZstd, FourBit, TwoBit
from veilmesh.crypto.codecs.lowrank import LowRank
from veilmesh.crypto.codecs.nf4 import NormalFloat4
from veilmesh.crypto.codecs.normal_float import NormalFloat
from veilmesh.crypto.codecs.quantised import EightBit
from veilmesh.crypto.codecs.randk import RandK
from veilmesh.crypto.codecs.sign import Sign
from veilmesh.crypto.codecs.topk import TopK
from veilmesh.crypto.codecs.topk_packed import TopKPacked

__all__ = ["WIRE_IDS", "decode", "decode_lossless", "encode"]

WIRE_IDS: Final[Mapping[int, type[Codec]]] = {
    1: Dense,
    2: TopK,
    3: EightBit,
    4: TopKPacked,
    5: EightBitZstd,
    6: FourBit,
    7: TwoBit,
    8: NormalFloat4,
    9: Sign,
    10: RandK,
    11: LowRank,
    12: NormalFloat,
    13: BFloat16,
}
"""Which class decodes what begins with which byte."""


def encode(codec: Codec, x: Vector, rng: np.random.Generator) -> bytes:
    """The wire id of `codec` and its bytes of `x` (d,). Raises LocalError: NaN or infinity, or a codec without id."""
    if WIRE_IDS.get(codec.wire_id) is not type(codec):
        raise LocalError(f"{type(codec).__name__} has no entry in the table of wire ids, so no peer could decode it")
    return bytes([codec.wire_id]) + codec.encode(x, rng)


def decode(raw: bytes, dimension: int) -> Decoded:
    """What `raw` says of a vector of `dimension`.

    Raises RemoteError: MALFORMED (nothing, an unknown id, NaN or infinity, a lie) or MISMATCH (another dimension).
    """
    return _decoder(raw).decode(raw[1:], dimension)


def decode_lossless(raw: bytes, dimension: int) -> Vector:
    """As `decode`, where the protocol asks for every coordinate as it is. Raises MISMATCH too if the codec is lossy."""
    codec = _decoder(raw)
    if not codec.lossless:
        raise RemoteError(Refusal.MISMATCH, f"{codec.__name__} where only a lossless codec will do")
    return codec.decode(raw[1:], dimension).values


def _decoder(raw: bytes) -> type[Codec]:
    codec = WIRE_IDS.get(raw[0]) if raw else None
    if codec is None:
        raise RemoteError(Refusal.MALFORMED, "bytes of no known codec")
    return codec
