"""Epidemic learning: who hears whom, what it comes to, and what a dead sender costs."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmesh.core import Refusal
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import CODECS
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.peer.machine import PeerId, Received, Work
from veilmesh.swarm import messages
from veilmesh.swarm.schedule import random_out
from veilmesh.swarm.strategies.scheduled import WINDOW
from veilmesh.swarm.topology import TOPOLOGIES, metropolis_hastings

EPIDEMIC = {"strategy": "epidemic"}


def blob(value: float, count: int = 12) -> bytes:
    return table.encode(Dense(), np.full(count, value, np.float32), np.random.default_rng(0))


def update(round_: int, value: float = 0.1, **changes: object) -> bytes:
    return messages.encode(messages.Update(**{"round": round_, "samples": 10, "blob": blob(value), **changes}))


# --- who hears whom --------------------------------------------------------------------------------------------------


def test_everybody_speaks_to_s_others_and_hears_s_on_average(lab) -> None:
    peers, s, rounds = 8, 3, 100
    world = lab.build(peers, **EPIDEMIC, options={"s": s}, rounds=rounds).start().settle()
    spoken = Counter((sender, m.round) for sender, _, m in world.said)
    assert set(spoken.values()) == {s}
    assert len(spoken) == peers * rounds
    heard = np.array([Counter(to for _, to, m in world.said)[p] for p in world.ids]) / rounds
    np.testing.assert_allclose(heard, s, atol=0.6)
    pairs = Counter((sender, to) for sender, to, _ in world.said)
    assert len(pairs) == peers * (peers - 1)
    assert all(data["group"] == 1 + len([1 for _, to, m in world.said if to == "p0" and m.round == data["round"]])
               for data in world[0].noted("round"))  # fmt: skip


@given(peers=st.integers(2, 20), seed=st.integers(0, 99), round_=st.integers(0, 99), count=st.integers(1, 25))
def test_draws_are_of_neighbours_without_repetition(peers: int, seed: int, round_: int, count: int) -> None:
    rows = metropolis_hastings(TOPOLOGIES.build("ring").graph(peers, 0))
    for peer in range(peers):
        near = set(rows[peer]) - {peer}
        drawn = random_out(rows, seed, round_, peer, count)
        assert len(set(drawn)) == len(drawn) == min(count, len(near))
        assert set(drawn) <= near


# --- what it comes to ------------------------------------------------------------------------------------------------


def test_a_round_is_the_uniform_average_of_what_was_heard(lab) -> None:
    world = lab.build(6, **EPIDEMIC, options={"s": 2}, rounds=1).start().settle()
    half = {p: player.target * lab.rate for p, player in world.players.items()}
    for me, player in world.players.items():
        heard = [half[sender] for sender, to, _ in world.said if to == me]
        np.testing.assert_allclose(player.outcome.parameters, np.mean([half[me], *heard], axis=0), atol=1e-6)


def test_a_sparse_codec_is_averaged_where_it_spoke(lab) -> None:
    world = lab.build(2, **EPIDEMIC, rounds=1, codec=CODECS.build("top-k", {"keep": 0.25})).start().settle()
    halves = [world[i].target * lab.rate for i in (0, 1)]
    [said] = [m.blob for sender, _, m in world.said if sender == "p1"]
    decoded = table.decode(said, 12)
    wanted = np.where(decoded.said, (halves[0] + decoded.values) / 2, halves[0])
    np.testing.assert_allclose(world.models()[0], wanted, atol=1e-6)


@pytest.mark.parametrize("s", [1, 3])
def test_on_a_bowl_it_comes_as_near_as_gossip(lab, s: int) -> None:
    """With the step size of the tests, gossip's average is the mean of the targets; here it moves about it."""
    found = [
        lab.build(8, strategy=name, options=options, rounds=100).start().settle()
        for name, options in (("gossip", {}), ("epidemic", {"s": s}))
    ]
    mean = np.mean([found[0][i].target for i in range(8)], axis=0)
    gossip, epidemic = (np.linalg.norm(np.mean(w.models(), axis=0) - mean) for w in found)
    alone = np.mean([np.linalg.norm(p.target - mean) for p in found[0].players.values()])
    assert gossip < 1e-3
    assert epidemic < 0.25 * alone


