"""From what an adversary heard to what single peers did: every neighbour's local update, round by round.

Gossip with public copies (`swarm/strategies/gossip.py`): peer v trains from x_v^t to x_v^{t+1/2} = x_v^t + u_v^t, says
the difference to its public copy xhat_v, and then mixes,

    x_v^{t+1} = x_v^{t+1/2} + sum_j W_vj (xhat_j - xhat_v).

All start at the same public parameters, so the first message is the first update. Later the adversary mixes what it
heard with the public weights, which gives x_v^t, and the difference of xhat_v (after) to it is u_v^t: the neighbour
difference (Pasquini et al., arXiv 2205.08443, section 4). Where it hears only a part of v's neighbours, the others are
taken to stand at the mean of the copies it holds; `coverage` is the part of v's row of W that it did hear.

Homomorphic ciphertexts are read first, by whoever has a key to them (`ciphertexts.py`).

In the star the hub said where training began, and the clients say their updates themselves. What SCAFFOLD and DiLoCo
add to that is in `followed.py`; an `Observed` never contains it. What sums over groups leave to see is in `sums.py`,
what an all-reduce shows of single models in `chunks.py`, and what gossip gives away of non-neighbours in
`non_neighbour.py`.
"""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import numpy as np

from veilmesh.attacks.seen.chunks import seen_chunks
from veilmesh.attacks.seen.ciphertexts import behind_proxies, opened
from veilmesh.attacks.seen.followed import ControlVariates, OuterSteps
from veilmesh.attacks.seen.non_neighbour import solve_view
from veilmesh.attacks.seen.overlap import solve
from veilmesh.attacks.seen.shared import shared_updates
from veilmesh.attacks.seen.sums import remaining
from veilmesh.attacks.view import Public, View
from veilmesh.core import RemoteError
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import Mask, Vector
from veilmesh.peer.machine import PeerId
from veilmesh.swarm import messages

__all__ = ["Observed", "observe_updates"]

K = TypeVar("K", bound=Hashable)

_FULL = 1.0 - 1e-6  # of a row of W: rows sum to one up to rounding
_PUBLIC_COPIES = ("choco", "diloco", "gossip")  # the meshes whose messages are read here; others mean something else


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """One local update of `victim`, as far as the adversary can tell.

    `start` (d,): the parameters training began from. `update` (d,): estimate of u_v, after guards and codec. `said`
    (d,): which coordinates the message told; None means all. `samples`: examples behind it, by the victim's own word.
    `exact`: nothing but the victim's own guards and codec stands between the truth and this (supposing that nobody was
    late in the round before). `coverage`: share of what determines `start` that was heard, 0 to 1. `among`: where only
    a sum was seen, the peers in it, the victim first; `update` is then their mean, and `samples` is of all of them.
    """

    victim: PeerId
    round: int
    start: Vector
    update: Vector
    said: Mask | None
    samples: int
    exact: bool
    coverage: float
    among: tuple[PeerId, ...] = ()


@dataclass(frozen=True, slots=True)
class _Said:
    """One update as it was said: (d,) values, which of them, and whether they are all of it."""

    samples: int
    values: Vector
    said: Mask | None
    lossless: bool


def observe_updates(view: View, targets: int | None = None, across: bool = False, first: int = 0) -> list[Observed]:
    """Every update the view gives away, by victim and round; bodies that are no messages are skipped.

    Of a mesh that keeps no public copies nothing is returned, for nothing here knows how to read it.
    Of groups that show only sums, each sum is one, or with `across` what all of them together say of single peers; of
    a gossip, `across` adds what all rounds say of peers whom nobody in the coalition hears.
    Peers that the adversary controls are no victims. With `targets`, at most so many for each victim: the earliest
    exact ones, and the earliest of the others where there are too few of them; none before round `first`.
    """
    found = _found(opened(view), across)
    kept: dict[PeerId, list[Observed]] = {}
    for one in found:
        if one.round >= first and one.victim not in view.vantage.controls and _usable(one):
            _keep(kept.setdefault(one.victim, []), one, targets)
    return [one for victim in sorted(kept) for one in sorted(kept[victim], key=lambda o: o.round)]


def _found(view: View, across: bool) -> Iterator[Observed]:
    match view.public.strategy:
        case "secure-groups":
            return _in_sums(view, across)
        case "blind-proxy":
            return _behind_proxies(view)
        case "brea":
            return _in_shares(view)
        case "group-all-reduce":
            return _in_parts(view)
        case "gossip" if across:
            return chain(_read(view.public, _Heard.of(view)), _beyond(view))
    return _read(view.public, _Heard.of(view))


