"""How well each label explains a gradient that was seen, behind the noise that a label owner is known to add.

The guards of a run are public, and so is how large their noise is, but for what depends on the gradients themselves;
that is read off the gradients that the attacker expects. Noise is Gaussian: of one variance along a line, and of
another in every direction across it. What the guards do not explain (codecs, a network that is not quite known) is
taken for more noise, of the size that is met.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veilmesh.attacks.smashed.last_stage import Candidates
from veilmesh.core import BadInput
from veilmesh.split.guards.base import SPLIT_GUARDS, SplitGuard
from veilmesh.split.guards.gradient_noise import GradientNoise
from veilmesh.split.guards.marvell import Classes, Marvell

__all__ = ["Noise", "expected_noise", "label_guards", "log_likelihood", "normalised"]

Floats = NDArray[np.float64]

_SWEEPS = 4
_WRONG = np.log(0.02)
_TINY = 1e-9  # of a gradient's mean square: rounding


@dataclass(frozen=True, slots=True, eq=False)
class Noise:
    """Variances (K, B) of each coordinate across, and what there is more along `line`, unit vectors (K, B, d)."""

    across: Floats
    along: Floats
    line: Floats


def label_guards(guards: Sequence[Mapping[str, Any]]) -> list[SplitGuard]:
    """The public guards that change gradients at the label owner. Raises BadInput for one that is unknown."""
    built = [SPLIT_GUARDS.build_from(guard) for guard in guards]
    found = [guard for guard in built if guard.at == "labels"]
    for guard in found:
        if not isinstance(guard, GradientNoise | Marvell):
            raise BadInput(f"What {type(guard).__name__} does to gradients is not known here; run with another guard.")
    return found


def log_likelihood(seen: Floats, known: Candidates, guards: Sequence[SplitGuard], prior: Floats) -> Floats:
    """The log-likelihood (B, K) of gradients `seen` (B, d) under each label, but for a constant of each example.
    `prior` (B, K), logs: what is believed before, by which the guards' noise is first estimated."""
    likelihood = np.zeros_like(prior)
    for _ in range(_SWEEPS):
        belief = np.exp(normalised(prior + likelihood))
        noise = expected_noise(seen, known, belief, guards)
        likelihood = _gaussian(seen, known, noise, _unexplained(seen, known, noise))
        if guards:  # the noise is only estimated, and where it is nearly none a small error would decide everything
            likelihood = np.logaddexp(likelihood - likelihood.max(axis=1, keepdims=True), _WRONG)
    return likelihood


def expected_noise(seen: Floats, known: Candidates, belief: Floats, guards: Sequence[SplitGuard]) -> Noise:
    """The noise of the guards in what was `seen` (B, d), if labels are distributed as `belief` (B, K) says."""
    means = known.gradients
    classes, batch, size = means.shape
    across, along = np.zeros((classes, batch)), np.zeros((classes, batch))
    line = np.zeros_like(means)
    norms = np.linalg.norm(means, axis=2)
    largest = float(np.einsum("bk,kb->b", belief, norms).max())
    power = float(np.square(seen).sum(axis=1).mean())  # behind max-norm noise, what all are expected to have
    for guard in guards:
        if isinstance(guard, GradientNoise) and guard.kind == "isotropic":
            across += largest**2 * guard.power / size
        elif isinstance(guard, GradientNoise):
            along += np.maximum(power - norms**2, 0)
            line = means / np.maximum(norms, 1e-300)[:, :, None]
        elif isinstance(guard, Marvell):
            variances, direction = _marvell(means, belief, guard)
            across += variances[:, :1]
            along += np.maximum(variances[:, 1:] - variances[:, :1], 0)
            line[:] = direction
    return Noise(across, along, line)


def _marvell(means: Floats, belief: Floats, guard: Marvell) -> tuple[Floats, Floats]:
    """Variances (2, 2), of each class across and along, and the line (d,), as the guard reads them off a batch."""
    weights = np.clip(belief, 1e-6, None)
    weights = weights / weights.sum(axis=0)
    centres = np.einsum("bk,kbd->kd", weights, means)
    off = np.square(means - centres[:, None]).mean(axis=2)
    spread = np.einsum("bk,kb->k", weights, off)
    line = centres[1] - centres[0]
    apart = float(line @ line)
    share = float(np.clip(belief[:, 1].mean(), 1e-3, 1 - 1e-3))
    noise = guard.variances(Classes((float(spread[0]), float(spread[1])), apart, means.shape[2], share))
    variances = np.array([[noise.across[k], noise.along[k]] for k in (0, 1)])
    return variances, line / max(apart**0.5, 1e-300)


def _unexplained(seen: Floats, known: Candidates, noise: Noise) -> float:
    """The variance of a coordinate that the noise leaves unexplained, in the label that explains each gradient best."""
    size = seen.shape[1]
    off = np.square(seen - known.gradients)
    total = off.sum(axis=2)
    inside = np.square(np.einsum("kbd,kbd->kb", seen - known.gradients, noise.line))
    rest = np.where(noise.along > 0, total - inside, total) / size - noise.across
    floor = _TINY * float(np.square(seen).mean()) + 1e-30
    return max(floor, float(np.median(rest.min(axis=0))))


def _gaussian(seen: Floats, known: Candidates, noise: Noise, more: float) -> Floats:
    off = seen - known.gradients
    size = seen.shape[1]
    inside = np.square(np.einsum("kbd,kbd->kb", off, noise.line))
    has_line = np.square(noise.line).sum(axis=2) > 0.5
    inside = np.where(has_line, inside, 0.0)
    total = np.square(off).sum(axis=2)
    across, along = noise.across + more, noise.across + noise.along + more
    log = (total - inside) / across + inside / along
    log += np.where(has_line, (size - 1) * np.log(across) + np.log(along), size * np.log(across))
    return np.asarray(-0.5 * log.T)


def normalised(logs: Floats) -> Floats:
    """Logs (B, K) of numbers that sum to one in every row."""
    top = logs - logs.max(axis=1, keepdims=True)
    return np.asarray(top - np.log(np.exp(top).sum(axis=1, keepdims=True)))
