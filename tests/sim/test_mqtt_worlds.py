"""Meshes through an MQTT broker, as processes: the same models as elsewhere, also while it comes and goes."""

import time
from pathlib import Path
from typing import Any

import pytest
from brokers import TestBroker, broker, needs_embedded, needs_mosquitto
from meshes import WAIT, rounds_done, up, wait_for
from worlds import assert_same_models, scenario_file

from veilmesh.crypto.identity import Identity
from veilmesh.sim.invite import Invite, inviting
from veilmesh.sim.scenario import Scenario

GOSSIP: dict[str, Any] = {
    "peers": 3,
    "rounds": 4,
    "evaluate_every": 2,
    "strategy": "gossip",
    "training": {"batch": 4, "local_steps": 1, "learning_rate": 0.1},
}


def over(relay: TestBroker, protocol: str, **changes: Any) -> dict[str, Any]:
    """The scenario, through that broker; chunks far smaller than a model, so that it takes several."""
    transport = {"name": "mqtt", "broker": relay.place, "protocol": protocol, "chunk": 4096}
    return {**GOSSIP, "transport": transport, **changes}


@pytest.mark.parametrize(
    ("embedded", "protocol"),
    [
        pytest.param(False, "5", marks=needs_mosquitto, id="mosquitto"),
        pytest.param(True, "3.1.1", marks=[needs_embedded, pytest.mark.slow], id="amqtt"),
    ],
)
def test_a_mesh_through_a_broker_comes_to_the_same_bits(tmp_path: Path, embedded: bool, protocol: str) -> None:
    with broker(tmp_path, embedded=embedded) as relay:
        data = over(relay, protocol)
        with up(tmp_path / "mqtt", "--scenario", scenario_file(tmp_path, data)) as process:
            output, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 0, output
    assert_same_models(tmp_path / "mqtt", data)


@pytest.mark.slow
@needs_mosquitto
def test_a_broker_killed_again_and_again_costs_no_round(tmp_path: Path) -> None:
    with broker(tmp_path, keeps=False) as relay:
        data = over(relay, "5", rounds=40, evaluate_every=40)
        with up(tmp_path / "mqtt", "--scenario", scenario_file(tmp_path, data)) as process:
            for kill in range(3):
                wait_for(lambda least=4 + 9 * kill: rounds_done(tmp_path / "mqtt") >= least, "a few rounds")
                relay.stop(at_once=True)
                time.sleep(0.3)
                relay.start()
            output, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 0, output
    assert_same_models(tmp_path / "mqtt", data)


@needs_mosquitto
@pytest.mark.slow
def test_ten_kills_of_the_broker_in_a_run_of_eight_peers_cost_nothing(tmp_path: Path) -> None:
    with broker(tmp_path, keeps=False) as relay:
        data = over(relay, "5", peers=8, rounds=60, evaluate_every=60)
        with up(tmp_path / "mqtt", "--scenario", scenario_file(tmp_path, data)) as process:
            for kill in range(10):
                wait_for(lambda least=3 + 5 * kill: rounds_done(tmp_path / "mqtt") >= least, "a few rounds")
                relay.stop(at_once=True)
                time.sleep(0.3)
                relay.start()
            output, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 0, output
    assert_same_models(tmp_path / "mqtt", data)


def test_an_invite_carries_the_broker_and_nobodys_password() -> None:
    """Neither where ours is, nor a stranger's wish to have a file of ours sent to a broker of its own."""
    transport = {"name": "mqtt", "broker": "127.0.0.1:1", "password_file": "/a/secret", "username": "me", "ca": "/a/ca"}
    contacts = {Identity.from_seed(bytes(32)).peer: "mqtt://127.0.0.1:1/veilmesh/x"}
    made = inviting(Scenario.parse({**GOSSIP, "transport": transport}), bytes(16), bytes(32), contacts)
    assert made.scenario["transport"] == {"name": "mqtt", "broker": "127.0.0.1:1"}
    hostile = Invite(bytes(16), bytes(32), contacts, {**made.scenario, "transport": transport})
    assert Invite.parse(hostile.to_string()).scenario["transport"] == {"name": "mqtt", "broker": "127.0.0.1:1"}
