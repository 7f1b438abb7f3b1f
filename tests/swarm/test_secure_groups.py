"""Averages by masks: what group-all-reduce comes to, without anybody seeing a model."""

from collections.abc import Callable
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmesh.core import BadInput, Refusal
from veilmesh.crypto.codecs.topk import TopK
from veilmesh.peer.machine import PeerId, PeersChanged, Received, Send, Work, WorkDone
from veilmesh.swarm import messages
from veilmesh.swarm.schedule import random_groups
from veilmesh.swarm.secure_messages import Counted, Enrol, Masked, Roll, SumMessage, Total, Unmasked, Withdrawn
from veilmesh.swarm.strategies.base import STRATEGIES
from veilmesh.swarm.strategies.group_inbox import AHEAD

SECURE = {"strategy": "secure-groups"}


# --- what it comes to ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("peers", "group"), [(2, 8), (3, 8), (8, 8), (9, 4), (13, 5)])
def test_it_comes_to_what_group_all_reduce_comes_to(lab, peers: int, group: int) -> None:
    options = {"options": {"group": group}, "rounds": 10}
    hidden = lab.build(peers, **SECURE, **options).start().settle()
    shown = lab.build(peers, strategy="group-all-reduce", **options).start().settle()
    np.testing.assert_allclose(hidden.models(), shown.models(), atol=2e-6)
    for one, other in zip(hidden.players.values(), shown.players.values(), strict=True):
        assert one.noted("round") == other.noted("round")
        assert not one.refused


def test_a_whole_group_holds_one_model_to_the_last_bit(lab) -> None:
    world = lab.build(9, **SECURE, options={"group": 4}, rounds=1).start().settle()
    half = np.array([player.target * lab.rate for player in world.players.values()])
    for index in range(9):
        group = random_groups(5, 0, 9, 4)[index]
        assert len({world[i].outcome.parameters.tobytes() for i in group}) == 1
        np.testing.assert_allclose(world[index].outcome.parameters, half[list(group)].mean(0), atol=2e-7)
        assert world[index].noted("round") == [{"round": 0, "group": len(group)}]


@settings(max_examples=examples(13))
@given(random=st.randoms(use_true_random=False), peers=st.integers(2, 7), bits=st.sampled_from([16, 32]))
def test_no_order_of_delivery_changes_a_bit(lab, random, peers: int, bits: int) -> None:
    built = {**SECURE, "options": {"group": 4, "bits": bits, "keep": 0.6}, "rounds": 4}
    straight = lab.build(peers, **built).start().settle()
    shuffled = lab.build(peers, **built).start().settle(lambda count: random.randrange(count))
    assert [m.tobytes() for m in straight.models()] == [m.tobytes() for m in shuffled.models()]
    assert not any(player.refused for player in shuffled.players.values())


def test_no_secret_shows_in_the_models(lab) -> None:
    """Other keys, other masks, the same sums."""
    world, other = (lab.build(4, **SECURE, rounds=3) for _ in range(2))
    for player in other.players.values():
        kit = replace(player.machine._kit, secret=b"another secret".ljust(32, player.machine._kit.me[:1].encode()))
        player.machine = STRATEGIES.build("secure-groups").machine(kit)
    world.start().settle()
    other.start().settle()
    assert [m.tobytes() for m in world.models()] == [m.tobytes() for m in other.models()]
    assert world.said != other.said


@pytest.mark.parametrize("options", [{"bits": 16}, {"keep": 0.4}, {"bits": 16, "keep": 0.4}])
def test_what_was_learnt_is_in_the_models_or_still_to_be_said(lab, options: dict[str, float]) -> None:
    world = lab.build(6, **SECURE, options={"group": 4, **options}, rounds=8).start()
    learnt = np.zeros(lab.dimension)
    while world.pending:
        peer, what = world.pending[0]
        if isinstance(what, Work) and what.name.startswith("train"):
            learnt += world.players[peer].work(what.task).update
        world.step()
    machines = [player.machine for player in world.players.values()]
    there = sum(m._x.astype(np.float64) + m._hidden.left_out for m in machines)
    np.testing.assert_allclose(there, learnt, atol=1e-4)


