"""What goes wrong: lost, repeated and disordered messages change no bit, and a peer that dies costs no batch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from meshes import WAIT, up
from split_runs import BASE, DEEP, in_hand, played, prepared, unsplit

from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import Effect, Note, PeerId, Stop
from veilmesh.peer.outcome import Outcome
from veilmesh.sim.cast import Cast
from veilmesh.sim.faults import Fault
from veilmesh.sim.network import Player, VirtualNetwork, _Heard
from veilmesh.sim.scenario import Scenario, override

torch.set_num_threads(1)

CHAIN: dict[str, Any] = {"strategy": {"name": "chain", "standbys": 1}, "model": DEEP}
SHORT: dict[str, Any] = {"rounds": 2, "evaluate_every": 1, "timing__round": 2.0}


class Lossy(VirtualNetwork):
    """Virtual time over links that lose, repeat and disorder. Who has stopped is missed, as by a real membership."""

    rng = np.random.default_rng(0)
    loss = 0.0
    twice = 0.0

    def _carry(self, peer: PeerId, player: Player, to: PeerId, body: bytes, now: float) -> None:
        for _ in range((self.rng.random() >= self.loss) * (1 + (self.rng.random() < self.twice))):
            usual, self._latency = self._latency, self._latency * self.rng.uniform(0.2, 3)
            super()._carry(peer, player, to, body, now)
            self._latency = usual

    def _perform(self, peer: PeerId, player: Player, effect: Effect, now: float) -> None:
        super()._perform(peer, player, effect, now)
        if isinstance(effect, Stop):
            self._tell(player, _Heard(peer, False), now + self._grace)


def lossy(seed: int, loss: float = 0.0, twice: float = 0.0) -> type[Lossy]:
    return type("Seeded", (Lossy,), {"rng": np.random.default_rng(seed), "loss": loss, "twice": twice})


def outcomes(network: VirtualNetwork) -> dict[str, Outcome | None]:
    found = {str(peer): player.result for peer, player in network._players.items()}
    return {name: result if isinstance(result, Outcome) else None for name, result in found.items()}


def ends(network: VirtualNetwork) -> dict[str, str]:
    return {name: outcome.reason if outcome else "killed" for name, outcome in outcomes(network).items()}


def parameters(network: VirtualNetwork, players: list[str]) -> Vector:
    found = outcomes(network)
    return np.concatenate([outcome.parameters for name in players if (outcome := found[name])])


# --- messages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": "vanilla"},
        {"strategy": "u-shaped", "split__micro_batches": 2},
        {**CHAIN, "split__micro_batches": 3},
        {"strategy": "round-robin", "peers": 3},
    ],
)
def test_lost_repeated_and_disordered_messages_change_no_bit(changes: dict[str, Any], seed: int) -> None:
    cast = prepared(**{**changes, **SHORT})
    plain = in_hand(cast)
    plain.run(100.0)
    for loss, twice in ((0.0, 0.3), (0.05, 0.1)):
        # Patience is four attempts; a whole chain of lossy links needs some luck for each.
        network = in_hand(cast, lossy(seed, loss, twice), silence=5.0)
        network.run(1000.0)
        # Whose goodbye is lost is missed, in the end.
        assert {how for name, how in ends(network).items() if name.startswith("peer")} == {"finished"}
        assert set(ends(network).values()) <= {"finished", "its data owner is gone"}
        whole = [name for name in cast.names if not name.startswith("standby")]
        assert parameters(network, whole).tobytes() == parameters(plain, whole).tobytes()


@pytest.mark.parametrize("version", [1, 2])
def test_repeated_and_disordered_messages_change_no_bit_of_splitfed(version: int) -> None:
    cast = prepared(strategy={"name": "splitfed", "version": version}, peers=3, **SHORT)
    models = []
    for network in (in_hand(cast), in_hand(cast, lossy(1, twice=0.3), silence=5.0)):
        network.run(1000.0)
        assert set(ends(network).values()) == {"finished"}
        models.append(parameters(network, list(cast.names)).tobytes())
    assert models[0] == models[1]


# --- peers that die, and somebody stands by ------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0.03, 0.31, 0.4, 0.45, 0.72, 1.03, 1.21])
@pytest.mark.parametrize("who", ["middle:1", "middle:2", "tail"])
@pytest.mark.parametrize("micro_batches", [1, 4])
def test_a_peer_that_dies_costs_no_batch_and_no_bit(tmp_path: Path, who: str, at: float, micro_batches: int) -> None:
    changes = {**CHAIN, "split__micro_batches": micro_batches, "timing__grace": 0.05}
    plain = played(tmp_path / "plain", **changes)
    run = played(tmp_path / "killed", **changes, faults=[{"at": at, "kill": who}])
    assert run.ended == {**plain.ended, who: "killed"}
    [model] = run.models
    assert model.tobytes() == plain.models[0].tobytes()
    assert [n["loss"] for n in run.noted("trained")] == [n["loss"] for n in plain.noted("trained")]
    assert run.summary["accuracy"] == plain.summary["accuracy"]
    [replaced] = run.noted("replaced")
    assert (replaced["gone"], replaced["by"]) == (who, "standby:1")
    assert not run.noted("stale")


@pytest.mark.parametrize("seed", range(25))
def test_whenever_one_dies_over_bad_links_the_bits_are_those_of_peace(seed: int) -> None:
    """Messages in any order, some of them lost, and one death at any moment; the next step's peer is never behind."""
    rng = np.random.default_rng(seed)
    cast = prepared(**CHAIN, **SHORT, split__micro_batches=3)
    plain = in_hand(cast)
    who, at = str(rng.choice(["middle:1", "middle:2", "tail"])), float(rng.uniform(0, plain.run(100.0)))
    notes: list[Note] = []
    network = in_hand(
        cast, lossy(seed, *((0.05, 0.1) if seed % 2 else (0.0, 0.0))), faults=[(PeerId(who), Fault(at=at, kill=who))],
        grace=float(rng.uniform(0.01, 0.3)), silence=5.0, note=lambda peer, note, now: notes.append(note),
    )  # fmt: skip
    network.run(1000.0)
    assert ends(network)["peer:0"] == "finished", (who, at)
    replaced = [note.data["by"] for note in notes if note.kind == "replaced"]
    players = [str(replaced[0]) if name == who and replaced else name for name in cast.names[:4]]
    assert parameters(network, players).tobytes() == parameters(plain, list(cast.names[:4])).tobytes(), (who, at)


