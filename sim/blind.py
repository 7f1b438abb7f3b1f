"""Guesses made without any information, of the same size as a batch and matched to it in the same way.

Who matches a batch one to one with the truth in hand raises the score of any guess: of B public pictures drawn at
random, each is paired with that private picture which it happens to resemble. What this is worth has to be taken from
what an attack scores, so such guesses are scored by the same rule.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from veilmesh.core import generator
from veilmesh.sim.measures import Pictures, clamped, match

__all__ = ["DRAWS", "blind_guesses"]

DRAWS = 8
"""So many guesses are drawn for a batch; what they score is averaged."""


def blind_guesses(truths: Pictures, public: Pictures) -> NDArray[np.int64]:
    """Which of the `public` pictures (M, C, H, W) stands for each of `truths` (N, C, H, W) in each draw: (DRAWS, N).

    A draw is of N different public pictures, of which some come twice only where there are fewer. Drawn by a generator
    that the batch itself names: the same batch has the same guesses, whoever attacked it.
    """
    truths, public = clamped(truths), np.asarray(public)
    name = hashlib.blake2b(truths.tobytes(), digest_size=16).hexdigest()
    found = np.zeros((DRAWS, len(truths)), np.int64)
    for at in range(DRAWS):
        drawn = generator(0, "blind", name, at).choice(len(public), len(truths), replace=len(truths) > len(public))
        for guess, truth in match(public[drawn], truths) if len(truths) else ():
            found[at, truth] = drawn[guess]
    return found
