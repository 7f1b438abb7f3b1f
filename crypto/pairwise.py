"""Seeds of pairs: what two peers who know each other's public key can both compute, and nobody else."""

from veilmesh.crypto.masking import key_pair, pair_secret

__all__ = ["pair_public", "pair_seed"]

_SALT = b"veilmesh pair seed 1"


def pair_public(private: bytes) -> bytes:
    """The public key (32 bytes) to the X25519 key `private` (32 bytes)."""
    return key_pair(private)[1]


def pair_seed(private: bytes, theirs: bytes, purpose: str) -> int:
    """A seed for `purpose`, the same at both ends: X25519 and HKDF-SHA256 with both public keys (`masking`).

    63 bits, and noise is drawn from it with PCG64: enough to be reproduced, not what a cipher would give. Raises
    RemoteError if `theirs` is no key to agree on.
    """
    both = b"".join(sorted((pair_public(private), theirs)))
    return int.from_bytes(pair_secret(private, theirs, _SALT, purpose.encode() + both)[:8], "big") >> 1
