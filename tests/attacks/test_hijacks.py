"""Hijackers of split mode: what they are told, what they say, and what they read afterwards."""

from pathlib import Path

import numpy as np
import pytest
import torch
from split_runs import prepared

from veilmesh.attacks.hijacks.base import HIJACKS, Knows
from veilmesh.attacks.hijacks.critic import Critic, critic_loss
from veilmesh.attacks.smashed.decoders import begin, generator_of
from veilmesh.attacks.smashed.pilot import make_pilot
from veilmesh.core import BadInput, generator
from veilmesh.crypto.codecs import table
from veilmesh.peer.machine import PeerId
from veilmesh.split.work import Backward, Finish, Forward, Key, Refused, Returned, Said

CONVNET = {"model": {"name": "convnet", "width": 4, "depth": 1}, "split__cuts": [3]}
QUICK = {"iterations": 3}


@pytest.fixture
def cast():
    torch.set_num_threads(1)
    return prepared(training__learning_rate=0.05, **CONVNET)


@pytest.fixture
def public(cast):
    return cast.public([PeerId(name) for name in cast.names])


def _step(cast, run, number):
    """One step of a head through the tail that `run` plays; what came back."""
    [said] = cast.executor(0)([Forward(Key(0, 0, number, 0, 1))])
    assert isinstance(said, Said)
    finish = Finish(Key(0, 1, number, 0, 1), said.rows, said.total, said.blob, said.labels)
    [returned] = run([finish])
    assert isinstance(returned, Returned)
    return returned


@pytest.mark.parametrize("name", HIJACKS.names())
def test_a_hijack_says_what_it_is_and_where_it_is_done(name):
    line, _ = HIJACKS.describe(name)
    assert line.endswith(".")
    assert HIJACKS.get(name).seat in ("stage", "peer")


@pytest.mark.parametrize("options", [{}, {"wasserstein": False}, {"pretend": 0.5}, {"critics": 2, "begins": "own"}])
def test_a_hijacked_tail_says_another_gradient_of_the_norm_it_wants_and_the_honest_loss(cast, public, options):
    hijack = HIJACKS.build("fsha", {**QUICK, **options})
    lying = hijack.execute(cast.executor(1), Knows(public, 1, (1,), generator(0, "test")))
    honest, lied = _step(cast, cast.executor(1), 0), _step(cast, lying, 0)
    assert lied.loss == honest.loss
    size = 16 * int(np.prod(cast.shapes[1]))
    right, wrong = (table.decode(one.blob, size).values for one in (honest, lied))
    assert not np.allclose(right, wrong)
    if not options.get("pretend"):
        assert np.linalg.norm(wrong) == pytest.approx(hijack.stride / 0.05, rel=1e-4)


def test_whoever_only_pretends_says_the_honest_gradient_s_direction(cast, public):
    hijack = HIJACKS.build("fsha", {**QUICK, "pretend": 1.0})
    lying = hijack.execute(cast.executor(1), Knows(public, 1, (1,), generator(0, "test")))
    size = 16 * int(np.prod(cast.shapes[1]))
    right, said = (table.decode(_step(cast, run, 0).blob, size).values for run in (cast.executor(1), lying))
    assert right @ said / np.linalg.norm(right) / np.linalg.norm(said) == pytest.approx(1, abs=1e-5)


def test_a_hijack_touches_no_global_generator_and_is_the_same_again(cast, public):
    before = torch.get_rng_state()
    said = []
    for _ in range(2):
        lying = HIJACKS.build("fsha", QUICK).execute(cast.executor(1), Knows(public, 1, (1,), generator(0, "test")))
        said.append(_step(cast, lying, 0).blob)
    assert torch.equal(before, torch.get_rng_state())
    assert said[0] == said[1]


