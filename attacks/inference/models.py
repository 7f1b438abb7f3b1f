"""Which models the adversary holds: each victim's own, that without its neighbours' part, and everybody's.

`local`: what v trained to in a round, x_v^{t+1/2}. In gossip that is its public copy after its update, in the star the
hub's model with the client's update. `marginalised`: of that, what mixing put into it is taken away again, as far as
the neighbours' models of the round before were heard (Pasquini et al., arXiv 2205.08443, functional marginalisation;
`marginal.py`). `consensus`: the hub's model, or in a mesh the mean of all models of a round that the adversary heard or
said.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from veilmesh.attacks.inference.base import Kind
from veilmesh.attacks.seen.marginal import marginalised
from veilmesh.attacks.seen.observed import Observed, observe_updates
from veilmesh.attacks.view import Vantage, View
from veilmesh.core import RemoteError
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import PeerId
from veilmesh.swarm import messages

__all__ = ["KINDS", "SeenModel", "models_seen"]

KINDS: tuple[Kind, ...] = ("local", "marginalised", "consensus")
_WITHOUT_ROW = ("epidemic", "leader", "push-sum")  # there W only says who may speak to whom; nobody mixes by it
_LEAST = 1e-6  # of a model: a smaller share of it cannot be told from rounding


@dataclass(frozen=True, slots=True, eq=False)
class SeenModel:
    """One model in whose training `victim` had a part: `vector` (d,) as it was at the end of `round`'s training.

    `share`: of a marginalised model, how much of W's row is left in it, above 0 to 1: what it was divided by.
    """

    victim: PeerId
    model: Kind
    round: int
    vector: Vector
    share: float = 1.0


def models_seen(view: View, kinds: Iterable[Kind] = KINDS, rounds: int = 1) -> list[SeenModel]:
    """The models of these kinds that the adversary holds: of each victim and kind those of the latest `rounds` rounds
    it was seen in. By kind, victim and round.

    A sum over peers that nobody can tell apart is a consensus of those.
    """
    wanted = tuple(kinds)
    kept: dict[tuple[int, PeerId], dict[int, SeenModel]] = {}
    for one in _all(view):
        if one.model in wanted and np.isfinite(one.vector).all():
            kept.setdefault((KINDS.index(one.model), one.victim), {})[one.round] = one
    return [kept[key][at] for key in sorted(kept) for at in sorted(kept[key])[-rounds:]]


def _all(view: View) -> Iterator[SeenModel]:
    heard = observe_updates(view)
    for one in heard:
        for victim in one.among or (one.victim,):
            yield SeenModel(victim, "consensus" if one.among else "local", one.round, _after(one))
    models = _by_round([*heard, *_own(view)])
    yield from _marginalised(view, models)
    yield from _of_hub(view) if view.public.server is not None else _means(view, models)


def _own(view: View) -> list[Observed]:
    """The updates of the peers that the adversary controls: those of a mesh are on record where they were said."""
    anybody = observe_updates(replace(view, vantage=Vantage(frozenset())))
    return [one for one in anybody if one.victim in view.vantage.controls]


def _after(one: Observed) -> Vector:
    after: Vector = one.start + one.update
    return after


def _by_round(observed: Sequence[Observed]) -> dict[int, dict[PeerId, Vector]]:
    models: dict[int, dict[PeerId, Vector]] = {}
    for one in observed:
        if not one.among:
            models.setdefault(one.round, {})[one.victim] = _after(one)
    return models


def _marginalised(view: View, models: Mapping[int, Mapping[PeerId, Vector]]) -> Iterator[SeenModel]:
    """x_v^{t+1/2} = sum_j W_vj x_j^{t-1/2} + u_v^t, without the terms of every j that was heard but v itself."""
    if view.public.strategy in _WITHOUT_ROW:
        return
    for round_, now in models.items():
        before = models.get(round_ - 1, {})
        for victim, mixed in now.items():
            row = view.public.weights.get(victim, {})
            known = {peer: vector for peer, vector in before.items() if peer in row and peer != victim}
            left = 1 - sum(row[peer] for peer in known)
            if victim not in view.vantage.controls and known and left > _LEAST:
                vector, taken = marginalised(mixed, known, row)
                yield SeenModel(victim, "marginalised", round_, vector, 1 - taken)


def _means(view: View, models: Mapping[int, Mapping[PeerId, Vector]]) -> Iterator[SeenModel]:
    """A mesh's consensus is nowhere to be seen; the mean of what was heard is the nearest thing."""
    for round_, vectors in models.items():
        stacked = np.stack([vectors[peer] for peer in sorted(vectors)])
        mean: Vector = stacked.mean(axis=0, dtype=np.float64).astype(np.float32)
        if len(vectors) > 1:
            for victim in sorted(vectors.keys() - view.vantage.controls):
                yield SeenModel(victim, "consensus", round_, mean)


def _of_hub(view: View) -> Iterator[SeenModel]:
    """What the hub said everybody is to begin a round with: what training came to in the round before."""
    clients = sorted({*view.public.peers} - view.vantage.controls - {view.public.server})
    for round_, vector in _said_by_hub(view):
        for victim in clients if round_ > 0 else ():
            yield SeenModel(victim, "consensus", round_ - 1, vector)


def _said_by_hub(view: View) -> Iterator[tuple[int, Vector]]:
    seen: set[int] = set()
    for record in view.records:
        if record.body is None or record.sender != view.public.server:
            continue
        try:
            match messages.decode(record.body):
                case (messages.Model() | messages.ControlledModel()) as said if said.round not in seen:
                    yield said.round, table.decode_lossless(said.blob, view.public.initial.size)
                    seen.add(said.round)
        except RemoteError:
            continue
