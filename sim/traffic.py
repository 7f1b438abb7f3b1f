"""What a relay, a broker or a wire-tapper learned from a run, for its record: sizes and times, no body."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from veilmesh.attacks.traffic import Traffic, learn
from veilmesh.attacks.view import observe
from veilmesh.peer.machine import PeerId
from veilmesh.sim.cast import Cast
from veilmesh.sim.observation import transcript
from veilmesh.sim.record import read_json, write_json

__all__ = ["attach_traffic", "passes", "traffic"]


def passes(vantage: str) -> bool:
    """Whether whoever sits at `vantage` sees frames pass that are not its own."""
    return vantage == "wire" or vantage.startswith("relay")


def traffic(folder: Path, cast: Cast, ids: Sequence[PeerId], vantage: str) -> dict[str, Any]:
    """What is learned from `vantage` of a finished run, members by name. Raises BadInput if nothing was kept."""
    place = cast.vantage(vantage, ids)
    view = observe(place, transcript(folder, cast, ids, place), cast.public(ids))
    return {
        "vantage": vantage,
        **_named(learn(view, cast.scenario.envelope.padding), dict(zip(ids, cast.names, strict=True))),
    }


def attach_traffic(folder: Path, cast: Cast) -> dict[str, Any]:
    """The summary of a finished run, with what its adversary learned in passing, if that is where it sits."""
    summary, adversary = read_json(folder / "summary.json"), cast.scenario.adversary
    if adversary and passes(adversary.vantage) and any((folder / "transcript").glob("*.records")):
        ids = [PeerId(m["id"]) for m in read_json(folder / "run.json")["members"]][: cast.size]
        summary["traffic"] = traffic(folder, cast, ids, adversary.vantage)
        write_json(folder / "summary.json", summary)
    return dict(summary)


def _named(learned: Traffic, names: Mapping[PeerId, str]) -> dict[str, Any]:
    found = asdict(learned)
    return found | {
        "participants": [names.get(p, p) for p in learned.participants],
        "links": [[names.get(end, end) for end in link] for link in learned.links],
        "lags": {names.get(p, p): round(lag, 6) for p, lag in learned.lags.items()},
        "slow": [names.get(p, p) for p in learned.slow],
        "codecs": list(learned.codecs),
    }
