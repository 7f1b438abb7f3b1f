"""Length buckets: a body is made longer before it is sealed, so that its frame says less about it.

A padded body is followed by one byte 0x80 and zeros (ISO/IEC 7816-4), inside the seal: who changes or adds padding
breaks the seal, and a receiver refuses what does not end so. No length of a padded body is below `FLOOR`; beyond it

    padme          L = 2^E or more is rounded up until its lowest E - floor(log2 E) - 1 bits are zero: at most 12 %
                   longer, and O(log log L) bits are left to be learned (Nikitin et al., "Reducing Metadata Leakage from
                   Encrypted Files and Communication with PURBs", PETS 2019)
    power-of-two   the next power of two up to 1 MiB, then the next MiB: up to twice as long, and fewer buckets.

What stays visible: when frames pass and how many, and in which bucket.
"""

from typing import Final, Literal, TypeAlias, get_args

from veilmesh.core import Refusal, RemoteError

__all__ = ["FLOOR", "PADDINGS", "Padding", "pad", "padded_size", "unpad"]

Padding: TypeAlias = Literal["none", "padme", "power-of-two"]

PADDINGS: Final[tuple[Padding, ...]] = get_args(Padding)

FLOOR: Final = 256
"""The smallest bucket, in bytes: requests, votes and signs of life all look alike."""

_MIB = 1 << 20
_MARK = b"\x80"


def padded_size(length: int, padding: Padding, cap: int | None = None) -> int:
    """How many bytes are sealed for a body of `length`; never more than `cap`, the largest body there may be."""
    if padding == "none":
        return length
    least = max(length + len(_MARK), FLOOR)
    size = _padme(least) if padding == "padme" else _power_of_two(least)
    return size if cap is None else max(length + len(_MARK), min(size, cap))


def pad(body: bytes, padding: Padding, cap: int | None = None) -> bytes:
    """`body` with its padding."""
    if padding == "none":
        return body
    return b"".join((body, _MARK, bytes(padded_size(len(body), padding, cap) - len(body) - len(_MARK))))


def unpad(padded: bytes) -> bytes:
    """The body in `padded`. Raises RemoteError(MALFORMED) unless it ends in 0x80 and zeros."""
    end = padded.rfind(_MARK)
    if end < 0 or padded.count(0, end) != len(padded) - end - len(_MARK):
        raise RemoteError(Refusal.MALFORMED, "a body whose padding does not end where it should")
    return padded[:end]


def _padme(length: int) -> int:
    exponent = length.bit_length() - 1
    lowest = (1 << exponent - exponent.bit_length()) - 1  # bits that are to be zero
    return (length + lowest) & ~lowest


def _power_of_two(length: int) -> int:
    return 1 << (length - 1).bit_length() if length <= _MIB else -(-length // _MIB) * _MIB