def test_two_that_die_one_after_the_other_are_replaced_both(tmp_path: Path) -> None:
    changes = {**CHAIN, "strategy": {"name": "chain", "standbys": 2}, "timing__grace": 0.05}
    plain = played(tmp_path / "plain", **changes)
    faults = [{"at": 0.4, "kill": "middle:1"}, {"at": 0.9, "kill": "standby:1"}]
    run = played(tmp_path / "killed", **changes, faults=faults)
    assert [(n["gone"], n["by"]) for n in run.noted("replaced")] == [
        ("middle:1", "standby:1"), ("standby:1", "standby:2")
    ]  # fmt: skip
    assert run.models[0].tobytes() == plain.models[0].tobytes() == unsplit(plain.cast).tobytes()


def test_one_that_comes_back_finds_its_part_taken_and_ends_with_the_others(tmp_path: Path) -> None:
    pause = {"at": 0.4, "pause": "middle:1", "seconds": 1.0}
    run = played(tmp_path, **CHAIN, faults=[pause], timing__silence=0.2)
    assert set(run.ended.values()) == {"finished"}
    assert run.noted("replaced")
    assert run.models[0].tobytes() == unsplit(run.cast).tobytes()


# --- and nobody stands by ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "who"),
    [
        ({"strategy": "chain", "model": DEEP}, "middle:1"),
        ({"strategy": "chain", "model": DEEP}, "tail"),
        ({"strategy": "u-shaped"}, "body"),
        ({"strategy": "vanilla"}, "tail"),
    ],
)
def test_without_a_standby_it_ends_within_the_patience_with_a_sentence(
    tmp_path: Path, changes: dict[str, Any], who: str
) -> None:
    run = played(tmp_path, **changes, faults=[{"at": 0.5, "kill": who}], timing__round=4)
    assert run.ended.pop("peer:0") == f"no answer for 4 s: {who} gone, and nobody stands by"
    others = {name: how for name, how in run.ended.items() if name not in ("peer:0", who)}
    assert all("its data owner stopped after" in how for how in others.values())
    assert not run.models


