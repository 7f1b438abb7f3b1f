"""A star as its hub sees it: it said where training began, and the clients say their updates themselves.

What SCAFFOLD adds to that is taken off again (`followed.py`).
"""

from collections.abc import Iterator

from veilmesh.attacks.seen.followed import ControlVariates
from veilmesh.attacks.seen.heard import Heard
from veilmesh.attacks.seen.update import Observed
from veilmesh.attacks.view import View

__all__ = ["at_hub"]


def at_hub(view: View, across: bool = False) -> Iterator[Observed]:
    """The hub's view. A client's start is the hub's model of that round; error feedback blurs all but the first."""
    public, heard = view.public, Heard.of(view)
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