def test_16_bits_come_near_what_float32_comes_to(lab) -> None:
    world, shown = (
        lab.build(6, strategy=name, options={"group": 4, **bits}, rounds=30).start().settle()
        for name, bits in (("secure-groups", {"bits": 16}), ("group-all-reduce", {}))
    )
    np.testing.assert_allclose(world.models(), shown.models(), atol=0.01)


def test_16_bits_are_half_the_bytes(lab) -> None:
    said = {}
    for bits in (16, 32):
        world = lab.build(8, **SECURE, options={"bits": bits}, rounds=1, dimension=4000).start().settle()
        said[bits] = sum(len(m.words) for sender, _, m in world.said if sender == "p3" and isinstance(m, Masked))
    assert said[32] == 2 * said[16]
    world = lab.build(8, **SECURE, options={"copies": 1}, rounds=1, dimension=4000).start().settle()
    words = [len(m.words) for sender, _, m in world.said if sender == "p3" and isinstance(m, Masked | Total)]
    assert sum(words) == 2 * 7 / 8 * 4 * 4000  # a butterfly's


def test_what_has_not_its_turn_waits_for_it(lab) -> None:
    world = lab.build(4, **SECURE, options={"keep": 0.5}, rounds=1).start().settle()
    half = np.array([player.target * lab.rate for player in world.players.values()])
    said = world.models()[0] != 0
    assert said.sum() == lab.dimension // 2
    assert len({m.tobytes() for m in world.models()}) == 1
    np.testing.assert_allclose(world.models()[0][said], half.mean(0)[said], atol=1e-6)
    for player, own in zip(world.players.values(), half, strict=True):
        np.testing.assert_allclose(player.machine._hidden.left_out, np.where(said, 0, own), atol=1e-6)


def test_with_a_share_of_the_coordinates_all_come_together_in_the_end(lab) -> None:
    world = lab.build(6, **SECURE, options={"group": 3, "keep": 0.4}, rounds=120).start().settle()
    bottom = np.mean([world[i].target for i in range(6)], axis=0)
    np.testing.assert_allclose(np.mean(world.models(), axis=0), bottom, atol=0.25)


def test_what_is_beyond_the_limit_is_clipped_and_noted(lab) -> None:
    world = lab.build(3, **SECURE, options={"limit": 0.1}, rounds=2).start().settle()
    assert all(player.noted("clipped") for player in world.players.values())
    assert np.abs(world.models()).max() <= 0.1000001


def test_nobody_is_told_a_model(lab) -> None:
    """Of what is said before the sum, no word is one of the model's, nor of its updates."""
    world = lab.build(4, **SECURE, rounds=1, dimension=400).start().settle()
    for i in range(4):
        fixed = STRATEGIES.build("secure-groups").fixed(4)
        plain = fixed.encode(world[i].target * lab.rate)
        for sender, _, message in world.said:
            if isinstance(message, Masked) and sender == f"p{i}":
                assert len(np.intersect1d(np.frombuffer(message.words, "<u4"), plain)) <= 1


# --- refusals --------------------------------------------------------------------------------------------------------


def test_what_it_cannot_do_is_refused_with_what_to_do(lab) -> None:
    with pytest.raises(BadInput, match="topology to complete"):
        STRATEGIES.build("secure-groups").weights(nx.cycle_graph(5))
    with pytest.raises(BadInput, match="leave codec out"):
        lab.build(3, **SECURE, codec=TopK(0.25))
    for options in ({"threshold": 5}, {"group": 4, "threshold": 5}, {"bits": 8}, {"keep": 0.0}, {"limit": -1.0}):
        with pytest.raises(BadInput):
            STRATEGIES.build("secure-groups", options)
    assert not STRATEGIES.build("secure-groups", {"threshold": 8}).aggregates


