"""Homomorphic ciphertexts whose key is solved for, from decryptions that were published.

CKKS hands out its noise with every decryption, and a ciphertext beside its full-precision decryption is a linear
equation for the secret key (IND-CPA-D: Li and Micciancio 2021; `crypto/cpad.py`). Whoever carries a mesh's ciphertexts,
and is shown two sums that somebody with the key has decrypted, has the key, and from then on everything.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from veilmesh.attacks.inversion.key_holder import KeyHolder
from veilmesh.attacks.seen.ciphertexts import opened, recovered_key
from veilmesh.attacks.view import ATTACKS, Guess, View

__all__ = ["DecryptionPublishing"]


@ATTACKS.register("decryption-publishing")
@dataclass(frozen=True, slots=True)
class DecryptionPublishing:
    """Solves for a shared CKKS key that it was never told, from published sums, then inverts what it opens.

    Of a shared-key mesh whose key cannot be had so, nothing is guessed: the key that clients are told is not looked at.

    Args:
        by: how, as the attack of that name.
        targets: at most so many rounds of each victim, the earliest exactly known ones first.
    """

    reconstructs: ClassVar[str] = "pictures"

    by: Literal["analytic", "cosine-inversion"] = "analytic"
    targets: Annotated[int, Field(ge=1)] = 4

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`. Raises BadInput as the inversion does."""
        if view.public.strategy == "shared-key":
            if (key := recovered_key(view)) is None:
                return
            view = opened(view, key)
        yield from KeyHolder(self.by, self.targets).run(view, rng)
