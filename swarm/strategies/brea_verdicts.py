"""What follows from what members of a BREA round have said. Pure, without state.

Members are places in the roster; the member at place i holds shares at the point i + 1.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from veilmesh.crypto.field import PRIME, Elements, matmul, multiply, reduced, subtract, unpack
from veilmesh.crypto.polynomial_shares import Polynomial, decode, extrapolated, radius, value
from veilmesh.swarm.aggregators.krum import krum_ranking
from veilmesh.swarm.strategies.brea_steps import CHECKS, Distances, LowDegree, Opening, commitment, derived, pairs
from veilmesh.swarm.strategies.brea_terms import Terms

__all__ = [
    "Fault", "Matrix", "Tested", "agreed", "checked", "choose", "distance_matrix", "distance_shares", "judge",
    "most_said", "tested",
]  # fmt: skip

Matrix = NDArray[np.float64]


class Fault(NamedTuple):
    """Who did something that no honest member does, and to whom (-1: to all); `kind` is for the record."""

    kind: str
    who: int
    whom: int


class Tested(NamedTuple):
    """The low-degree test of one dealer's sharing: the combinations' polynomials, who holds shares on them, who not."""

    polynomials: tuple[Polynomial, ...]
    fit: frozenset[int]
    misfit: frozenset[int]


def agreed(said: Sequence[Sequence[bytes]], quorum: int, members: int) -> tuple[bytes, ...]:
    """For every place, what a quorum says of it; empty where there is no such thing."""
    votes = [Counter(one[place] for one in said if one[place]) for place in range(members)]
    best = [vote.most_common(1)[0] if vote else (b"", 0) for vote in votes]
    return tuple(word if count >= quorum else b"" for word, count in best)


def checked(shares: Mapping[int, Elements], random: Elements) -> dict[int, tuple[int, ...]]:
    """The combinations of shares (k + CHECKS,), by dealer, with `random` (CHECKS, k); to each a blind of its own is
    added, which is among the last coordinates of what was dealt, so that the test says nothing of the update."""
    if not shares:
        return {}
    rows, length = np.stack(list(shares.values())), random.shape[1]
    mixed = reduced(matmul(rows[:, :length], np.ascontiguousarray(random.T)) + rows[:, length:])
    return {dealer: tuple(map(int, row)) for dealer, row in zip(shares, mixed, strict=True)}


def tested(dealer: int, tests: Mapping[int, LowDegree], terms: Terms) -> Tested | Fault | None:
    """How the shares of a dealer fit together, by what their holders say in `tests`: a fault if they are no sharing of
    degree T, None if too few speak of them."""
    said = {holder: test.values[dealer] for holder, test in sorted(tests.items()) if test.values[dealer]}
    points, errors = [holder + 1 for holder in said], radius(len(said), terms.colluding, terms.liars)
    if errors < 0:
        return None
    polynomials = [decode(points, [row[c] for row in said.values()], terms.colluding, errors) for c in range(CHECKS)]
    found = tuple(p for p in polynomials if p is not None)
    if len(found) < CHECKS:
        return Fault("no-sharing", dealer, -1)
    fit = {holder for holder, row in said.items() if _on(found, holder, row)}
    if len(said) - len(fit) > errors:
        return Fault("no-sharing", dealer, -1)
    return Tested(found, frozenset(fit), frozenset(said) - fit)


def _on(polynomials: Sequence[Polynomial], holder: int, row: Sequence[int]) -> bool:
    return all(value(p, holder + 1) == v for p, v in zip(polynomials, row, strict=True))


def judge(
    dealer: int, holder: int, opening: Opening | None, promised: bytes, test: Tested, random: Elements, label: bytes
) -> Fault:
    """Whose fault it is that a share does not fit: the dealer's if what it committed itself to does not, else the
    holder's, who said something else or cannot show it."""
    if opening is None or commitment(label, dealer, holder, opening.salt, opening.share) != promised:
        return Fault("no-proof", holder, dealer)
    share = unpack(opening.share, random.shape[1] + CHECKS)
    if _on(test.polynomials, holder, checked({dealer: share}, random)[dealer]):
        return Fault("wrong-test", holder, dealer)
    return Fault("wrong-share", dealer, holder)