# --- losses, deaths --------------------------------------------------------------------------------------------------


def test_one_that_dies_before_it_speaks_is_left_out_without_a_timer(lab) -> None:
    world = lab.build(4, **SECURE, rounds=3).start()
    world.pending = [(p, what) for p, what in world.pending if p != "p1"]
    world.settle()
    world.die(1)
    world.settle()
    for player in world.players.values():
        assert [data["group"] for data in player.noted("round")] == [3] * 3
        assert not player.noted("abandoned")
        assert not player.refused
    assert len({m.tobytes() for m in world.models()}) == 1


@settings(max_examples=examples(20))
@given(steps=st.integers(0, 300), who=st.integers(0, 4))
def test_one_that_dies_at_any_moment_costs_no_round(lab, steps: int, who: int) -> None:
    world = lab.build(5, **SECURE, rounds=4).start()
    for _ in range(steps):
        if world.pending:
            world.step()
    world.die(who)
    world.finish()
    for player in world.players.values():
        assert player.outcome.reason == "finished"
        assert all(data["group"] >= 4 for data in player.noted("round"))
    assert len({m.tobytes() for m in world.models()}) == 1


def test_too_few_is_a_lone_step_and_noted(lab) -> None:
    world = lab.build(3, **SECURE, rounds=2).start()
    world.die(2)
    world.settle()
    for index in (0, 1):
        assert [data["group"] for data in world[index].noted("round")] == [1, 1]
        assert [data["round"] for data in world[index].noted("abandoned")] == [0, 1]
        alone = world[index].target * (1 - (1 - lab.rate) ** 2)
        np.testing.assert_allclose(world[index].outcome.parameters, alone, atol=1e-6)
    assert not any(isinstance(message, Masked | Unmasked) for _, _, message in world.said)


def test_one_that_is_silent_is_left_out_at_half_time(lab) -> None:
    world = lab.build(4, **SECURE, rounds=1)
    world.lost = lambda sender, to, message: sender == "p1" and not isinstance(message, Enrol | Roll)
    world.start().settle()
    while any(world[i].outcome is None for i in (0, 2, 3)):
        world.ring()
        world.settle()
    assert world.now < 10.1
    others = np.mean([world[i].target * lab.rate for i in (0, 2, 3)], axis=0)
    for index in (0, 2, 3):
        assert world[index].noted("round") == [{"round": 0, "group": 3}]
        np.testing.assert_allclose(world[index].outcome.parameters, others, atol=1e-6)


@pytest.mark.parametrize("kind", SumMessage.__args__)
def test_a_lost_frame_costs_an_eighth_of_the_patience(lab, kind: type) -> None:
    if kind is Withdrawn:
        return
    lost = []

    def once(sender: str, to: str, message: messages.Message) -> bool:
        if (sender, to) == ("p1", "p2") and isinstance(message, kind) and not lost:
            lost.append(message)
            return True
        return False

    world = lab.build(4, **SECURE, rounds=3)
    world.lost = once
    world.start().finish()
    assert lost
    assert world.now < 10 / 8 + 1.5
    assert all([data["group"] for data in player.noted("round")] == [4] * 3 for player in world.players.values())
    assert len({m.tobytes() for m in world.models()}) == 1


@settings(max_examples=examples(15))
@given(random=st.randoms(use_true_random=False), peers=st.integers(2, 6), share=st.sampled_from([0.05, 0.3]))
def test_it_ends_whatever_is_lost(lab, random, peers: int, share: float) -> None:
    world = lab.build(peers, **SECURE, options={"group": 4}, rounds=3)
    world.lost = lambda sender, to, message: random.random() < share
    world.start().finish()
    assert [p.outcome.reason for p in world.players.values()] == ["finished"] * peers
    assert np.abs(world.models()).max() < 10


def test_all_others_dead_is_training_alone(lab) -> None:
    world = lab.build(3, **SECURE, rounds=3).start()
    world.die(1)
    world.die(2)
    world.settle()
    assert [data["group"] for data in world[0].noted("round")] == [1] * 3