@settings(max_examples=examples(15))
@given(data=st.data(), peers=st.integers(2, 6), s=st.integers(1, 3))
def test_no_order_of_delivery_changes_a_bit(lab, data, peers: int, s: int) -> None:
    built = {**EPIDEMIC, "options": {"s": s}, "rounds": 4, "codec": CODECS.build("8-bit")}
    straight = lab.build(peers, **built).start().settle()
    random = data.draw(st.randoms(use_true_random=False))
    shuffled = lab.build(peers, **built).start().settle(lambda count: random.randrange(count))
    assert [m.tobytes() for m in straight.models()] == [m.tobytes() for m in shuffled.models()]
    assert not any(player.refused for player in shuffled.players.values())


# --- losses, deaths, lies --------------------------------------------------------------------------------------------


def test_a_sender_that_is_silent_costs_its_receivers_one_deadline_a_round(lab) -> None:
    world = lab.build(4, **EPIDEMIC, options={"s": 3}, rounds=4).start()
    world.pending = [(p, what) for p, what in world.pending if p != "p3"]  # it never finishes its first training
    world.settle()
    assert all(world[i].timers for i in range(3))
    assert not any(world[i].noted("round") for i in range(3))
    while any(world[i].outcome is None for i in range(3)):
        world.ring()
        world.pending = [(p, what) for p, what in world.pending if not (p == "p3" and isinstance(what, Work))]
        world.settle()
    assert world.now < 4 * 10.0 + 1
    for i in range(3):
        assert [data["group"] for data in world[i].noted("round")] == [3] * 4
        assert world[i].noted("late") == [{"round": r, "peers": ["p3"]} for r in range(4)]


def test_a_sender_known_to_be_dead_costs_nothing(lab) -> None:
    world = lab.build(4, **EPIDEMIC, options={"s": 3}, rounds=4).start()
    world.die(3)
    world.settle()  # no timer has to fire
    assert [p.outcome.reason for p in world.players.values()] == ["finished"] * 3


def test_what_comes_late_is_dropped_and_is_no_offence(lab) -> None:
    world = lab.build(2, **EPIDEMIC, rounds=3).start()
    machine = world[0].machine
    world.step()
    world.ring()  # p0 goes on to round 1 without p1
    assert machine.handle(Received(PeerId("p1"), update(0, 100.0)), 0.0) == []
    world.settle()
    assert np.abs(world[0].outcome.parameters).max() < 10


def test_messages_that_do_not_fit_are_refused_and_change_nothing(lab, refused: Callable[..., Refusal]) -> None:
    world = lab.build(3, **EPIDEMIC, options={"s": 2}, rounds=100).start()
    machine, honest = world[0].machine, PeerId("p1")
    machine.handle(Received(honest, update(2)), 0.0)
    cases = {
        "a stranger's": (PeerId("p9"), update(0), Refusal.MISMATCH),
        "its own": (PeerId("p0"), update(0), Refusal.MISMATCH),
        "a second one": (honest, update(2), Refusal.MISMATCH),
        "too far ahead": (honest, update(WINDOW), Refusal.MISMATCH),
        "a copy": (honest, messages.encode(messages.Copy(0, blob(1.0))), Refusal.MISMATCH),
        "huge": (honest, update(0, 1e7), Refusal.MISMATCH),
        "another dimension": (honest, update(0, blob=blob(1.0, 13)), Refusal.MISMATCH),
        "NaN": (honest, update(0, blob=blob(1.0)[:-4] + b"\x00\x00\xc0\x7f"), Refusal.MALFORMED),
        "no blob": (honest, update(0, blob=b""), Refusal.MALFORMED),
        "no message": (honest, b"\xc1", Refusal.MALFORMED),
    }
    for what, (sender, body, why) in cases.items():
        assert refused(machine, Received(sender, body)) == why, what


def test_nobody_can_choose_whom_to_speak_to(lab, refused: Callable[..., Refusal]) -> None:
    world = lab.build(6, **EPIDEMIC, options={"s": 1}, rounds=30).start()
    rows, seed = vars(world[0].machine)["_kit"].rows, 5
    for round_ in range(20):
        turn = 0 in random_out(rows, seed, round_, 1, 1)
        event = Received(PeerId("p1"), update(round_))
        if turn:
            assert world[0].machine.handle(event, 0.0) == []
        else:
            assert refused(world[0].machine, event) == Refusal.MISMATCH


@settings(max_examples=examples(75))
@given(body=st.binary(max_size=80), sender=st.sampled_from(["p1", "p2", "p7"]))
def test_arbitrary_bytes_never_break_a_machine(lab, body: bytes, sender: str) -> None:
    world = lab.build(3, **EPIDEMIC).start()
    world.feed(PeerId("p0"), Received(PeerId(sender), body))
    world.settle()