def _in_parts(view: View) -> Iterator[Observed]:
    """Of an all-reduce: the coordinates that members of a group have to average, and no others."""
    samples = view.public.batch * view.public.local_steps
    for one in seen_chunks(view):
        known = float(one.known)
        yield Observed(one.victim, one.round, one.start, one.update, one.said, samples, one.exact, known)


def _beyond(view: View) -> Iterator[Observed]:
    """Of a gossip: the first updates of peers that nobody in the coalition hears, solved for from all rounds."""
    samples = view.public.batch * view.public.local_steps
    for one in solve_view(view).solved:
        update = one.update.astype(np.float32)
        yield Observed(one.peer, 0, view.public.initial, update, None, samples, False, one.confidence)


def _behind_proxies(view: View) -> Iterator[Observed]:
    """What keys of controlled peers open: sums, and single models where a proxy is controlled too."""
    for one in behind_proxies(view):
        yield _mean_of(one.members, view.public, one.round, one.start, one.update, exact=True)


def _mean_of(
    members: tuple[PeerId, ...], public: Public, round_: int, start: Vector, mean: Vector, *, exact: bool
) -> Observed:
    """The mean (d,) of what `members` said, whom nobody can tell apart, as if they were one peer."""
    count = public.batch * public.local_steps * len(members)
    among = members if len(members) > 1 else ()
    return Observed(members[0], round_, start, mean, None, count, exact, 1.0, among)


def _in_shares(view: View) -> Iterator[Observed]:
    """The sums of the chosen, and single updates where the coalition is large enough to put them together."""
    samples = view.public.batch * view.public.local_steps
    for one in shared_updates(view):
        members = tuple(p for p in one.members if p not in view.vantage.controls) or one.members
        alone = len(one.members) == 1
        among = () if alone else members
        count = samples * len(one.members)
        yield Observed(members[0], one.round, one.start, one.mean, None, count, alone, 1.0, among)


def _read(public: Public, heard: "_Heard") -> Iterator[Observed]:
    if public.server is not None:
        return _in_star(public, heard)
    return _in_gossip(public, heard) if public.strategy in _PUBLIC_COPIES else iter(())


def _in_sums(view: View, across: bool) -> Iterator[Observed]:
    """A group's view. Whom a coalition leaves alone in a sum is seen as if there were none."""
    seen = list(remaining(view))
    samples = view.public.batch * view.public.local_steps
    if not across:
        for one in (s for s in seen if s.members):
            update = (one.total / len(one.members)).astype(np.float32)
            yield _mean_of(one.members, view.public, one.round, one.start, update, exact=one.alike)
        return
    for found in solve([one.members for one in seen], [one.total for one in seen]):
        first = next(one for one in seen if found.peer in one.members)
        yield Observed(found.peer, first.round, first.start, found.update, None, samples, False, 1.0)


def _usable(one: Observed) -> bool:
    return bool(np.isfinite(one.update).all() and np.isfinite(one.start).all() and one.update.any())


def _keep(kept: list[Observed], one: Observed, targets: int | None) -> None:
    """Rounds come in order, so what is already kept is earlier; an exact one replaces the latest that is not."""
    if targets is None or len(kept) < targets:
        kept.append(one)
    elif one.exact and (weak := [i for i, other in enumerate(kept) if not other.exact]):
        kept.pop(weak[-1])
        kept.append(one)