def test_nothing_is_said_to_the_dead(lab) -> None:
    world = lab.build(5, **SECURE, rounds=2).start()
    world.feed(PeerId("p0"), PeersChanged(frozenset({PeerId("p2"), PeerId("p3"), PeerId("p4")})))
    [train] = [what for peer, what in world.pending if peer == "p0" and isinstance(what, Work)]
    effects = world[0].machine.handle(WorkDone(train.name, world[0].work(train.task)), 0.0)
    assert "p1" not in {e.to for e in effects if isinstance(e, Send)}


# --- lies ------------------------------------------------------------------------------------------------------------


def test_messages_that_do_not_fit_are_refused_and_change_nothing(lab, refused: Callable[..., Refusal]) -> None:
    world = lab.build(3, **SECURE, rounds=100).start()
    machine, honest = world[0].machine, PeerId("p1")
    label = b"l" * 32
    cases: list[tuple[str, messages.Message, Refusal]] = [
        ("p9", Withdrawn(0, 0), Refusal.MISMATCH),
        ("p0", Withdrawn(0, 0), Refusal.MISMATCH),
        (honest, Withdrawn(AHEAD, 0), Refusal.MISMATCH),
        (honest, Withdrawn(100, 0), Refusal.MISMATCH),
        (honest, Withdrawn(0, 1), Refusal.MISMATCH),
        (honest, Masked(2, 0, label, 0, bytes(4)), Refusal.MISMATCH),
        (honest, Masked(1, 0, label, 3, bytes(4)), Refusal.MISMATCH),
        (honest, Masked(0, 0, label, 0, bytes(99)), Refusal.MISMATCH),
        (honest, Total(2, 0, label, 0, bytes(4)), Refusal.MISMATCH),
        (honest, Counted(5, 0, label, (0, 7)), Refusal.MISMATCH),
        (honest, Enrol(5, 0, bytes(64), b"s" * 32, b"s" * 32), Refusal.MALFORMED),
        (honest, Roll(5, 0, (b"",) * 4), Refusal.MISMATCH),
        (honest, messages.Ask(0), Refusal.MISMATCH),
    ]
    for sender, message, why in cases:
        assert refused(machine, Received(PeerId(sender), messages.encode(message))) == why, message


def test_nobody_outside_the_group_of_a_round_is_heard(lab, refused: Callable[..., Refusal]) -> None:
    world = lab.build(6, **SECURE, options={"group": 3}, rounds=10).start()
    for round_ in range(3):
        inside = random_groups(5, round_, 6, 3)[0]
        for index in range(1, 6):
            event = Received(world.ids[index], messages.encode(Withdrawn(round_, 0)))
            if index not in inside:
                assert refused(world[0].machine, event) == Refusal.MISMATCH


def test_what_is_said_ahead_does_not_pile_up(lab) -> None:
    world = lab.build(4, **SECURE, rounds=1000).start()
    for round_ in range(40):
        for sender in ("p1", "p2", "p3"):
            for part in range(4):
                for kind in (Masked, Total):
                    said = kind(round_, 0, b"l" * 32, part, bytes(12))
                    world.feed(PeerId("p0"), Received(PeerId(sender), messages.encode(said)))
    kept = [session._inbox for session in world[0].machine._sessions.values()]
    assert len(kept) <= 2
    assert sum(len(parts) for box in kept for by in (box.masked, box.totals) for parts in by.values()) <= 2 * 3 * 2 * 2


@settings(max_examples=examples(75))
@given(body=st.binary(max_size=80), sender=st.sampled_from(["p1", "p2", "p7"]))
def test_arbitrary_bytes_never_break_a_machine(lab, body: bytes, sender: str) -> None:
    world = lab.build(3, **SECURE).start()
    world.feed(PeerId("p0"), Received(PeerId(sender), body))
    world.settle()
