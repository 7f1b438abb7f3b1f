"""Masked proxies (`swarm/sharing/`: served-proxy, masked-proxy) as their receivers see them: which columns, and what.

A column that is masked is all zeros, or, between peers, said to be masked; so every receiver knows the mask of what it
got, and takes the mask's scale off again without being told p.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from veilmesh.attacks.seen.heard import Heard, message_in
from veilmesh.attacks.view import View
from veilmesh.core import RemoteError
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import Mask, Vector
from veilmesh.peer.machine import PeerId
from veilmesh.swarm import messages
from veilmesh.swarm.sharing.columns import Columns

__all__ = ["Proxy", "proxies_seen", "taught"]

_HALF = 0.5  # a column's number in a public copy is 1 where it is shown and 0 where not, but for what a codec lost


@dataclass(frozen=True, slots=True, eq=False)
class Proxy:
    """One proxy of `victim`'s model: `values` (d,) without the mask's scale, 0 where masked; `shown` (columns,)."""

    victim: PeerId
    round: int
    to: PeerId  # whom it was said to
    values: Vector
    shown: Mask


def proxies_seen(view: View, columns: Columns) -> list[Proxy]:
    """Every proxy in the view, by round; also those that the adversary's own peers said of their models."""
    readings = {"served-proxy": _of_server, "masked-proxy": _of_peers}
    reading = readings.get(str(view.public.sharing["name"]))
    found = reading(view, columns) if reading else iter(())
    return sorted(found, key=lambda one: one.round)


def taught(view: View, columns: Columns) -> Vector:
    """What the coalition's own clients said (d,), summed over rounds, the mean of them in each: as far as they are like
    the others, it is how far the server's model moved where it never said anything."""
    heard = Heard.of(view)
    total = np.zeros(columns.of.size, np.float64)
    for round_ in heard.rounds():
        own = [said.values for peer, said in heard.said(round_).items() if peer in view.vantage.controls]
        total += np.mean(own, axis=0) if own else 0.0
    return total.astype(np.float32)


def _of_server(view: View, columns: Columns) -> Iterator[Proxy]:
    server = view.public.server
    for record in view.records:
        said = message_in(record.body)
        if server is None or record.sender != server or not isinstance(said, messages.Model):
            continue
        try:
            values = table.decode(said.blob, columns.of.size).values
        except RemoteError:
            continue
        shown = columns.shown(values)
        scale = np.maximum(columns.scale(shown), np.float32(1))  # it is 0 where there is nothing to be scaled
        yield Proxy(server, said.round, record.to, (values / scale).astype(np.float32), shown)


def _of_peers(view: View, columns: Columns) -> Iterator[Proxy]:
    """Of the public copies of a gossip; whoever misses a difference has no copy any more."""
    if view.public.strategy != "gossip":
        return
    heard, size = Heard.of(view), columns.of.size
    copies: dict[PeerId, tuple[int, Vector]] = dict.fromkeys(view.public.peers, (-1, view.public.initial))
    for round_ in heard.rounds():
        whole: Mapping[PeerId, Vector] = heard.whole(heard.copies.get(round_, {}))
        for peer, said in heard.said(round_).items():
            last, copy = copies.get(peer, (-2, view.public.initial))
            if last == round_ - 1:
                copies[peer] = (round_, copy + said.values)
        copies |= {peer: (round_, copy) for peer, copy in whole.items()}
        for peer, (last, copy) in sorted(copies.items()):
            if last == round_:
                shown = copy[size:] > _HALF
                values = np.where(columns.spread(shown), copy[:size], np.float32(0))
                yield Proxy(peer, round_, peer, values, shown)
