"""What the protocols of homomorphic encryption have in common; the work itself is `crypto/homomorphic_work.py`."""

from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Final, Literal, TypeAlias

from veilmesh.core import BadInput
from veilmesh.crypto.homomorphic import Approximate, Exact, Lanes, Scheme
from veilmesh.crypto.paillier_vectors import Paillier
from veilmesh.swarm.aggregators.base import Needs
from veilmesh.swarm.strategies.base import Kit

__all__ = ["SCHEMES", "ExactName", "SchemeName", "exact_scheme", "fingerprint", "scheme_for", "usable"]

SchemeName: TypeAlias = Literal["ckks", "ckks-8192", "ckks-nvflare", "paillier", "paillier-512"]

SCHEMES: Final[Mapping[SchemeName, Callable[[int], Scheme]]] = {
    "ckks": Approximate,
    "ckks-8192": lambda peers: Approximate(peers, degree=8192),
    "ckks-nvflare": lambda peers: Approximate(peers, degree=8192, primes=(60, 40, 40)),
    "paillier": Paillier.fixed_point,
    "paillier-512": lambda peers: Paillier.fixed_point(peers, key_bits=512, packed=False),
}
"""What takes coordinates as they come, by name, for sums of so many vectors.

`ckks-8192`: with the primes of TenSEAL's tutorials; `ckks-nvflare`: with those of NVFlare's examples. `paillier`: 2048
bits, several coordinates to a ciphertext. `paillier-512`: as the position paper has it (Harenčák et al. 2026), a
ciphertext for every coordinate, under a key that is factored in hours.
"""

ExactName: TypeAlias = Literal["bfv", "paillier"]


def scheme_for(name: SchemeName, peers: int) -> Scheme:
    """What everybody encrypts with in a mesh of so many."""
    return SCHEMES[name](max(2, peers))


def exact_scheme(name: ExactName, bits: int, count: int, limit: float) -> Exact:
    """What sums `count` vectors to the bit, of coordinates of `bits` bits between -`limit` and `limit`."""
    return Lanes(bits, max(2, count), limit) if name == "bfv" else Paillier(bits, max(2, count), limit)


def fingerprint(public: bytes) -> bytes:
    """Which key that is: its SHA-256."""
    return sha256(public).digest()


def usable(kit: Kit, scheme: Scheme, protocol: str) -> None:
    """Raises BadInput where a protocol cannot run on homomorphic sums: with a codec, or a rule that has to see single
    models; and where what the scheme needs is missing."""
    if not kit.sealer.lossless:
        raise BadInput(f"{protocol} rounds and encrypts by itself, so a codec has nothing to say; leave codec out.")
    if kit.aggregator.needs is Needs.VECTORS:
        raise BadInput(
            f"{protocol} shows a peer the sum of its neighbours' models, and this aggregator has to see each of them; "
            "leave aggregator out, or take gossip."
        )
    scheme.ready()
