"""The search of SPEAR: in a space of vectors over neurons, those that are zero at a whole set of neurons.

The space is given by `rows` (m, b), one row for each neuron: a combination q (b,) of its columns is the vector
rows @ q. Where the columns mix the gradients delta_i of b examples behind a ReLU, each delta_i is zero at the neurons
that its example did not excite, about half of them, and no other combination is zero at so many (Dimitrov et al., arXiv
2403.03945). Every direction that is found here is certified: nothing but its own multiples is zero where
it is zero. What is zero at fewer neurons than one example would be is a mixture of two or three examples, and then all
combinations of these are zero there; in that small space the examples are told apart by single rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Directions", "Judge", "Space", "sparse_directions"]

Floats = NDArray[np.float64]

_SAMPLES = 4096  # sets of rows a round
_KEPT = 48  # of them that are worth a closer look
_ZERO = 1e-5  # of a row's length: rounding of what was said as float32
_SAME = 0.9999  # cosine above which two directions are one
_MIXED = 4  # examples in a mixture that is still taken apart
_SMALL = 25_000_000  # numbers in one array of the sampling: 200 MB


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """`rows` (m, b) at unit length; `noise` (m, b): what one unit of each coordinate of q adds to a row's error; `live`
    (out,): which neurons these m are, those that anything excited."""

    rows: Floats
    noise: Floats
    live: NDArray[np.bool_]

    @classmethod
    def of(cls, left: Floats, singular: Floats, error: float) -> "Space":
        """From the left singular vectors (m, b) of a gradient, its singular values (b,), and the standard deviation
        `error` of what its entries are wrong by."""
        lengths = np.linalg.norm(left, axis=1)
        live = lengths > 1e-9 * lengths.max(initial=0.0)
        lengths = lengths[live, None]
        return cls(left[live] / lengths, (error / singular)[None] / lengths, live)

    def least(self, zeros: NDArray[np.bool_]) -> Floats:
        """The directions (n, b) that are smallest where `zeros` (n, m) says that they should be zero."""
        grams = np.stack([self.rows[one].T @ self.rows[one] for one in zeros])
        return np.asarray(np.linalg.eigh(grams)[1][:, :, 0])

    def zeros(self, q: Floats) -> NDArray[np.bool_]:
        """Where (n, m) the vectors of the directions `q` (n, b) are zero up to errors."""
        allowed = _ZERO + 6 * np.sqrt(np.square(q) @ np.square(self.noise).T)
        return np.asarray(np.abs(q @ self.rows.T) <= np.minimum(allowed, 0.05))


@dataclass(frozen=True, slots=True, eq=False)
class Directions:
    """Unit directions (n, b), no two the same, the share of the rows at which each is zero (n,), the sparsest first."""

    q: Floats
    sparsity: Floats

    def joined(self, q: Floats, sparsity: Floats) -> "Directions":
        """With further ones, of which those are left out that are already here."""
        q, sparsity = np.vstack([self.q, q]), np.concatenate([self.sparsity, sparsity])
        kept: list[int] = []
        for i in np.argsort(-sparsity, kind="stable"):
            if not kept or np.abs(q[kept] @ q[i]).max() < _SAME:
                kept.append(int(i))
        return Directions(q[kept], sparsity[kept])


class Judge(Protocol):
    """Who knows the layer, and not only its gradient."""

    def believed(self, q: Floats) -> Floats:
        """Those of the directions (n, b) that an example can be behind, and that are independent."""
        ...

    def inverted(self, q: Floats) -> Floats:
        """Guesses (n', b) at directions that are missing, from those that were found (n, b)."""
        ...


def sparse_directions(
    space: Space, rounds: int, rng: np.random.Generator, common: Floats | None, judge: "Judge"
) -> Iterator[Directions]:
    """All directions that were found so far, after each of `rounds` rounds.

    A round has three sources of first guesses. Sampling, as in the paper: b - 1 random rows, and the direction that is
    zero at them, which is right where some example was at rest at all of them, so about once in 2^(b-1) / b times.
    And descent, for larger batches: independent component analysis, whose cost does not grow so, on rows without what
    `common` (m, k) explains, the vectors that the gradients of all examples are made of before the ReLU. And what the
    `judge` makes of the directions so far.
    """
    found = Directions(np.zeros((0, space.rows.shape[1])), np.zeros(0))
    for _ in range(rounds):
        for guesses in (_sampled(space, rng), _independent(space, judge.believed(found.q), rng, common)):
            found = found.joined(*_certified(space, _refined(space, guesses)))
        found = found.joined(*_certified(space, _refined(space, judge.inverted(found.q))))
        yield found


def _sampled(space: Space, rng: np.random.Generator) -> Floats:
    """Directions (n, b) that are zero at b - 1 random rows, those with the most small entries of many."""
    m, b = space.rows.shape
    if b == 1 or m < b:
        return np.ones((1, b))
    count = max(16, min(_SAMPLES, _SMALL // (b * b + m)))
    picked = space.rows[rng.integers(0, m, (count, b - 1))]
    picked = picked + 1e-12 * rng.standard_normal(picked.shape)  # a row that was drawn twice makes no equation
    last = np.linalg.solve(picked[:, :, :-1], -picked[:, :, -1:])[:, :, 0] if b > 1 else np.zeros((count, 0))
    q = _unit(np.concatenate([last, np.ones((count, 1))], axis=1))
    small = np.quantile(np.abs(q @ space.rows.T), 0.25, axis=1)
    kept: list[int] = []
    for i in np.argsort(small, kind="stable")[: 16 * _KEPT]:  # one direction may be hit a thousand times
        if len(kept) < _KEPT and (not kept or np.abs(q[kept] @ q[i]).max() < _SAME):
            kept.append(int(i))
    return np.asarray(q[kept])


def _independent(space: Space, found: Floats, rng: np.random.Generator, common: Floats | None) -> Floats:
    """Directions (2b, b) from FastICA (Hyvarinen 1999, with the Gaussian contrast) on whitened rows.

    Deflated against what is `found`; and on another random part of the rows each time, for the last few examples are
    where the whole has no optimum.
    """
    part = rng.random(len(space.rows)) < rng.choice([0.4, 0.7, 1.0, 1.0])
    rest, b = space.rows[part], space.rows.shape[1]
    m = len(rest)
    if m < b:
        return np.zeros((0, b))
    if common is not None and m > common.shape[1] + b:
        basis = np.linalg.qr(common[part])[0]
        rest = rest - basis @ (basis.T @ rest)
    values, vectors = np.linalg.eigh(rest.T @ rest / m)
    values = np.maximum(values, 1e-12 * values[-1])
    whiten, colour = (vectors / np.sqrt(values)) @ vectors.T, (vectors * np.sqrt(values)) @ vectors.T
    white, taken = rest @ whiten, np.linalg.qr((found @ colour).T)[0]
    q = rng.standard_normal((2 * b, b))
    strict = rng.random() < 0.5
    for step in range(30):
        q = _unit(q - (q @ taken) @ taken.T) if strict or step < 3 else _unit(q)
        y = white @ q.T
        bell = np.exp(-np.square(y) / 2)
        q = (y * bell).T @ white / m - ((1 - np.square(y)) * bell).mean(axis=0)[:, None] * q
    return _unit(q @ whiten)


def _refined(space: Space, q: Floats) -> Floats:
    """`q` (n, b), each turned to where the smallest quarter of its entries is least, again and again."""
    if not len(q):
        return q
    quarter = max(space.rows.shape[1], len(space.rows) // 4)
    for _ in range(8):
        entries = np.abs(q @ space.rows.T)
        small = np.argpartition(entries, quarter - 1, axis=1)[:, :quarter]
        picked = space.rows[small]
        q = np.linalg.eigh(picked.transpose(0, 2, 1) @ picked)[1][:, :, 0]
    return q


def _certified(space: Space, q: Floats) -> tuple[Floats, Floats]:
    """What of `q` (n, b) is one example, and what it is mixed of otherwise; with the share of zeros of each."""
    kept = [np.zeros((0, space.rows.shape[1]))]
    seen: set[bytes] = set()
    for zeros in space.zeros(q):
        if zeros.tobytes() in seen:
            continue
        seen.add(zeros.tobytes())
        null = _null_space(space, zeros)
        if len(null) == 1:
            kept.append(null)
        elif 1 < len(null) <= _MIXED:
            kept.extend(_told_apart(space, null, zeros))
    certain = np.vstack(kept)
    return certain, space.zeros(certain).mean(axis=1) if len(certain) else np.zeros(0)


def _null_space(space: Space, zeros: NDArray[np.bool_]) -> Floats:
    """The directions (d, b) that are zero at all rows in `zeros` (m,); none where these are too few to tell.

    Of the two halves of these rows that which tells less is taken, for a single row that happens to be zero proves
    nothing; a direction that both halves agree on is determined by all of them.
    """
    b = space.rows.shape[1]
    if zeros.sum() < 2 * b + 2:
        return np.zeros((0, b))
    rows = space.rows[zeros]
    least = max((_kernel(rows[half::2]) for half in (0, 1)), key=len)
    return _kernel(rows)[:1] if len(least) == 1 else least


def _kernel(rows: Floats) -> Floats:
    values, vectors = np.linalg.eigh(rows.T @ rows)
    return np.asarray(vectors[:, values <= max(100 * values[0], 1e-9 * len(rows))].T)


def _told_apart(space: Space, null: Floats, zeros: NDArray[np.bool_]) -> Iterator[Floats]:
    """The examples (1, b) in the span of `null` (d, b), each found by the rows where it alone is zero."""
    d = len(null)
    rows = space.rows[~zeros] @ null.T
    step = max(1, len(rows) // 200)
    picked = np.stack([np.roll(rows, shift * 7, axis=0)[::step] for shift in range(d - 1)], axis=1)
    inside = np.linalg.svd(picked)[2][:, -1]
    q = _unit(inside @ null)
    order = np.argsort(-space.zeros(q).sum(axis=1), kind="stable")[: 12 * d]
    for mask in np.unique(space.zeros(q[order]), axis=0):
        one = _null_space(space, mask)
        if len(one) == 1:
            yield one


def _unit(q: Floats) -> Floats:
    return np.asarray(q / np.maximum(np.linalg.norm(q, axis=1, keepdims=True), 1e-300))
