"""What a guess is worth: PSNR and SSIM against the truth, beside what knowing nothing would have scored.

The only place where guesses meet the truth. Scores are per picture, in [0, 1] after clamping. A batch is matched one to
one before it is scored, since nobody can know the order of a batch. Every score stands beside its floors, because a
gray picture already has 10 to 15 dB: only what a guess gains over the best floor came from the attack.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from veilmesh.attacks.view import Guess
from veilmesh.core import LocalError
from veilmesh.peer.machine import PeerId
from veilmesh.sim.floors import Floors, floors, pairs
from veilmesh.sim.measures import CAP, Pictures, clamped, match, psnr, psnr_shifted, relative_error, ssim

__all__ = ["CAP", "Floors", "Scored", "floors", "match", "psnr", "score", "shown_for", "ssim"]


@dataclass(frozen=True, slots=True)
class Scored:
    """One private picture, and how well it was guessed. Plain numbers, ready for JSON; decibels are capped at 60.

    A picture for which there was no guess scores what gray scores, and `guessed` is False.
    """

    victim: PeerId
    round: int
    truth: int  # place in the truth's batch
    guess: int | None  # place in the guess's batch
    guessed: bool
    psnr: float
    psnr_shifted: float  # at its best circular shift
    ssim: float
    error: float  # relative, and without a cap
    floor_grey: float
    floor_mean: float | None
    floor_nearest: float | None
    floor_blind: float | None  # of as many public pictures drawn at random, matched as the guess was
    floor_shifted: float | None  # of the same, each at its best circular shift
    best_floor: float
    gain: float  # psnr - best_floor
    ssim_floor: float  # best SSIM of any floor
    ssim_gain: float
    nearest: int | None  # place of the nearest public picture
    label: int | None  # as the attacker inferred it
    label_ok: bool | None  # None where the attack guessed no labels
    loss: float


def score(
    guess: Guess, truth_pictures: Pictures, truth_labels: NDArray[np.int64], public_pictures: Pictures | None
) -> list[Scored]:
    """Every private picture of the batch behind `guess`, scored after one-to-one matching; in the truth's order.

    `truth_labels` (N,), or (N, H, W) where pixels have labels: those are not scored.
    """
    truths = clamped(truth_pictures)
    if guess.pictures.shape[1:] != truths.shape[1:] or len(truth_labels) != len(truths):
        raise LocalError(f"a guess of {guess.pictures.shape} was scored against {truths.shape}")
    partner = {j: i for i, j in match(guess.pictures, truths)}
    labels = _labels(guess, partner, truth_labels)
    shown = shown_for(guess, partner, truths)
    values, shifted = pairs(shown, truths), psnr_shifted(shown, truths)
    errors = relative_error(shown, truths)
    known = floors(truths, public_pictures)
    told = [int(label) if label.ndim == 0 else None for label in truth_labels]
    return [
        _Place(guess, j, partner.get(j), values[j], float(shifted[j]), float(errors[j]), known[j]).scored(
            labels[j], told[j]
        )
        for j in range(len(truths))
    ]


def shown_for(guess: Guess, partner: Mapping[int, int], truths: Pictures) -> Pictures:
    """What the guess shows for each of `truths` (N, C, H, W): `partner` says which picture; without one it is gray."""
    grey = np.full(truths.shape[1:], 0.5)
    shown = [guess.pictures[partner[j]] if j in partner else grey for j in range(len(truths))]
    return np.array(shown, np.float64).reshape(truths.shape)


@dataclass(frozen=True, slots=True)
class _Place:
    guess: Guess
    truth: int
    partner: int | None
    value: tuple[float, float]
    shifted: float
    error: float
    floor: Floors

    def scored(self, label: int | None, truth: int | None) -> Scored:
        best, best_ssim = self.floor.best
        return Scored(
            victim=self.guess.victim,
            round=self.guess.round,
            truth=self.truth,
            guess=self.partner,
            guessed=self.partner is not None,
            psnr=self.value[0],
            psnr_shifted=self.shifted,
            ssim=self.value[1],
            error=self.error,
            floor_grey=self.floor.grey[0],
            floor_mean=self.floor.mean[0] if self.floor.mean else None,
            floor_nearest=self.floor.nearest[0] if self.floor.nearest else None,
            floor_blind=self.floor.blind,
            floor_shifted=self.floor.blind_shifted,
            best_floor=best,
            gain=self.value[0] - best,
            ssim_floor=best_ssim,
            ssim_gain=self.value[1] - best_ssim,
            nearest=self.floor.nearest_index,
            label=label,
            label_ok=None if label is None else label == truth,
            loss=float(self.guess.loss),
        )


def _labels(guess: Guess, partner: dict[int, int], truth: NDArray[np.int64]) -> list[int | None]:
    """The guessed label of each true picture: its partner's, or without pictures one of the same multiset; None where
    pixels have labels."""
    if truth.ndim > 1 or guess.labels.ndim > 1:
        return [None] * len(truth)
    if len(guess.pictures) and len(guess.labels):
        return [int(guess.labels[partner[j]]) if j in partner else None for j in range(len(truth))]
    if not len(guess.labels):
        return [None] * len(truth)
    left = [int(label) for label in guess.labels]
    found: list[int | None] = [None] * len(truth)
    for j, label in enumerate(truth):
        if int(label) in left:
            left.remove(int(label))
            found[j] = int(label)
    return [label if label is not None or not left else left.pop(0) for label in found]