def test_the_pilot_is_the_same_again_and_reads_its_own_language(public):
    first, second = (make_pilot(public, 1, 20, "own") for _ in range(2))
    x = torch.from_numpy(public.pictures[:64])
    pictures = first.pictures(first.features(x))
    assert torch.equal(pictures, second.pictures(second.features(x)))
    assert float(((pictures - x) ** 2).mean()) < 0.3 * float(x.var())


def test_a_hijacker_needs_a_stage_above_the_head(cast, public):
    with pytest.raises(BadInput, match="above the head"):
        HIJACKS.build("fsha", QUICK).execute(cast.executor(0), Knows(public, 0, (0,), generator(0, "test")))


@pytest.mark.parametrize(("shape", "penalty"), [((6,), 10.0), ((3, 8, 8), 10.0), ((3, 2, 2), None)])
def test_the_critic_learns_to_tell_two_kinds_apart(shape, penalty):
    draws = generator_of(np.random.default_rng(0))
    critic = begin(lambda: Critic(shape, 4), draws)
    wanted, seen = torch.randn(32, *shape, generator=draws) + 1, torch.randn(32, *shape, generator=draws) - 1
    labels = torch.arange(32) % 4
    learner = torch.optim.Adam(critic.parameters(), 1e-2)
    for _ in range(30):
        learner.zero_grad()
        critic_loss(critic, wanted, seen, labels, penalty, draws).backward()
        learner.step()
    assert (critic(wanted, labels) - critic(seen, labels)).mean().item() > 0.5


def test_hijacks_live_where_no_clock_or_socket_is():
    folder = Path(__file__).parents[2] / "attacks" / "hijacks"
    for file in folder.glob("*.py"):
        assert "import time" not in file.read_text()


@pytest.fixture
def turns():
    torch.set_num_threads(1)
    return prepared(strategy="round-robin", peers=2, training__batch=8, **CONVNET)


def _turns_public(cast):
    return cast.public([PeerId(name) for name in cast.names])


def test_a_forger_says_pictures_of_its_own_under_the_label_it_wants_and_learns_from_what_comes_back(turns):
    hijack = HIJACKS.build("client-gan", {"target": 3, "every": 2, "other": 5})
    forging = hijack.execute(turns.executor(1), Knows(_turns_public(turns), 1, (0,), generator(0, "test")))
    said = []
    for step in range(3):
        key = Key(1, 0, step, 0, 1)
        [honest] = turns.executor(1)([Forward(key)])
        [lied] = forging([Forward(key)])
        assert (lied.rows, lied.total) == (honest.rows, honest.total)
        assert set(np.frombuffer(lied.labels, "<u2")) == {5 if step == 1 else 3}
        said.append(lied.blob)
        finish = Finish(Key(1, 1, step, 0, 1), lied.rows, lied.total, lied.blob, lied.labels)
        [returned] = turns.executor(2)([finish])
        assert forging([Backward(key, returned.blob)]) == [Returned()]
    assert len(set(said)) == 3
    assert forging([Backward(Key(1, 0, 9, 0, 1), b"")]) == [Returned()]  # of a step that it never said


def test_a_forger_refuses_gradients_that_are_none(turns):
    forging = HIJACKS.build("client-gan").execute(
        turns.executor(1), Knows(_turns_public(turns), 1, (0,), generator(0, "test"))
    )
    key = Key(1, 0, 0, 0, 1)
    forging([Forward(key)])
    [result] = forging([Backward(key, b"\x01nonsense")])
    assert isinstance(result, Refused)


def test_a_forger_needs_labels_to_send_and_a_class_that_there_is(public, turns):
    with pytest.raises(BadInput, match="from 0"):
        HIJACKS.build("client-gan", {"target": 10}).execute(
            turns.executor(1), Knows(_turns_public(turns), 1, (0,), generator(0, "test"))
        )
    u_shaped = prepared(strategy="u-shaped", model=CONVNET["model"])
    with pytest.raises(BadInput, match="labels sent"):
        HIJACKS.build("client-gan").execute(
            u_shaped.executor(0), Knows(_turns_public(u_shaped), 0, (0, 2), generator(0, "test"))
        )
