"""A mesh that others join: invited, refused, leaving, coming back. Real processes over libp2p, as users start them."""

import json
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from meshes import rounds_done, up, veilmesh, wait_for

from veilmesh.core import BadInput
from veilmesh.crypto.identity import Identity
from veilmesh.sim.cast import Cast
from veilmesh.sim.entry import identity_in
from veilmesh.sim.invite import Invite
from veilmesh.sim.scenario import Scenario

LONG = ("--peers", "2", "--rounds", "100000", "--set", "evaluate_every=100000", "--set", "timing.start=4")


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    path = folder / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for line in lines if line.endswith("}") and (event := json.loads(line))["kind"] == kind]


def invite_of(folder: Path) -> str:
    """Its invite, once the mesh trains."""
    wait_for(lambda: rounds_done(folder) > 5 and (folder / "invite").exists(), "an open mesh")
    return (folder / "invite").read_text().strip()


def groups(folder: Path, last: int) -> set[int]:
    return {event["group"] for event in events(folder, "round")[-last:]}


def ended(process: "subprocess.Popen[str]") -> str:
    output, _ = process.communicate(timeout=60)
    return str(output)


def test_one_string_is_all_a_newcomer_needs(tmp_path: Path) -> None:
    mesh, guest = tmp_path / "mesh", tmp_path / "guest"
    with up(mesh, "--open", *LONG):
        text = invite_of(mesh)
        assert (mesh / "invite").stat().st_mode & 0o077 == 0
        with veilmesh(tmp_path, "join", text, "--out", str(guest), "--shard", "1") as joining:
            wait_for(lambda: rounds_done(guest) > 20, "a newcomer that trains")
            [joined] = events(guest, "joined")
            assert joined["verified"] is True
            assert joined["round"] > 5
            wait_for(lambda: groups(mesh, 4) == {3}, "three in every group")
            joining.send_signal(signal.SIGINT)
            output = ended(joining)
        assert joining.returncode == 130
        assert "left" in output
        wait_for(lambda: groups(mesh, 4) == {2}, "two in every group again")
        assert not events(mesh, "late")  # it said goodbye: nobody waited for it


@pytest.mark.slow
def test_without_the_secret_nobody_comes_in(tmp_path: Path) -> None:
    mesh = tmp_path / "mesh"
    with up(mesh, "--open", *LONG):
        told = Invite.parse(invite_of(mesh))
        forged = replace(told, secret=bytes(32)).to_string()
        with veilmesh(tmp_path, "join", forged, "--out", str(tmp_path / "guest")) as joining:
            output = ended(joining)
        assert joining.returncode == 2
        assert "in vain" in output
        assert "Traceback" not in output
        refused = events(mesh, "refused")
        assert refused
        assert {event["why"] for event in refused} == {"stranger"}
        before = rounds_done(mesh)
        wait_for(lambda: rounds_done(mesh) > before + 20, "the mesh to go on")
        assert groups(mesh, 10) == {2}


@pytest.mark.slow
def test_with_a_list_only_those_on_it_come_in_and_may_come_back(tmp_path: Path) -> None:
    mesh, key = tmp_path / "mesh", tmp_path / "me.key"
    me = identity_in(key).peer
    with up(mesh, "--open", *LONG, "--set", f"door.allow=['{me}']"):
        text = invite_of(mesh)
        assert Invite.parse(text).secret is None
        with veilmesh(tmp_path, "join", text, "--out", str(tmp_path / "stranger")) as joining:
            assert "in vain" in ended(joining)
        assert joining.returncode == 2
        for time in ("first", "again"):
            guest = tmp_path / time
            with veilmesh(tmp_path, "join", text, "--identity", str(key), "--out", str(guest)) as joining:
                wait_for(lambda: rounds_done(guest) > 10 and groups(mesh, 2) == {3}, "the one on the list")  # noqa: B023  # asked at once
                joining.kill()  # no goodbye; its member ends with it
        assert rounds_done(mesh) > 20


def test_what_cannot_be_opened_is_refused_with_a_sentence(tmp_path: Path) -> None:
    stranger = Identity.from_seed(bytes(32)).peer
    for changes, sentence in (
        ({"door": {"open": True}, "world": "virtual"}, "world to libp2p"),
        ({"door": {"open": True}, "checkpoints": {"every": 5}}, "checkpoints.every"),
        ({"door": {"allow": [stranger]}}, "door.open = true"),
        ({"door": {"open": True, "allow": ["nobody"]}}, "no peer id"),
        ({"churn": {"every": 5}}, "door.open = true"),
    ):
        with pytest.raises(BadInput, match=sentence):
            Scenario.parse(changes)
    with pytest.raises(BadInput, match="take gossip or choco"):
        Cast.prepare(Scenario.parse({"door": {"open": True}, "strategy": "fedavg"}))


def test_an_invite_tells_nothing_of_the_laboratory(tmp_path: Path) -> None:
    from veilmesh.sim.invite import inviting

    scenario = Scenario.parse(
        {"door": {"open": True}, "adversary": {"vantage": "peer:0", "tamper": "sign-flip"}, "churn": {},
         "transport": {"name": "libp2p", "port": 4001}, "task": {"name": "mnist", "path": str(tmp_path)}}
    )  # fmt: skip
    told = inviting(scenario, bytes(16), bytes(32), {Identity.from_seed(bytes(32)).peer: "/ip4/192.0.2.1/tcp/1"})
    text = repr(told.scenario)
    assert not any(word in text for word in ("adversary", "churn", "4001", str(tmp_path)))
    assert Scenario.parse(told.scenario).door.open
