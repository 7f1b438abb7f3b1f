"""A stored view is all that an attack needs: the same pictures, in another process, from the file alone."""

import hashlib
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmesh.attacks.stored import MAGIC, from_bytes, to_bytes
from veilmesh.attacks.view import ATTACKS, Vantage
from veilmesh.core import BadInput, LocalError

REPLAY = """
import hashlib, json, sys
import numpy as np, torch
from veilmesh.attacks.stored import from_bytes
from veilmesh.attacks.view import ATTACKS
torch.set_num_threads(1)
view = from_bytes(sys.stdin.buffer.read())
for guess in ATTACKS.build(sys.argv[1], json.loads(sys.argv[2])).run(view, np.random.default_rng(5)):
    print(guess.victim, guess.round, hashlib.sha256(guess.pictures.tobytes()).hexdigest(), guess.loss)
"""


@pytest.fixture
def view(make_mesh, digits):
    """What peer a has of three peers that trained for a round, two pictures each."""
    x, y = digits
    mesh = make_mesh(model={"name": "convnet", "width": 4}, batch=2, pictures=x[100:120], picture_labels=y[100:120])
    for peer, at in zip("abc", (0, 2, 4), strict=True):
        mesh.train(peer, mesh.near(peer), x[at : at + 2], y[at : at + 2])
    seen = mesh.view("a")

    def own(peer, round_):
        assert (peer, round_) == ("a", 0)
        return x[:2], y[:2]

    return replace(seen, own=own, vantage=Vantage(frozenset("a"), False, frozenset([frozenset("bc")])))


@pytest.mark.parametrize(("name", "options"), [("analytic", "{}"), ("cosine-inversion", '{"iterations": 5}')])
def test_an_attack_is_replayed_in_another_process_from_the_view_alone(view, tmp_path, name, options):
    asked = [sys.executable, "-c", REPLAY, name, options]
    done = subprocess.run(asked, input=to_bytes(view), capture_output=True, cwd=tmp_path, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    here = ATTACKS.build(name, msgspec.json.decode(options)).run(view, np.random.default_rng(5))
    said = [f"{g.victim} {g.round} {hashlib.sha256(g.pictures.tobytes()).hexdigest()} {g.loss}" for g in here]
    assert len(said) == 2
    assert done.stdout.decode().splitlines() == said


def same(a, b):
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return a == b


def test_everything_comes_back(view):
    view = replace(view, told=lambda peer, round_: np.array([1, 3]))
    back = from_bytes(to_bytes(view))
    assert (back.vantage, back.records) == (view.vantage, view.records)
    for field in fields(view.public):
        assert same(getattr(view.public, field.name), getattr(back.public, field.name)), field.name
    for kept, given_ in zip(back.own("a", 0), view.own("a", 0), strict=True):
        assert same(given_, kept)
    assert back.told("b", 0).tolist() == [1, 3]
    assert to_bytes(back) == to_bytes(view)


def test_only_the_adversarys_own_batches_are_in_it(view):
    back = from_bytes(to_bytes(view))
    for peer, round_ in (("b", 0), ("a", 1)):
        with pytest.raises(LocalError):
            back.own(peer, round_)
    assert back.told is None
    told = from_bytes(to_bytes(replace(view, told=lambda peer, round_: np.array([0, 1]))))
    with pytest.raises(LocalError):
        told.told("a", 0)


def test_no_private_picture_of_others_is_in_it(view, digits):
    raw, (x, _) = to_bytes(view), digits
    assert x[0].tobytes() in raw
    assert not any(picture.tobytes() in raw for picture in x[2:6])


def test_a_view_without_data_of_its_own_stays_without(view):
    back = from_bytes(to_bytes(replace(view, own=None)))
    assert back.own is None


def sealed(body):
    """A body under a head that fits it."""
    return MAGIC + b"\x01" + hashlib.blake2b(body, digest_size=16).digest() + body


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda raw: b"", "no stored view"),
        (lambda raw: b"PK" + raw, "no stored view"),
        (lambda raw: raw[: len(MAGIC)] + b"\x07" + raw[len(MAGIC) + 1 :], "version 7"),
        (lambda raw: raw[:-1], "cut off or damaged"),
        (lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), "cut off or damaged"),
        (lambda raw: raw + b"x", "cut off or damaged"),
    ],
)
def test_a_damaged_file_is_refused_in_a_sentence(view, change, why):
    with pytest.raises(BadInput, match=why) as refused:
        from_bytes(change(to_bytes(view)))
    assert "\n" not in str(refused.value)
    assert str(refused.value).endswith(".")


@pytest.mark.parametrize(
    "change",
    [
        {"classes": 0}, {"batch": -1}, {"learning_rate": float("nan")}, {"server": "z"}, {"peers": ()},
        {"peers": ("a", "a")}, {"model": {"width": 4}}, {"initial": np.zeros((2, 2), np.float32)},
        {"pictures": np.full((2, 1, 8, 8), 2, np.float32)}, {"pictures": np.zeros((2, 1, 9, 8), np.float32)},
        {"picture_labels": np.array([9] * 20)}, {"picture_labels": np.array(1)},
        {"initial": np.zeros(3, np.int64)}, {"task": 5}, {"initial": [0.0]},
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused(view, change):
    broken = to_bytes(replace(view, public=replace(view.public, **change)))
    with pytest.raises(BadInput, match="cannot be read"):
        from_bytes(broken)


@settings(max_examples=examples(100), deadline=None)
@given(st.binary(max_size=200))
def test_any_body_is_a_sentence(body):
    with pytest.raises(BadInput, match="cannot be read"):
        from_bytes(sealed(body))


def test_a_view_that_was_tampered_with_under_a_good_head_never_runs_anything(view):
    """Every byte of a whole view changed, one by one: a view or a sentence, and nothing else."""
    raw = to_bytes(replace(view, records=view.records[:1], public=replace(view.public, pictures=None)))
    body = bytearray(raw[len(MAGIC) + 17 :])
    said = []
    for at in [*range(0, 600), *range(600, len(body), 97)]:
        body[at] ^= 0xA5
        try:
            from_bytes(sealed(bytes(body)))
        except BadInput as error:
            said.append(str(error))
        body[at] ^= 0xA5
    assert said
    assert not any("\n" in sentence for sentence in said)


def test_what_has_no_form_is_said_when_it_is_stored(view):
    with pytest.raises(LocalError, match="cannot be stored"):
        to_bytes(replace(view, public=replace(view.public, options={"path": Path("x"), "of": object()})))
