"""Hijacked runs of split mode, end to end: what is read, what guards notice, and what is refused."""

import numpy as np
import pytest
from split_runs import played, prepared

from veilmesh.attacks import ATTACKS
from veilmesh.attacks.smashed.client_gan import trained
from veilmesh.attacks.smashed.forger import Forging
from veilmesh.core import BadInput, RemoteError
from veilmesh.crypto.codecs import table
from veilmesh.peer.machine import PeerId
from veilmesh.sim.audit import audit
from veilmesh.sim.observation import observation
from veilmesh.sim.scenario import Choice
from veilmesh.split import messages

SMALL = {
    "model": {"name": "convnet", "width": 8, "depth": 2}, "split__cuts": [3], "rounds": 100, "evaluate_every": 100,
    "training": {"batch": 32, "local_steps": 4, "learning_rate": 0.05}, "transcript__keep": "all",
    "adversary": {"vantage": "tail"},
}  # fmt: skip
FSHA = {"vantage": "tail", "tamper": {"name": "fsha", "iterations": 200}}
READING = Choice(name="fsha", iterations=200, targets=1)


def _read(run, vantage="tail"):
    return audit(run.folder, run.cast, [PeerId(name) for name in run.cast.names], READING, vantage)


@pytest.mark.slow
def test_a_hijacked_head_speaks_the_hijacker_s_language(tmp_path):
    honest, hijacked = played(tmp_path / "a", **SMALL), played(tmp_path / "b", **SMALL | {"adversary": FSHA})
    usual, read = _read(honest), _read(hijacked)
    assert read["psnr_mean"] > usual["psnr_mean"] + 3
    assert read["gain_mean"] > 0
    assert hijacked.summary["accuracy"] is not None  # of the data owner, who is honest
    assert hijacked.summary["alarms"] == 0


@pytest.mark.slow
def test_a_u_shaped_body_hijacks_too(tmp_path):
    run = played(
        tmp_path, **SMALL | {"strategy": "u-shaped", "split__cuts": [3, 6], "adversary": FSHA | {"vantage": "body"}}
    )
    assert _read(run, "body")["gain_mean"] > 0


def test_gradient_scrutiny_stops_a_hijacked_run_and_the_summary_says_when(tmp_path):
    guards = {"split__guards": ["gradient-scrutiny"]}
    run = played(tmp_path / "a", **SMALL | guards | {"adversary": FSHA})
    assert run.ended["peer:0"].startswith("hijacked, it seems")
    assert run.summary["alarms"] >= 1
    assert run.summary["first_alarm"] == run.noted("alarm")[0]["step"]
    assert run.summary["stopped_by_alarm"] == 1
    honest = played(tmp_path / "b", **SMALL | guards)
    assert honest.summary["alarmed"] == 0
    assert honest.ended["peer:0"] == "finished"


def test_a_tamper_of_the_swarm_is_no_hijack():
    with pytest.raises(BadInput, match="fsha"):
        prepared(adversary={"vantage": "tail", "tamper": "sign-flip"})


def test_a_data_owner_plays_no_stage_to_hijack_from():
    with pytest.raises(BadInput, match="adversary.vantage to one of tail"):
        prepared(adversary={"vantage": "peer:0", "tamper": "fsha"})


def test_a_forger_s_pictures_are_made_again_from_what_it_was_told(tmp_path):
    options = {"target": 3, "every": 2}
    run = played(
        tmp_path, **SMALL | {
            "strategy": "round-robin", "peers": 2, "rounds": 3, "evaluate_every": 3,
            "adversary": {"vantage": "peer:1", "tamper": {"name": "client-gan", **options}},
        }
    )  # fmt: skip
    assert set(run.ended.values()) == {"finished"}
    members = [PeerId(name) for name in run.cast.names]
    view = observation(run.folder, run.cast, members, "peer:1")
    [guess] = ATTACKS.build("client-gan", options).run(view, np.random.default_rng(0))
    assert guess.victim == "peer:0"
    assert set(guess.labels) == {3}
    row = audit(run.folder, run.cast, members, Choice(name="client-gan", **options), "peer:1")
    assert row["psnr_mean"] > 0


def test_the_reading_s_generator_is_the_hijacker_s(tmp_path):
    """Bit for bit: what the member said last, without learning from it, is what its generator, trained again, says."""
    options = {"target": 3, "every": 2}
    run = played(
        tmp_path, **SMALL | {
            "strategy": "round-robin", "peers": 2, "rounds": 2, "evaluate_every": 2,
            "adversary": {"vantage": "peer:1", "tamper": {"name": "client-gan", **options}},
        }
    )  # fmt: skip
    view = observation(run.folder, run.cast, [PeerId(name) for name in run.cast.names], "peer:1")
    said = [m for m in _said(view) if m.head == 1 and m.stage == 1][-1]
    forger, last = trained(view, 1, Forging(3, None, 2, 1e-3))
    again = forger.activations(said.rows, last, 0)
    assert said.step == last
    assert np.array_equal(table.decode(said.blob, again.numel()).values, again.numpy().ravel())


def _said(view):
    for record in view.records:
        try:
            message = messages.decode(record.body)
        except RemoteError:
            continue
        if isinstance(message, messages.Activations):
            yield message