@dataclass(frozen=True, slots=True)
class _Heard:
    """Bodies by round and sender, the first of each; not decoded yet, so that a long run fits into memory."""

    dimension: int
    updates: Mapping[int, Mapping[PeerId, messages.Update]]
    models: Mapping[int, Mapping[PeerId, bytes]]  # a hub's global model at the beginning of a round
    copies: Mapping[int, Mapping[PeerId, bytes]]  # a gossip peer's public copy after its update of a round
    changes: Mapping[int, Mapping[PeerId, messages.ControlledUpdate]]  # SCAFFOLD's, which stand in `updates` too
    controls: Mapping[int, messages.ControlledModel]  # SCAFFOLD's models, which stand in `models` too
    told: Mapping[int, Mapping[PeerId, bytes]]  # models that the hub said to some other than to the first
    aside: Mapping[int, Mapping[tuple[PeerId, PeerId], messages.Update]]  # such updates of our own, by both ends

    @classmethod
    def of(cls, view: View) -> "_Heard":
        updates: dict[int, dict[PeerId, messages.Update]] = {}
        models: dict[int, dict[PeerId, bytes]] = {}
        copies: dict[int, dict[PeerId, bytes]] = {}
        changes: dict[int, dict[PeerId, messages.ControlledUpdate]] = {}
        controls: dict[int, messages.ControlledModel] = {}
        told: dict[int, dict[PeerId, bytes]] = {}
        aside: dict[int, dict[tuple[PeerId, PeerId], messages.Update]] = {}
        for record in view.records:
            match _message(record.body):
                case messages.Update() as update:
                    first = updates.setdefault(update.round, {}).setdefault(record.sender, update)
                    if record.sender in view.vantage.controls and update.blob != first.blob:
                        aside.setdefault(update.round, {}).setdefault((record.sender, record.to), update)
                case messages.ControlledUpdate(round=round_, samples=samples, blob=blob) as change:
                    plain = messages.Update(round_, samples, blob)
                    updates.setdefault(round_, {}).setdefault(record.sender, plain)
                    changes.setdefault(round_, {}).setdefault(record.sender, change)
                case messages.ControlledModel(round=round_, blob=blob) as model if record.sender == view.public.server:
                    if models.setdefault(round_, {}).setdefault(record.sender, blob) != blob:
                        told.setdefault(round_, {}).setdefault(record.to, blob)
                    controls.setdefault(round_, model)
                case messages.Model(round=round_, blob=blob):
                    if models.setdefault(round_, {}).setdefault(record.sender, blob) != blob:
                        told.setdefault(round_, {}).setdefault(record.to, blob)
                case messages.Copy(round=round_, blob=blob):
                    copies.setdefault(round_, {}).setdefault(record.sender, blob)
        return cls(view.public.initial.size, updates, models, copies, changes, controls, told, aside)

    def rounds(self) -> list[int]:
        return sorted(self.updates.keys() | self.copies.keys())

    def said(self, round_: int) -> dict[PeerId, _Said]:
        """The updates of a round that can be decoded."""
        return self._read(self.updates.get(round_, {}))

    def said_aside(self, round_: int) -> dict[tuple[PeerId, PeerId], _Said]:
        """What those we control said to some and not to all."""
        return self._read(self.aside.get(round_, {}))

    def _read(self, updates: Mapping[K, messages.Update]) -> dict[K, _Said]:
        found: dict[K, _Said] = {}
        for sender, update in updates.items():
            try:
                decoded = table.decode(update.blob, self.dimension)
            except RemoteError:
                continue
            lossless = table.WIRE_IDS[update.blob[0]].lossless
            found[sender] = _Said(update.samples, decoded.values, decoded.said, lossless)
        return found

    def whole(self, blobs: Mapping[PeerId, bytes]) -> dict[PeerId, Vector]:
        """The vectors among losslessly encoded ones that can be decoded."""
        found: dict[PeerId, Vector] = {}
        for sender, blob in blobs.items():
            try:
                found[sender] = table.decode_lossless(blob, self.dimension)
            except RemoteError:
                continue
        return found


def _message(body: bytes | None) -> messages.Message | None:
    if body is None:
        return None
    try:
        return messages.decode(body)
    except RemoteError:
        return None


def _in_star(public: Public, heard: _Heard) -> Iterator[Observed]:
    """The hub's view. A client's start is the hub's model of that round; error feedback blurs all but the first."""
    start, known = public.initial, 0
    variates = ControlVariates(public)
    for round_ in heard.rounds():
        for at in (r for r in sorted(heard.models) if known < r <= round_):
            models = heard.whole({p: b for p, b in heard.models[at].items() if p == public.server})
            start, known = next(iter(models.values()), start), at if models else known
            variates.model(heard.controls.get(at))
        told = heard.whole(heard.told.get(round_, {}))
        for victim, said in heard.said(round_).items():
            if victim == public.server:
                continue
            exact = known == round_ and (round_ == 0 or said.lossless)
            coverage = float(known == round_)
            update = variates.freed(victim, said.values)
            variates.change(victim, heard.changes.get(round_, {}).get(victim))
            begun = told.get(victim, start)
            yield Observed(victim, round_, begun, update, said.said, said.samples, exact, coverage)


def _in_gossip(public: Public, heard: _Heard) -> Iterator[Observed]:
    """A neighbour's view: neighbour differences between public copies."""
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
        said: Mapping[PeerId, _Said],
        whole: Mapping[PeerId, Vector],
        aside: Mapping[tuple[PeerId, PeerId], _Said],
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
