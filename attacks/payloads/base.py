"""What a crafted model promises: parameters of the public network that make its next trainer give examples away.

A payload only writes parameters; how they reach a victim (as the hub's model, or by overriding a neighbour's average)
is the business of a tamper (`attacks/tampers/crafted.py`), and reading the answer that of an attack.
"""

from typing import Protocol

import numpy as np

from veilmesh.attacks.view import Public
from veilmesh.core import Registry
from veilmesh.crypto.codecs.base import Vector

__all__ = ["PAYLOADS", "Payload"]


class Payload(Protocol):
    """A crafted model; pure in what is public and in its generator."""

    def craft(self, public: Public, start: Vector, rng: np.random.Generator) -> Vector:
        """The parameters (d,) to be trained from instead of `start` (d,), which is not written to.

        Raises BadInput where the public network has no place for this payload.
        """
        ...


PAYLOADS: Registry[Payload] = Registry("payload", "veilmesh.attacks.payloads")