def distance_shares(held: Mapping[int, Elements], members: int) -> tuple[int, ...]:
    """This holder's shares of ||x_i - x_j||^2 for all `pairs`, of degree 2 T, from its shares (k,) by dealer: from one
    product of the matrix of them with itself. -1 where it lacks a share."""
    places = sorted(held)
    if not places:
        return (-1,) * (members * (members - 1) // 2)
    rows = np.stack([held[place] for place in places])
    products = matmul(rows, np.ascontiguousarray(rows.T))
    squares = np.diag(products)
    found = subtract(squares[:, None] + squares[None, :], multiply(products, np.array(2, np.uint64)))
    at = {place: row for row, place in enumerate(places)}
    return tuple(int(found[at[i], at[j]]) if i in at and j in at else -1 for i, j in pairs(members))


def distance_matrix(
    dealers: Sequence[int],
    tests: Mapping[int, Tested],
    said: Mapping[int, Distances],
    liars: set[int],
    terms: Terms,
) -> Matrix:
    """The squared distances between `dealers`, (n, n), as they are; p where they cannot be decoded.

    Who is found to have said a wrong one is added to `liars`, and not listened to any more.
    """
    column, size = {pair: number for number, pair in enumerate(pairs(terms.members))}, len(dealers)
    easy = _undisputed(said, terms)
    found = np.zeros((size, size))
    for a, b in pairs(size):
        i, j = dealers[a], dealers[b]
        number, holders = column[i, j], tests[i].fit & tests[j].fit & said.keys()
        if easy is not None and len(holders) == len(said) and easy[number] >= 0:
            found[a, b] = found[b, a] = easy[number]
        else:
            values = {holder: said[holder].values[number] for holder in holders}
            found[a, b] = found[b, a] = _distance(values, liars, terms)
    return found


def _undisputed(said: Mapping[int, Distances], terms: Terms) -> NDArray[np.int64] | None:
    """The distances, by number of the pair, of which everybody has said a share, and all fit together; -1 elsewhere."""
    holders, degree = sorted(said), 2 * terms.colluding
    if radius(len(holders), degree, terms.liars) < 0:
        return None
    words = np.array([said[holder].values for holder in holders], np.int64)
    values, fits = extrapolated([holder + 1 for holder in holders], np.maximum(words, 0).astype(np.uint64), degree)
    return np.where(fits & (words >= 0).all(axis=0), values.astype(np.int64), -1)


def _distance(values: Mapping[int, int], liars: set[int], terms: Terms) -> float:
    heard = {holder: values[holder] for holder in sorted(values) if holder not in liars and values[holder] >= 0}
    errors = radius(len(heard), 2 * terms.colluding, max(0, terms.liars - len(liars)))
    polynomial = decode([holder + 1 for holder in heard], list(heard.values()), 2 * terms.colluding, errors)
    if polynomial is None:
        return float(PRIME)
    liars |= {holder for holder, v in heard.items() if value(polynomial, holder + 1) != v}
    return float(polynomial[0])


def choose(
    dealers: Sequence[int], squared: Matrix, liars: Collection[int], terms: Terms, coin: bytes
) -> tuple[int, ...]:
    """Multi-Krum on the distances alone; of equals, those that the coin falls on. None where too few are left."""
    expected = max(0, terms.liars - len(liars))
    count = terms.chosen_of(len(dealers), expected)
    ties = np.array([int.from_bytes(derived(coin, "tie", i, size=6), "big") for i in dealers], np.float64)
    best = krum_ranking(squared, ties, expected)[:count] if count else ()
    return tuple(sorted(dealers[i] for i in best))


def most_said(said: Iterable[tuple[int, ...]], quorum: int) -> tuple[int, ...]:
    """What a quorum says; empty if there is no such thing."""
    best = Counter(said).most_common(1)
    return best[0][0] if best and best[0][1] >= quorum else ()