def test_who_serves_a_data_owner_that_dies_stops_by_itself(tmp_path: Path) -> None:
    run = played(tmp_path, strategy="chain", model=DEEP, faults=[{"at": 0.5, "kill": "peer:0"}], timing__round=4)
    assert run.ended.pop("peer:0") == "killed"
    assert {how for name, how in run.ended.items() if name != "peer:0"} == {"its data owner is gone"}


def test_a_pause_holds_up_and_changes_nothing(tmp_path: Path) -> None:
    run = played(tmp_path, faults=[{"at": 0.1, "pause": "tail", "seconds": 3}], timing__silence=1)
    assert set(run.ended.values()) == {"finished"}
    assert run.models[0].tobytes() == unsplit(run.cast).tobytes()


@pytest.mark.parametrize("who", ["peer:0", "peer:1", "peer:2"])
@pytest.mark.parametrize(
    "strategy", ["splitfed", {"name": "splitfed", "version": 2}, "round-robin"], ids=["sf1", "sf2", "turns"]
)
@pytest.mark.parametrize("at", [0.05, 0.3, 0.45])
def test_the_other_data_owners_go_on_without_one_that_dies(tmp_path: Path, strategy: Any, who: str, at: float) -> None:
    fault = {"at": at, "kill": who}
    run = played(tmp_path, strategy=strategy, peers=3, faults=[fault], timing__round=4, timing__grace=0.1)
    assert run.ended == {**dict.fromkeys(run.cast.names, "finished"), who: "killed"}
    assert all(p["rounds"] == 6 for p in run.summary["peers"] if p["name"] != who)
    assert len(run.models) == 2
    assert run.summary["accuracy"] > 0.5


# --- real processes ------------------------------------------------------------------------------------------------


def over_libp2p(folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    data = override(BASE, {name.replace("__", "."): value for name, value in changes.items()})
    path = folder.with_suffix(".toml")
    path.write_text(tomli_w.dumps({"scenario": {**data, "world": "libp2p"}}))
    with up(folder, "--scenario", str(path)) as process:
        output, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 0, output
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


@pytest.mark.slow
@pytest.mark.parametrize("who", ["middle:1", "tail"])
def test_over_libp2p_a_peer_that_is_killed_in_mid_epoch_costs_no_batch(tmp_path: Path, who: str) -> None:
    changes = {**CHAIN, "rounds": 30, "evaluate_every": 30, "split__micro_batches": 2}
    summary = over_libp2p(tmp_path / "run", {**changes, "faults": [{"at": 0.5, "kill": who}], "timing__grace": 0.5})
    ended = {p["name"]: p["ended"] for p in summary["peers"]}
    assert ended.pop(who) == "killed (SIGKILL)"
    assert set(ended.values()) == {"finished"}
    cast = Cast.prepare(Scenario.parse(summary["scenario"]))
    [model] = cast.models(tmp_path / "run" / "checkpoints", cast.names)
    calm = played(tmp_path / "calm", **changes)
    assert model.tobytes() == calm.models[0].tobytes()
    lines = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [e["loss"] for e in lines if e["kind"] == "trained"] == [n["loss"] for n in calm.noted("trained")]
    assert any(e["kind"] == "replaced" for e in lines)
