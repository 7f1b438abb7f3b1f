"""What a relay, a broker or a wire-tapper learned from a run, for its record: sizes and times, no body; and how much of
it was right."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from veilmesh.attacks.traffic import Traffic, learn
from veilmesh.attacks.traffic_cover import suspect
from veilmesh.attacks.traffic_presence import Overseen, oversee
from veilmesh.attacks.view import Vantage, View
from veilmesh.crypto.codecs.base import CODECS
from veilmesh.peer.machine import PeerId
from veilmesh.sim.cast import Cast
from veilmesh.sim.observation import observation, transcript
from veilmesh.sim.record import read_json, write_json
from veilmesh.sim.traffic_scores import scores, truth

__all__ = ["attach_traffic", "passes", "traffic"]


def passes(vantage: str) -> bool:
    """Whether whoever sits at `vantage` sees frames pass that are not its own."""
    return any(place in ("wire", "broker") or place.startswith("relay") for place in vantage.split("+"))


def traffic(folder: Path, cast: Cast, ids: Sequence[PeerId], vantage: str) -> dict[str, Any]:
    """What is learned from `vantage` of a finished run, members by name. Raises BadInput if nothing was kept."""
    view = observation(folder, cast, ids, vantage)
    names, learned = dict(zip(ids, cast.names, strict=True)), learn(view, cast.scenario.envelope.padding)
    overseen = {"presence": _overseen(oversee(view), names)} if view.vantage.broker else {}
    right = {"right": _right(folder, cast, ids, view, learned)} if cast.scenario.keeps_passing else {}
    return {"vantage": vantage, **_named(learned, names), **overseen, **right}


def _right(folder: Path, cast: Cast, ids: Sequence[PeerId], view: View, learned: Traffic) -> dict[str, Any]:
    """How much of what is suspected is so."""
    slow = [ids[cast.names.index(name)] for name, factor in cast.scenario.links.slow.items() if factor > 1]
    near = [(ids[a], ids[b]) for edge in cast.edges for a, b in (edge, edge[::-1])]
    everybody = Vantage(frozenset(ids))
    happened = truth(
        transcript(folder, cast, ids, everybody), folder / "events.jsonl", ids, near, slow,
        covered=cast.scenario.envelope.cover is not None,
    )  # fmt: skip
    named = learned.codecs
    codec = {"got": (cast.scenario.codec.name in named) / max(1, len(named)), "floor": 1 / len(CODECS.names())}
    return {**scores(suspect(view), happened), "codec": codec}


def attach_traffic(folder: Path, cast: Cast) -> dict[str, Any]:
    """The summary of a finished run, with what its adversary learned in passing, if that is where it sits."""
    summary, adversary = read_json(folder / "summary.json"), cast.scenario.adversary
    if adversary and passes(adversary.vantage) and any((folder / "transcript").rglob("*.records")):
        ids = [PeerId(m["id"]) for m in read_json(folder / "run.json")["members"]][: cast.size]
        summary["traffic"] = traffic(folder, cast, ids, adversary.vantage)
        write_json(folder / "summary.json", summary)
    return dict(summary)


def _overseen(seen: Overseen, names: Mapping[PeerId, str]) -> dict[str, Any]:
    who = [asdict(one) | {"peer": names.get(one.peer, one.peer), "failed": list(one.failed)} for one in seen.attendance]
    return {"attendance": who, "counts": dict(seen.counts), "sizes": dict(seen.sizes)}


def _named(learned: Traffic, names: Mapping[PeerId, str]) -> dict[str, Any]:
    found = asdict(learned)
    return found | {
        "participants": [names.get(p, p) for p in learned.participants],
        "links": [[names.get(end, end) for end in link] for link in learned.links],
        "lags": {names.get(p, p): round(lag, 6) for p, lag in learned.lags.items()},
        "slow": [names.get(p, p) for p in learned.slow],
        "codecs": list(learned.codecs),
    }
