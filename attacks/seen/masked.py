"""Local updates between masked proxies (sharing `masked-proxy`), as a neighbour sees them.

Peer v mixes what is shown, and trains from where that leads; of what it says before and after, M_v Q(W_v), the
adversary knows which columns are masked. Where it hears all of v's neighbours it knows how the mix moved each column,

    W_v  <-  W_v + sum_j w_vj M_j (Q_j - Q_v),

and where a column is shown before and after, the rest of the difference is the update, and two roundings: with a whole
model's rounding in it, which the update of a few steps does not stand out from. A column that is not shown in both says
nothing of the update. Of columns that are not shown the adversary goes on with the last it knows, moved as the mix.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from veilmesh.attacks.seen.heard import Heard
from veilmesh.attacks.seen.proxies import Proxy, proxies_seen
from veilmesh.attacks.seen.update import Observed
from veilmesh.attacks.view import Public, View
from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import PeerId
from veilmesh.swarm.sharing.columns import Columns

__all__ = ["between_proxies"]

_FULL = 1.0 - 1e-6  # of a row of W: rows sum to one up to rounding


def between_proxies(view: View) -> Iterator[Observed]:
    """Of a gossip: for each victim and round its update in the columns that it showed before and after."""
    from veilmesh.attacks.network import Network  # torch: whoever only looks at a view need not wait for it
    from veilmesh.tasks.models.build import layout

    columns = Columns.in_layout(tuple(layout(Network(view.public, per_pixel=True).module)))
    begun = view.public.initial[: columns.of.size]
    known: dict[PeerId, Vector] = {}  # the best that is known of each model, masked columns included
    before: list[Proxy] = []
    heard, seen = Heard.of(view), proxies_seen(view, columns)
    for round_ in sorted({one.round for one in seen}):
        now = [one for one in seen if one.round == round_]
        samples = {peer: said.samples for peer, said in heard.said(round_).items()}
        for one in now:
            last = next((b for b in before if b.victim == one.victim), None)
            if round_ and last is None:
                continue  # what it began with was not heard
            told = np.ones(columns.of.size, np.bool_) if last is None else columns.spread(last.shown)
            start, coverage = (begun, 1.0) if last is None else _mixed(view.public, columns, known, last, before)
            there = columns.spread(one.shown)
            update = np.where(there & told, one.values - start, np.float32(0))
            known[one.victim] = np.where(there, one.values, start)
            count = samples.get(one.victim, 0)
            yield Observed(one.victim, round_, start, update, there & told, count, False, coverage)
        before = now


def _mixed(
    public: Public, columns: Columns, known: Mapping[PeerId, Vector], last: Proxy, before: Sequence[Proxy]
) -> tuple[Vector, float]:
    """Where the victim trained from (d,), and the share of its row of W that is known."""
    mine, row = known[last.victim], public.weights.get(last.victim, {})
    coverage = row.get(last.victim, 0.0)
    start = mine.copy()
    for one in before:
        if one.victim != last.victim and one.victim in row:
            coverage += row[one.victim]
            start += np.float32(row[one.victim]) * np.where(columns.spread(one.shown), one.values - mine, np.float32(0))
    return start, 1.0 if coverage >= _FULL else coverage
