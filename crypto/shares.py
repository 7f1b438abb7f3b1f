"""Shamir's secret sharing of 32 bytes: any `threshold` shares give the secret, fewer say nothing at all.

(Shamir 1979, "How to share a secret".) The field is GF(2^128) and the arithmetic that of pycryptodome, so a secret is
two halves of 16 bytes with a polynomial each. Shares are numbered from 1; share 0 would be the secret.

A wrong share gives a wrong secret without a sign of it: whoever combines holds the result against something public.
"""

from collections.abc import Callable, Sequence
from typing import Final

from veilmesh.core import LocalError, Refusal, RemoteError

__all__ = ["MOST", "SHARE_BYTES", "combine", "split"]

SHARE_BYTES: Final = 32
"""A share is as long as the secret."""

MOST: Final = 255
"""Holders of one secret."""

_HALF: Final = 16


def split(secret: bytes, threshold: int, count: int, entropy: Callable[[int], bytes] | None = None) -> list[bytes]:
    """Shares 1 ... `count` of `secret` (32 bytes), of which `threshold` are enough.

    `entropy`: where coefficients come from, secret and never used again (see `masking.keystream`); None: from the
    operating system.
    """
    if len(secret) != 2 * _HALF or not 1 <= threshold <= count <= MOST:
        raise LocalError(f"{len(secret)} bytes cannot be shared {threshold} of {count}")
    halves = [_split(half, threshold, count, entropy) for half in (secret[:_HALF], secret[_HALF:])]
    return [one + other for one, other in zip(*halves, strict=True)]


def combine(shares: Sequence[tuple[int, bytes]], threshold: int) -> bytes:
    """The secret (32 bytes) behind (number, share) pairs; the first `threshold` of them are used.

    Raises RemoteError(MISMATCH) where they are too few or one number comes twice, and RemoteError(MALFORMED) for a
    number or a size that no share has: they came from peers.
    """
    from Crypto.Protocol.SecretSharing import Shamir

    if len(shares) < threshold:
        raise RemoteError(Refusal.MISMATCH, f"{len(shares)} shares where it takes {threshold}")
    if len({number for number, _ in shares}) < len(shares):
        raise RemoteError(Refusal.MISMATCH, "a share that comes twice")
    if any(not 1 <= number <= MOST or len(share) != SHARE_BYTES for number, share in shares):
        raise RemoteError(Refusal.MALFORMED, "what is no share")
    used = shares[:threshold]
    return b"".join(
        Shamir.combine([(number, share[cut]) for number, share in used]) for cut in (slice(_HALF), slice(_HALF, None))
    )


def _split(half: bytes, threshold: int, count: int, entropy: Callable[[int], bytes] | None) -> list[bytes]:
    """As pycryptodome does it; its own `split` where it may draw as it likes, for it takes no source of randomness."""
    from Crypto.Protocol.SecretSharing import Shamir, _Element

    if entropy is None:
        return [share for _, share in Shamir.split(threshold, count, half)]
    coefficients = [*(_Element(entropy(_HALF)) for _ in range(threshold - 1)), _Element(half)]
    shares = []
    for number in range(1, count + 1):
        value = _Element(0)
        for coefficient in coefficients:
            value = _Element(number) * value + coefficient
        shares.append(value.encode())
    return shares
