"""BROKEN, and here to be attacked: homomorphic encryption with one secret key that every client holds.

The usual set-up of federated learning with homomorphic encryption, and the position paper's own code: somebody makes
one key pair, every client gets both halves, the server adds what it cannot read. In a mesh every peer is an aggregator,
and it holds the key: each neighbour reads each update alone (`read`), as if nothing were encrypted. It protects from a
relay that holds no key, and from nobody else; and with CKKS one client that shows two decryptions to that relay has
given the key away to it as well (`cpad`). Use `homomorphic.Lanes` with a key pair for each receiver and a blind proxy
instead.
"""

from dataclasses import dataclass

from veilmesh.core import Refusal, RemoteError
from veilmesh.crypto.homomorphic import Floats, Keys, Scheme

__all__ = ["SharedKey"]


@dataclass(frozen=True, slots=True)
class SharedKey:
    """Everybody's key pair. Encrypt and add with `scheme` and `keys.public`."""

    scheme: Scheme
    keys: Keys

    @classmethod
    def deal(cls, scheme: Scheme) -> "SharedKey":
        """A fresh pair, to be handed to every client."""
        return cls(scheme, scheme.keys())

    def hand_out(self) -> bytes:
        """Both halves, as every client gets them."""
        return self.keys.public + self.keys.serialise_secret()

    @classmethod
    def accept(cls, scheme: Scheme, raw: bytes) -> "SharedKey":
        """What `hand_out` wrote. Raises RemoteError if `raw` is not that, of this scheme."""
        size = scheme.public_size()
        if len(raw) <= size:
            raise RemoteError(Refusal.TRUNCATED, "a key pair without its secret half")
        return cls(scheme, scheme.keys_of(raw[:size], raw[size:]))

    def read(self, ciphertext: bytes, dimension: int) -> Floats:
        """One client's update (dimension,), in clear: what any holder of the key can do. Raises RemoteError."""
        return self.scheme.decrypt(self.keys, ciphertext, dimension, 1)
