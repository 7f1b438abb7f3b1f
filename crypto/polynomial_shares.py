"""Shamir's secret sharing of whole vectors over F_p, p = 2^31 - 1, with correction of wrong shares.

Shamir 1979, "How to share a secret": a vector s (k,) is hidden in as many random polynomials of degree t with value s
at 0; member j = 1, 2, ..., n is given their values at j. Any t members know nothing, any t + 1 everything. Shares of a
sum are sums of shares, of degree t; inner products of shares are shares of inner products, of degree 2t.

Shares are words of a Reed-Solomon code, so wrong ones can be found: with m shares of degree g, of which at most f are
wrong, e of them may be corrected if  2e <= m - g - 1  (the nearest polynomial is the only one), and a polynomial that
is not the right one never passes if  e < m - g - f  (it agrees with g right shares and f wrong ones at most). `radius`
is the largest e that fulfils both. Berlekamp and Welch 1986 ("Error correction for algebraic block codes") find them;
for vectors, in one random linear combination of the coordinates: if a share is wrong anywhere, it is wrong there too,
but for a chance of 1/p.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from veilmesh.core import LocalError
from veilmesh.crypto.field import PRIME, Elements, inverse, matmul, random_elements, reduced

__all__ = [
    "Polynomial", "Recovered", "decode", "extrapolated", "lagrange", "radius", "recover", "share_vector", "value",
]  # fmt: skip

Polynomial = tuple[int, ...]
"""Coefficients, that of degree 0 first."""


class Recovered(NamedTuple):
    """A vector put together again (k,), and at which points the shares were wrong."""

    secret: Elements
    wrong: tuple[int, ...]


def share_vector(secret: Elements, members: int, degree: int, key: bytes) -> Elements:
    """The shares (n, k) of `secret` (k,), row j - 1 for point j; `key` (32 bytes) is secret and used once."""
    if not 0 <= degree < members:
        raise LocalError(f"no sharing of degree {degree} among {members}")
    random = random_elements(key, degree * secret.size).reshape(degree, secret.size)
    return np.stack([_at(point, [secret, *random]) for point in range(1, members + 1)])


def _at(point: int, coefficients: Sequence[Elements]) -> Elements:
    """Horner's rule for all coordinates at once."""
    value, x = coefficients[-1], np.uint64(point)
    for coefficient in reversed(coefficients[:-1]):
        value = reduced(value * x + coefficient)
    return value


def lagrange(points: Sequence[int], at: int = 0) -> list[int]:
    """The weights by which values at `points` have to be summed up to give that of their polynomial `at`."""
    weights = []
    for i in points:
        above = below = 1
        for j in points:
            if j != i:
                above, below = above * (at - j) % PRIME, below * (i - j) % PRIME
        weights.append(above * inverse(below) % PRIME)
    return weights


