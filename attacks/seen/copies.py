"""Gossip with public copies (`swarm/strategies/gossip.py`), as a neighbour sees it: neighbour differences.

Peer v trains from x_v^t to x_v^{t+1/2} = x_v^t + u_v^t, says the difference to its public copy xhat_v, and then mixes,

    x_v^{t+1} = x_v^{t+1/2} + sum_j W_vj (xhat_j - xhat_v).

All start at the same public parameters, so the first message is the first update. Later the adversary mixes what it
heard with the public weights, which gives x_v^t, and the difference of xhat_v (after) to it is u_v^t: the neighbour
difference (Pasquini et al., arXiv 2205.08443, section 4). Where it hears only a part of v's neighbours, the others are
taken to stand at the mean of the copies it holds; `coverage` is the part of v's row of W that it did hear.

What DiLoCo adds to that is in `followed.py`; an `Observed` never contains it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np

from veilmesh.attacks.seen.followed import OuterSteps
from veilmesh.attacks.seen.heard import Heard, Said
from veilmesh.attacks.seen.non_neighbour import unheard
from veilmesh.attacks.seen.update import Observed
from veilmesh.attacks.view import Public, View
from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import PeerId

__all__ = ["between_copies"]

_FULL = 1.0 - 1e-6  # of a row of W: rows sum to one up to rounding


def between_copies(view: View, across: bool = False) -> Iterator[Observed]:
    """A neighbour's view: neighbour differences between public copies. `across`: of a plain gossip also what all rounds
    say of peers whom nobody in the coalition hears."""
    solved = unheard(view) if across and view.public.strategy == "gossip" else iter(())
    return chain(_differences(view.public, Heard.of(view)), solved)


def _differences(public: Public, heard: Heard) -> Iterator[Observed]:
    copies, outer = _Copies(public), OuterSteps(public)
    for round_ in heard.rounds():
        before = copies.after(round_ - 1)
        said = {p: s for p, s in heard.said(round_).items() if p in before.vectors}
        copies.add(round_, said, heard.whole(heard.copies.get(round_, {})), heard.said_aside(round_))
        for victim, one in said.items():
            begun = outer.start(victim, round_, *before.mixed(public, victim))
            if begun is None:
                continue
            start, coverage = begun
            # the first difference is the update itself, to the bit; later ones still hold what mixing moved
            update = one.values if round_ == 0 else copies.of(victim) - start
            # Other rules than the mean are not followed here: behind them the start is only near.
            known = one.lossless and before.lossless and public.aggregator == "mean"
            exact = coverage >= _FULL and (round_ == 0 or known)
            begun_at = before.mixed(public, victim, whole=True)[0] if _trains_at_mix(public) else start
            yield Observed(victim, round_, begun_at, update, one.said, one.samples, exact, coverage)


def _trains_at_mix(public: Public) -> bool:
    """Whether gradients are taken where mixing would lead if it went the whole way (`swarm/strategies/choco.py`)."""
    return public.strategy == "choco" and public.options.get("at") == "mix"


@dataclass(frozen=True, slots=True)
class _Moment:
    """The public copies that are known for the end of one round."""

    round: int
    vectors: Mapping[PeerId, Vector]
    lossless: bool  # whether public copies are the models themselves
    aside: Mapping[tuple[PeerId, PeerId], Vector]  # of those we control, what some hold in place of that

    def mixed(self, public: Public, peer: PeerId, whole: bool = False) -> tuple[Vector, float]:
        """What `peer` has after mixing, and the share of its row of W that is known. Same order of sums as the peer's
        own, so that a whole row gives the same bits. `whole`: as if the consensus step were 1."""
        if self.round < 0:
            return public.initial, 1.0
        row = public.weights.get(peer, {})
        if whole:
            others = {p: w / public.options.get("step", 1.0) for p, w in row.items() if p != peer}
            row = {**others, peer: 1.0 - sum(others.values())}
        mine = self.vectors[peer]
        mixed = mine.copy()
        missing = coverage = 0.0
        for other in public.peers:
            if other not in self.vectors:
                missing += row.get(other, 0.0)
            elif other == peer or other in row:
                coverage += row.get(other, 0.0)
                theirs = self.aside.get((other, peer), self.vectors[other])
                mixed += np.float32(row.get(other, 0.0)) * (theirs - mine)
        if missing:
            mixed += np.float32(missing) * (self._centre() - mine)
        return mixed, coverage

    def _centre(self) -> Vector:
        total = np.zeros(next(iter(self.vectors.values())).size, np.float64)
        for peer in sorted(self.vectors):
            total += self.vectors[peer]
        return (total / len(self.vectors)).astype(np.float32)


class _Copies:
    """The public copies the adversary can keep up to date: a peer drops out with the first update it does not hear."""

    def __init__(self, public: Public) -> None:
        self._vectors: dict[PeerId, Vector] = dict.fromkeys(public.peers, public.initial)
        self._fresh: dict[PeerId, int] = dict.fromkeys(public.peers, -1)
        self._lossless = True
        self._aside: dict[tuple[PeerId, PeerId], Vector] = {}

    def after(self, round_: int) -> _Moment:
        vectors = {p: v for p, v in self._vectors.items() if self._fresh[p] == round_}
        return _Moment(round_, vectors, self._lossless, dict(self._aside))

    def of(self, peer: PeerId) -> Vector:
        return self._vectors[peer]

    def add(
        self,
        round_: int,
        said: Mapping[PeerId, Said],
        whole: Mapping[PeerId, Vector],
        aside: Mapping[tuple[PeerId, PeerId], Said],
    ) -> None:
        for sender, to in self._aside.keys() | aside.keys():
            one = aside.get((sender, to), said.get(sender))
            if one is not None:
                self._aside[sender, to] = self._aside.get((sender, to), self._vectors[sender]) + one.values
        for peer, one in said.items():
            self._vectors[peer] = self._vectors[peer] + one.values
            self._fresh[peer] = round_
            self._lossless &= one.lossless
        for peer, vector in whole.items():
            if peer in self._vectors:
                self._vectors[peer] = vector
                self._fresh[peer] = round_
