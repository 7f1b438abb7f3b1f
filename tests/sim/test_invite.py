"""An invite is one string, whole or refused with one sentence."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilmesh.core import BadInput
from veilmesh.crypto.identity import Identity
from veilmesh.sim.invite import Invite
from veilmesh.sim.scenario import Scenario


def made(contacts: int = 3, secret: bytes | None = bytes(32)) -> Invite:
    peers = [Identity.from_seed(bytes([i]) * 32).peer for i in range(contacts)]
    addresses = {peer: f"/ip4/192.0.2.{i}/tcp/4001/p2p/{peer}" for i, peer in enumerate(peers)}
    return Invite(bytes(range(16)), secret, addresses, Scenario().model_dump(mode="json"))


@pytest.mark.parametrize("secret", [None, bytes(range(32))])
def test_what_was_said_is_read(secret: bytes | None) -> None:
    invite = made(secret=secret)
    text = invite.to_string()
    assert len(text) < 2000
    assert Invite.parse(text) == invite
    assert Invite.parse("\n  ".join(text[i : i + 70] for i in range(0, len(text), 70))) == invite
    assert Scenario.parse(Invite.parse(text).scenario) == Scenario()


def test_a_large_mesh_names_a_few_members_only() -> None:
    assert len(Invite.parse(made(contacts=40).to_string()).contacts) == 8


@given(st.data())
def test_one_altered_or_missing_character_is_noticed(data: st.DataObject) -> None:
    text = made(contacts=1).to_string()
    place = data.draw(st.integers(0, len(text) - 2))  # the very last holds bits that mean nothing
    other = data.draw(st.sampled_from([c for c in "abcXYZ019-_" if c != text[place]]))
    for broken in (text[:place] + other + text[place + 1 :], text[:place] + text[place + 1 :], text[:place]):
        with pytest.raises(BadInput, match="not a whole invite"):
            Invite.parse(broken)


@given(st.text(max_size=200), st.binary(max_size=200))
def test_anything_else_is_refused(text: str, raw: bytes) -> None:
    import base64
    import zlib

    checked = base64.urlsafe_b64encode(zlib.crc32(raw).to_bytes(4, "big") + raw).decode()
    for other in (text, "vm1." + text, "vm1." + checked):
        with pytest.raises(BadInput, match="not a whole invite"):
            Invite.parse(other)


@pytest.mark.parametrize(
    "model",
    [
        {"name": "module", "path": "os:system", "options": {"command": "true"}},
        "module-per-pixel",
        {"name": b"module", "path": "a:b"},  # a scenario would read it as text
        {"name": "imprinted", "inner": {"name": "module", "path": "a:b"}},
        {"name": "imprinted", "inner": [{"name": "module"}]},
    ],
)
def test_a_stranger_names_no_code_to_import(model: object) -> None:
    text = replace(made(), scenario={**made().scenario, "model": model}).to_string()
    with pytest.raises(BadInput, match="what a stranger names is not run here"):
        Invite.parse(text)


def test_a_stranger_may_name_any_network_of_ours() -> None:
    text = replace(made(), scenario={**made().scenario, "model": {"name": "resnet", "depth": 8}}).to_string()
    assert Invite.parse(text).scenario["model"]["name"] == "resnet"