def radius(shares: int, degree: int, liars: int) -> int:
    """How many of so many shares may be corrected where at most `liars` are wrong; below 0: nothing can be believed."""
    return min(liars, (shares - degree - 1) // 2, shares - degree - liars - 1)


def value(polynomial: Polynomial, at: int) -> int:
    """The value of a polynomial."""
    total = 0
    for coefficient in reversed(polynomial):
        total = (total * at + coefficient) % PRIME
    return total


def decode(points: Sequence[int], values: Sequence[int], degree: int, errors: int) -> Polynomial | None:
    """The polynomial of that degree at most with which all `values` but `errors` agree; None if there is none."""
    if errors < 0 or len(points) <= degree:
        return None
    plain = _interpolated(points[: degree + 1], values[: degree + 1])
    if _disagree(plain, points, values) == 0:
        return plain
    found = _berlekamp_welch(points, values, degree, errors)
    return found if found is not None and _disagree(found, points, values) <= errors else None


def extrapolated(points: Sequence[int], values: Elements, degree: int) -> tuple[Elements, NDArray[np.bool_]]:
    """Many words at once: of every column of `values` (m, c) the value at 0 of the polynomial through its first
    degree + 1 values, and whether the rest lie on it."""
    first = points[: degree + 1]
    weights = np.array([lagrange(first, at) for at in (0, *points[degree + 1 :])], np.uint64)
    found = matmul(weights, values[: degree + 1])
    return found[0], (found[1:] == values[degree + 1 :]).all(axis=0)


def _disagree(polynomial: Polynomial, points: Sequence[int], values: Sequence[int]) -> int:
    return sum(value(polynomial, x) != y for x, y in zip(points, values, strict=True))


def _interpolated(points: Sequence[int], values: Sequence[int]) -> Polynomial:
    return tuple(_solved([[pow(x, k, PRIME) for k in range(len(points))] for x in points], values) or ())


def _berlekamp_welch(points: Sequence[int], values: Sequence[int], degree: int, errors: int) -> Polynomial | None:
    """Q(x) = y E(x) at every point, with E the monic polynomial that is 0 where y is wrong: P = Q / E."""
    if not errors:
        return None
    size = degree + errors + 1
    rows = [
        [pow(x, k, PRIME) for k in range(size)] + [-y * pow(x, k, PRIME) % PRIME for k in range(errors)]
        for x, y in zip(points, values, strict=True)
    ]
    right = [y * pow(x, errors, PRIME) % PRIME for x, y in zip(points, values, strict=True)]
    solution = _solved(rows, right)
    return None if solution is None else _divided(solution[:size], [*solution[size:], 1])


def _solved(rows: Sequence[Sequence[int]], right: Sequence[int]) -> list[int] | None:
    """A solution of a linear system modulo p, what is free being 0; None if there is none."""
    matrix = [[*row, y] for row, y in zip(rows, right, strict=True)]
    width, pivots, top = len(rows[0]), list[int](), 0
    for column in range(width):
        row = next((r for r in range(top, len(matrix)) if matrix[r][column]), None)
        if row is None:
            continue
        matrix[top], matrix[row] = matrix[row], matrix[top]
        scale = inverse(matrix[top][column])
        matrix[top] = [a * scale % PRIME for a in matrix[top]]
        for r in range(len(matrix)):
            if r != top and (factor := matrix[r][column]):
                matrix[r] = [(a - factor * b) % PRIME for a, b in zip(matrix[r], matrix[top], strict=True)]
        pivots.append(column)
        top += 1
    if any(row[-1] for row in matrix[top:]):
        return None
    solution = [0] * width
    for row, column in enumerate(pivots):
        solution[column] = matrix[row][-1]
    return solution


def _divided(above: Sequence[int], below: Sequence[int]) -> Polynomial | None:
    """The quotient by a monic polynomial; None if something is left over."""
    rest, quotient = list(above), list[int]()
    for _ in range(len(above) - len(below) + 1):
        factor = rest[-1]
        quotient.append(factor)
        for k in range(1, len(below) + 1):
            rest[-k] = (rest[-k] - factor * below[-k]) % PRIME
        rest.pop()
    return None if any(rest) else tuple(reversed(quotient))


def recover(points: Sequence[int], shares: Elements, degree: int, errors: int, key: bytes) -> Recovered | None:
    """The vector behind `shares` (m, k), of which at most `errors` are wrong; None if they do not fit together.

    `key` (32 bytes) must be unknown to whoever made the shares: it draws the combinations in which liars are found.
    """
    random = random_elements(key, 2 * shares.shape[1]).reshape(-1, 2)
    mixed, wrong = matmul(shares, random), set[int]()
    for column in mixed.T:
        values = [int(y) for y in column]
        polynomial = decode(points, values, degree, errors)
        if polynomial is None:
            return None
        wrong |= {x for x, y in zip(points, values, strict=True) if value(polynomial, x) != y}
    if len(wrong) > errors:
        return None
    right = [row for row, x in enumerate(points) if x not in wrong][: degree + 1]
    weights = np.array([lagrange([points[row] for row in right])], np.uint64)
    return Recovered(matmul(weights, shares[right])[0], tuple(sorted(wrong)))
