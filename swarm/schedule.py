"""Who speaks to whom in a round, drawn alike by everybody from a public seed: directed graphs that change.

Peers are places in the roster; `rows` are the mesh's (keys: a peer and its neighbours), so a schedule never asks for a
link that the mesh does not have.
"""

from collections.abc import Mapping
from functools import lru_cache

from veilmesh.core import seed_number

__all__ = [
    "Rows", "cohort_groups", "cohorts", "exponential_hops", "exponential_out", "random_groups", "random_out",
    "random_ring",
]  # fmt: skip

Rows = Mapping[int, Mapping[int, float]]


def exponential_hops(rows: Rows) -> tuple[int, ...]:
    """The distances 1, 2, 4, ... below n at which every peer has a neighbour: those of the exponential graph, as far as
    the mesh has them (a complete mesh all, a ring the first)."""
    peers = len(rows)
    hops = (1 << power for power in range(max(peers - 1, 0).bit_length()))
    return tuple(hop for hop in hops if all((i + hop) % peers in rows[i] for i in rows))


def exponential_out(hops: tuple[int, ...], round_: int, peer: int, peers: int) -> tuple[int, ...]:
    """The one-peer exponential graph: in round k everybody speaks to the one hops[k mod len] further on (Assran et al.
    2019, appendix A). Over all of 2^m peers, m rounds of halving average exactly."""
    return ((peer + hops[round_ % len(hops)]) % peers,) if hops else ()


def random_out(rows: Rows, seed: int, round_: int, peer: int, count: int) -> tuple[int, ...]:
    """`count` neighbours of `peer` (or all, if it has fewer), uniformly and without replacement, in roster order."""
    near = [j for j in sorted(rows[peer]) if j != peer]
    for place in range(min(count, len(near))):  # Fisher and Yates, as far as needed
        other = place + seed_number(seed, "out", round_, peer, place) % (len(near) - place)
        near[place], near[other] = near[other], near[place]
    return tuple(sorted(near[:count]))


@lru_cache(maxsize=64)
def random_groups(seed: int, round_: int, peers: int, size: int) -> tuple[tuple[int, ...], ...]:
    """Everybody's group in a round, by place: its members in roster order. A uniformly random division of the roster
    into groups of about `size`, as even as can be; never a group of one where there are two peers."""
    shuffled = sorted(range(peers), key=lambda place: (seed_number(seed, "group", round_, place), place))
    count = max(1, min(-(-peers // size), peers // 2))
    group_of: dict[int, tuple[int, ...]] = {}
    for number in range(count):
        members = tuple(sorted(shuffled[peers * number // count : peers * (number + 1) // count]))
        group_of |= dict.fromkeys(members, members)
    return tuple(group_of[place] for place in range(peers))


@lru_cache(maxsize=64)
def random_ring(seed: int, round_: int, peers: int) -> tuple[int, ...]:
    """Everybody's places in the order in which a ring goes round in this round, uniformly random."""
    return tuple(sorted(range(peers), key=lambda place: (seed_number(seed, "ring", round_, place), place)))


@lru_cache(maxsize=16)
def cohorts(seed: int, peers: int, size: int) -> tuple[tuple[int, ...], ...]:
    """One uniformly random division of the roster for a whole run, by place: into cohorts of `size` or more (all in
    one, where there are fewer), as even as can be; members in roster order."""
    shuffled = sorted(range(peers), key=lambda place: (seed_number(seed, "cohort", place), place))
    count = max(1, peers // size)
    return tuple(tuple(sorted(shuffled[peers * n // count : peers * (n + 1) // count])) for n in range(count))


@lru_cache(maxsize=64)
def cohort_groups(
    seed: int, round_: int, divided: tuple[tuple[int, ...], ...], size: int
) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """The cohorts of everybody's group in a round, by place: `random_groups` of whole cohorts, about `size` of them in
    a group."""
    groups = random_groups(seed, round_, len(divided), size)
    of = {place: groups[number] for number, cohort in enumerate(divided) for place in cohort}
    return tuple(tuple(divided[number] for number in of[place]) for place in sorted(of))
