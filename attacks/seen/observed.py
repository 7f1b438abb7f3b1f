"""From what an adversary heard to what single peers did: local updates, round by round.

How that is read depends on the protocol, and every reading has a file of its own: `READINGS` says which, by strategy.
In a star, whatever its name, the hub is who sees (`hub.py`). Homomorphic ciphertexts are read first, by whoever has a
key to them (`ciphertexts.py`). A protocol that nothing here knows how to read gives nothing, rather than something
wrong.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import numpy as np

from veilmesh.attacks.seen.chunks import in_parts
from veilmesh.attacks.seen.ciphertexts import in_ciphertexts, opened
from veilmesh.attacks.seen.copies import between_copies
from veilmesh.attacks.seen.drawn_anew import models_drawn_anew
from veilmesh.attacks.seen.elected import around_leaders
from veilmesh.attacks.seen.hub import at_hub
from veilmesh.attacks.seen.masked import between_proxies
from veilmesh.attacks.seen.mass import shares_of_mass
from veilmesh.attacks.seen.ring import on_ring
from veilmesh.attacks.seen.shared import in_shares
from veilmesh.attacks.seen.sums import in_sums
from veilmesh.attacks.seen.update import Observed
from veilmesh.attacks.view import View
from veilmesh.peer.machine import PeerId

__all__ = ["READINGS", "Observed", "Reading", "observe_updates"]

Reading: TypeAlias = Callable[[View, bool], Iterator[Observed]]
"""Of a view, and of whether all rounds are to be put together (`across`), where that says more."""

READINGS: Mapping[str, Reading] = {
    "blind-proxy": in_ciphertexts,
    "brea": in_shares,
    "choco": between_copies,
    "diloco": between_copies,
    "epidemic": models_drawn_anew,
    "gossip": between_copies,
    "group-all-reduce": in_parts,
    "leader": around_leaders,
    "push-sum": shares_of_mass,
    "ring-all-reduce": on_ring,
    "secure-groups": in_sums,
}


def observe_updates(view: View, targets: int | None = None, across: bool = False, first: int = 0) -> list[Observed]:
    """Every update the view gives away, by victim and round; bodies that are no messages are skipped.

    Of a protocol without a reading nothing is returned.
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
    if view.public.sharing["name"] == "masked-proxy":
        return between_proxies(view)
    reading = READINGS.get(view.public.strategy)
    if reading is None:
        return at_hub(view, across) if view.public.server is not None else iter(())
    return reading(view, across)


def _usable(one: Observed) -> bool:
    return bool(np.isfinite(one.update).all() and np.isfinite(one.start).all() and one.update.any())


def _keep(kept: list[Observed], one: Observed, targets: int | None) -> None:
    """Rounds come in order, so what is already kept is earlier; an exact one replaces the latest that is not."""
    if targets is None or len(kept) < targets:
        kept.append(one)
    elif one.exact and (weak := [i for i, other in enumerate(kept) if not other.exact]):
        kept.pop(weak[-1])
        kept.append(one)
