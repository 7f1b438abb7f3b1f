"""Reading homomorphic ciphertexts with a key that one holds, and inverting what they say.

With one secret key for all clients (the usual set-up of homomorphic federated learning, and the position paper's own
code), every client is a key holder: it decrypts each update that it comes by, and the mesh is as open as a plain one.
With a key pair for each receiver the same attacker reads sums, or, together with the proxy that adds for it, single
models. The reading is in `ciphertexts.py`, and every inversion here reads so; this attack is the two of them by name.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from veilmesh.attacks.inversion.analytic import Analytic
from veilmesh.attacks.inversion.cosine import CosineInversion
from veilmesh.attacks.view import ATTACKS, Attack, Guess, View

__all__ = ["KeyHolder"]


@ATTACKS.register("key-holder")
@dataclass(frozen=True, slots=True)
class KeyHolder:
    """Decrypts updates with the key it was given as a client, then inverts them.

    Args:
        by: how, as the attack of that name.
        targets: at most so many rounds of each victim, the earliest exactly known ones first.
    """

    reconstructs: ClassVar[str] = "pictures"

    by: Literal["analytic", "cosine-inversion"] = "analytic"
    targets: Annotated[int, Field(ge=1)] = 4

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`. Raises BadInput as the inversion does."""
        inversion: Attack = Analytic(self.targets) if self.by == "analytic" else CosineInversion(targets=self.targets)
        yield from inversion.run(view, rng)
