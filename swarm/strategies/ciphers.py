"""What the protocols of homomorphic encryption have in common; the work itself is `crypto/homomorphic_work.py`."""

from hashlib import sha256

from veilmesh.core import BadInput
from veilmesh.crypto.homomorphic import Scheme
from veilmesh.swarm.aggregators.base import Needs
from veilmesh.swarm.strategies.base import Kit

__all__ = ["fingerprint", "usable"]


def fingerprint(public: bytes) -> bytes:
    """Which key that is: its SHA-256."""
    return sha256(public).digest()


def usable(kit: Kit, scheme: Scheme, protocol: str) -> None:
    """Raises BadInput where a protocol cannot run on homomorphic sums: with a codec, or a rule that has to see single
    models; and where TenSEAL is missing."""
    if not kit.sealer.lossless:
        raise BadInput(f"{protocol} rounds and encrypts by itself, so a codec has nothing to say; leave codec out.")
    if kit.aggregator.needs is Needs.VECTORS:
        raise BadInput(
            f"{protocol} shows a peer the sum of its neighbours' models, and this aggregator has to see each of them; "
            "leave aggregator out, or take gossip."
        )
    _ = scheme.template  # says what to install
