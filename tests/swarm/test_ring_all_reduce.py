"""All-reduce on a ring: exact where nothing goes wrong, mended in the round or honest about it where something does."""

from collections.abc import Callable

import networkx as nx
import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmesh.core import BadInput, Refusal
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import CODECS
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.peer.machine import PeerId, PeersChanged, Received, Send, Work, WorkDone
from veilmesh.swarm import messages
from veilmesh.swarm.guards.base import GUARDS
from veilmesh.swarm.schedule import random_ring
from veilmesh.swarm.strategies.base import STRATEGIES
from veilmesh.swarm.strategies.group_inbox import AHEAD
from veilmesh.swarm.strategies.ring import Ring

RING = {"strategy": "ring-all-reduce"}
DRAWN = {**RING, "options": {"order": "drawn"}}
NO_RNG = np.random.Generator(np.random.PCG64(0))


def blob(value: float, count: int) -> bytes:
    return table.encode(Dense(), np.full(count, value, np.float32), NO_RNG)


def passed(round_: int, number: int, value: float = 0.1, length: int = 4, **changes: object) -> bytes:
    said = {"round": round_, "part": number, "count": 1, "blob": blob(value, length), **changes}
    return messages.encode(messages.Passed(**said))


def averaged(round_: int, number: int, value: float = 0.1, length: int = 4, **changes: object) -> bytes:
    said = {"round": round_, "part": number, "count": 3, "blob": blob(value, length), "levels": b"", **changes}
    return messages.encode(messages.Averaged(**said))


def says(world, index: int, kind: type):
    return [(to, m) for sender, to, m in world.said if sender == world.ids[index] and isinstance(m, kind)]


def halves(world, *members: int) -> np.ndarray:
    """Models after training in round 0, and nothing else."""
    return np.array([world[i].target * world.rate for i in members])


@pytest.fixture
def ring(lab):
    """Builds a world of a ring that has not started."""

    def build(peers: int, **options):
        world = lab.build(peers, **{**RING, **options})
        world.rate = lab.rate
        return world

    return build


# --- the ring --------------------------------------------------------------------------------------------------------


@given(members=st.integers(1, 20), dimension=st.integers(1, 60), data=st.data())
def test_a_part_walks_once_round_over_all_that_are_there(members: int, dimension: int, data) -> None:
    order = tuple(PeerId(f"p{i}") for i in range(members))
    ring = Ring(order, dimension)
    there = data.draw(st.sets(st.sampled_from(order), min_size=1))
    for part in ring.parts:
        at = ring.first(part, there)
        walk = [at]
        while (after := ring.after(part, at, there)) is not None:
            assert ring.behind(after, there)[-1] == at
            assert set(ring.behind(after, there)[:-1]) == set(ring.between(at, after))
            walk.append(at := after)
        assert sorted(walk) == sorted(there)
        assert walk[-1] == ring.end(part) or ring.end(part) not in there
        assert [ring.steps(part, p) for p in walk] == sorted(ring.steps(part, p) for p in walk)


def test_a_drawn_ring_is_another_in_every_round_and_alike_for_everybody() -> None:
    rings = {random_ring(1, round_, 7) for round_ in range(50)}
    assert len(rings) > 45
    assert all(sorted(order) == list(range(7)) for order in rings)
    assert random_ring(1, 3, 7) != random_ring(2, 3, 7)


# --- what it comes to ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, DRAWN], ids=["roster", "drawn"])
@pytest.mark.parametrize("peers", [1, 2, 3, 8, 13])
def test_a_round_is_the_mean_of_all_models_and_everybody_has_the_same_bits(ring, peers: int, options) -> None:
    world = ring(peers, rounds=1, **options).start().settle()
    for model in world.models():
        np.testing.assert_allclose(model, halves(world, *range(peers)).mean(0), rtol=1e-6, atol=1e-7)
    assert len({model.tobytes() for model in world.models()}) == 1
    assert all(player.noted("round") == [{"round": 0, "group": peers}] for player in world.players.values())


@pytest.mark.parametrize("order", ["roster", "drawn"])
def test_it_comes_to_what_one_group_of_all_comes_to(lab, order: str) -> None:
    ringed = lab.build(8, **RING, options={"order": order}, rounds=12).start().settle()
    group = lab.build(8, strategy="group-all-reduce", options={"group": 8}, rounds=12).start().settle()
    np.testing.assert_allclose(ringed.models()[0], group.models()[0], atol=2e-6)


def test_everybody_speaks_to_the_next_one_only_and_says_two_vectors_less_two_parts(ring) -> None:
    world = ring(8, rounds=1, dimension=4000).start().settle()
    for index in range(8):
        said = [(to, m) for sender, to, m in world.said if sender == world.ids[index]]
        assert {to for to, _ in said} == {world.ids[(index + 1) % 8]}
        assert abs(sum(len(m.blob) for _, m in said) - 2 * 7 / 8 * 4 * 4000) < 40
        assert [len(says(world, index, kind)) for kind in (messages.Passed, messages.Averaged)] == [7, 7]


def test_a_part_starts_as_one_members_own_and_gathers_one_model_a_step(ring) -> None:
    world = ring(4, rounds=1).start().settle()
    own = halves(world, *range(4))
    for sender, _, message in world.said:
        if isinstance(message, messages.Passed):
            members = [(message.part + step) % 4 for step in range(message.count)]
            assert world.ids[members[-1]] == sender
            values = table.decode(message.blob, 3).values
            span = slice(3 * message.part, 3 * message.part + 3)
            np.testing.assert_allclose(values, own[members].mean(0)[span], atol=1e-6)


@settings(max_examples=examples(10))
@given(data=st.data(), peers=st.integers(2, 6), order=st.sampled_from(["roster", "drawn"]))
def test_no_order_of_delivery_changes_a_bit(lab, data, peers: int, order: str) -> None:
    built = {**RING, "options": {"order": order}, "rounds": 4, "guards": [GUARDS.build("noise")]}
    straight = lab.build(peers, **built).start().settle()
    random = data.draw(st.randoms(use_true_random=False))
    shuffled = lab.build(peers, **built).start().settle(lambda count: random.randrange(count))
    assert [m.tobytes() for m in straight.models()] == [m.tobytes() for m in shuffled.models()]
    assert not any(player.refused for player in shuffled.players.values())
    assert len({m.tobytes() for m in shuffled.models()}) == 1


def test_more_peers_than_coordinates_average_all_the_same(ring) -> None:
    world = ring(9, rounds=2, dimension=4).start().settle()
    assert len({m.tobytes() for m in world.models()}) == 1
    assert all([d["group"] for d in player.noted("round")] == [9, 9] for player in world.players.values())


def test_a_lossy_codec_and_a_mesh_without_all_links_are_refused_with_what_to_do(ring) -> None:
    with pytest.raises(BadInput, match="leave codec out"):
        ring(3, codec=CODECS.build("8-bit"))
    with pytest.raises(BadInput, match="topology to complete"):
        STRATEGIES.build("ring-all-reduce").weights(nx.cycle_graph(5))


# --- losses, deaths --------------------------------------------------------------------------------------------------


@settings(max_examples=examples(30))
@given(
    steps=st.integers(0, 90), peers=st.integers(3, 6), random=st.randoms(use_true_random=False),
    order=st.sampled_from(["roster", "drawn"]), lag=st.integers(0, 30),
)  # fmt: skip
def test_whoever_dies_at_whatever_moment_the_others_end_alike_and_whole(lab, steps, peers, random, order, lag) -> None:
    """And whoever notices it how much later: in every round all who are left are in everybody's average. (But for the
    last: who is done with that answers nobody any more, and a part may have been lost on its way from it.)"""
    world = lab.build(peers, **RING, options={"order": order}, rounds=4).start()

    def go(count: int) -> None:
        for _ in range(count):
            if world.pending:
                world.step(random.randrange(len(world.pending)))

    go(steps)
    if all(player.outcome for player in world.players.values()):
        return
    dead = world.ids[random.randrange(peers)]
    del world.players[dead]
    world.pending = [(peer, what) for peer, what in world.pending if peer != dead]
    world.lost = lambda sender, to, message: to == dead
    for peer in random.sample(sorted(world.players), len(world.players)):
        world.feed(peer, PeersChanged(frozenset(world.players) - {peer}))
        go(random.randrange(lag + 1))
    if not any(player.noted("round")[2:] for player in world.players.values()):
        assert len(set(begun(world, 3).values())) == 1
    world.finish()
    for player in world.players.values():
        assert player.outcome.reason == "finished"
        assert not player.refused
        assert min(d["group"] for d in player.noted("round")[:3]) >= peers - 1


def test_a_member_that_is_gone_is_stepped_over_and_no_timer_has_to_fire(ring) -> None:
    world = ring(5, rounds=3).start()
    world.pending = [(p, what) for p, what in world.pending if p != "p2"]  # it never speaks
    world.settle()
    world.die(2)
    world.settle()
    np.testing.assert_allclose([m for m in world.models()], np.broadcast_to(world.models()[0], (4, 12)), rtol=0, atol=0)
    for player in world.players.values():
        assert [d["group"] for d in player.noted("round")] == [4] * 3
        assert not player.noted("partial")
        assert not player.noted("late")
        assert not player.refused


def test_what_the_dead_has_passed_on_before_is_counted(ring) -> None:
    world = ring(3, rounds=1).start()
    while len(says(world, 1, messages.Passed)) < 2:
        world.step()
    world.die(1)  # what it said is still under way
    world.settle()
    groups = [d["group"] for player in world.players.values() for d in player.noted("round")]
    assert groups in ([2, 2], [3, 3])
    assert len({m.tobytes() for m in world.models()}) == 1


def begun(world, round_: int) -> dict[PeerId, bytes]:
    """What everybody trains from in a round, to the bit; the world goes on until all have come to it."""
    found: dict[PeerId, bytes] = {}
    while len(found) < len(world.players):
        for peer, what in world.pending:
            if isinstance(what, Work) and what.name == f"train-{round_}":
                found[peer] = what.task.parameters.tobytes()
        if not world.pending:
            world.ring()
        elif len(found) < len(world.players):
            of = {p for p, what in world.pending if isinstance(what, Work) and p in found}
            world.step(next((i for i, (p, _) in enumerate(world.pending) if p not in of), 0))
    return found


@pytest.mark.parametrize("told", [True, False])
def test_a_last_one_that_dies_leaves_all_with_the_same_average(ring, told: bool) -> None:
    """Part 0 of four ends at p3, which dies after it has said so to p0, or before: p2 cannot know which."""
    world = ring(4, rounds=2).start()
    world.lost = lambda sender, to, message: sender == "p3" and isinstance(message, messages.Averaged) and not (
        told and message.part == 0
    )  # fmt: skip
    while not any(m.part == 0 for _, m in says(world, 3, messages.Averaged)):
        world.step()
    world.die(3)
    assert len(set(begun(world, 1).values())) == 1
    assert not any(player.noted("partial") for player in world.players.values())
    counts = {m.count for index in range(3) for _, m in says(world, index, messages.Averaged) if m.part == 0}
    assert counts == ({4} if told else {3})


def test_one_that_is_silent_is_left_out_at_half_time_and_the_round_is_whole(ring) -> None:
    world = ring(5, rounds=2).start()
    world.pending = [(p, what) for p, what in world.pending if p != "p2"]
    world.players[PeerId("p2")].timers.clear()
    while any(world[i].outcome is None for i in (0, 1, 3, 4)):
        world.settle()
        if all(world[i].outcome for i in (0, 1, 3, 4)):
            break
        world.ring()
        world.pending = [(p, what) for p, what in world.pending if p != "p2"]
    alive = [world[i] for i in (0, 1, 3, 4)]
    assert len({player.outcome.parameters.tobytes() for player in alive}) == 1
    for player in alive:
        assert [d["group"] for d in player.noted("round")] == [4, 4]
        assert not player.noted("partial")
    assert world[3].noted("late") == [{"round": r, "peers": ["p2"]} for r in range(2)]
    assert world.now < 2 * 10 * 6 / 8


def test_one_that_is_slow_finds_what_the_others_came_to(ring) -> None:
    world = ring(4, rounds=3).start()
    held = [(p, what) for p, what in world.pending if p == "p2"]
    world.pending = [(p, what) for p, what in world.pending if p != "p2"]
    while not all(world[i].noted("round") for i in (0, 1, 3)):
        world.settle()
        if not all(world[i].noted("round") for i in (0, 1, 3)):
            world.ring()
    world.pending += held
    world.finish()
    assert len({m.tobytes() for m in world.models()}) == 1
    assert [d["group"] for d in world[2].noted("round")] == [3, 4, 4]
    assert not any(player.noted("partial") for player in world.players.values())


@pytest.mark.parametrize("kind", [messages.Passed, messages.Averaged])
def test_a_lost_frame_is_said_again_and_costs_a_quarter_of_the_patience(ring, kind: type) -> None:
    lost = []

    def once(sender: str, to: str, message: messages.Message) -> bool:
        if (sender, to) == ("p1", "p2") and isinstance(message, kind) and not lost:
            lost.append(message)
            return True
        return False

    world = ring(4, rounds=3)
    world.lost = once
    world.start().finish()
    assert lost
    assert world.now < 10 / 4 + 1
    assert all([d["group"] for d in player.noted("round")] == [4] * 3 for player in world.players.values())
    assert not any(player.refused or player.noted("late") for player in world.players.values())


def test_a_link_that_loses_everything_ends_the_round_by_patience_and_says_what_is_missing(ring) -> None:
    world = ring(3, rounds=1)
    world.lost = lambda sender, to, message: (sender, to) == ("p1", "p2") and not isinstance(message, messages.Ask)
    world.start().finish()
    assert world.now <= 10.1
    for player in world.players.values():
        assert player.outcome.reason == "finished"
        if partial := player.noted("partial"):
            assert partial[0]["of"] == 3
            assert player.noted("round")[0]["group"] == 1


def test_after_a_round_that_was_not_whole_the_next_makes_all_alike_again(ring) -> None:
    world = ring(4, rounds=2)
    world.lost = lambda sender, to, message: message.round == 0
    world.start().finish()
    assert all([d["group"] for d in player.noted("round")] == [1, 4] for player in world.players.values())
    assert len({m.tobytes() for m in world.models()}) == 1


@settings(max_examples=examples(20))
@given(random=st.randoms(use_true_random=False), peers=st.integers(2, 6), order=st.sampled_from(["roster", "drawn"]))
def test_who_is_done_and_leaves_changes_nothing_for_those_that_are_not(lab, random, peers: int, order: str) -> None:
    """A goodbye comes after all that its sender has said to the same peer, and is no reason to do without it."""
    built = {**RING, "options": {"order": order}, "rounds": 2}
    straight = lab.build(peers, **built).start().settle()
    world = lab.build(peers, **built).start()
    left, goodbyes = {p: set(world.ids) - {p} for p in world.ids}, []
    while world.pending or goodbyes:
        under_way = {(what.sender, to) for to, what in world.pending if isinstance(what, Received)}
        ready = [(who, to) for who, to in goodbyes if (who, to) not in under_way]
        number = random.randrange(len(world.pending) + len(ready))
        if number < len(world.pending):
            world.step(number)
        else:
            who, to = ready[number - len(world.pending)]
            goodbyes.remove((who, to))
            left[to].remove(who)
            world.feed(to, PeersChanged(frozenset(left[to])))
        for who in [p for p in left if world.players[p].outcome]:
            goodbyes += [(who, to) for to in left if to != who and not world.players[to].outcome]
            del left[who]
        goodbyes = [(who, to) for who, to in goodbyes if to in left]
    assert [m.tobytes() for m in world.models()] == [m.tobytes() for m in straight.models()]
    assert not any(player.refused for player in world.players.values())


def test_all_others_dead_is_training_alone(ring) -> None:
    world = ring(3, rounds=3).start()
    world.die(1)
    world.die(2)
    world.settle()
    assert [d["group"] for d in world[0].noted("round")] == [1] * 3


@settings(max_examples=examples(13))
@given(random=st.randoms(use_true_random=False), peers=st.integers(2, 6), order=st.sampled_from(["roster", "drawn"]))
def test_it_ends_whatever_is_lost(lab, random, peers: int, order: str) -> None:
    world = lab.build(peers, **RING, options={"order": order}, rounds=4)
    world.lost = lambda sender, to, message: random.random() < 0.3
    world.start().finish()
    assert [p.outcome.reason for p in world.players.values()] == ["finished"] * peers
    assert np.isfinite(world.models()).all()


# --- lies ------------------------------------------------------------------------------------------------------------


def test_messages_that_do_not_fit_are_refused_and_change_nothing(lab, ring, refused: Callable[..., Refusal]) -> None:
    world = ring(3, rounds=100).start()
    machine, before_us, other = world[0].machine, PeerId("p2"), PeerId("p1")
    machine.handle(Received(before_us, passed(1, 2)), 0.0)
    machine.handle(Received(before_us, averaged(1, 1)), 0.0)
    cases = {
        "a stranger's": (PeerId("p9"), passed(0, 0), Refusal.MISMATCH),
        "its own": (PeerId("p0"), passed(0, 0), Refusal.MISMATCH),
        "a stranger's question": (PeerId("p9"), messages.encode(messages.Ask(0)), Refusal.MISMATCH),
        "too far ahead": (before_us, passed(AHEAD, 2), Refusal.MISMATCH),
        "a question too far ahead": (before_us, messages.encode(messages.Ask(AHEAD)), Refusal.MISMATCH),
        "ahead, and not from behind": (other, passed(2, 1), Refusal.MISMATCH),
        "an average ahead, and not from behind": (other, averaged(2, 1), Refusal.MISMATCH),
        "a part there is not": (before_us, passed(0, 3), Refusal.MISMATCH),
        "more models than it has passed": (before_us, passed(0, 2, count=2), Refusal.MISMATCH),
        "more models than members": (before_us, averaged(0, 1, count=4), Refusal.MISMATCH),
        "levels beside a lossless part": (before_us, averaged(0, 0, levels=blob(1.0, 4)), Refusal.MISMATCH),
        "a part of a butterfly": (before_us, messages.encode(messages.Part(0, 1, blob(1.0, 4), b"")), Refusal.MISMATCH),
        "an update": (before_us, messages.encode(messages.Update(0, 1, blob(1.0, 12))), Refusal.MISMATCH),
        "huge": (before_us, passed(0, 2, 1e7), Refusal.MISMATCH),
        "huge, averaged": (before_us, averaged(0, 1, 1e7), Refusal.MISMATCH),
        "another length": (before_us, passed(0, 2, length=5), Refusal.MISMATCH),
        "a lossy codec": (before_us, passed(0, 2, blob=table.encode(CODECS.build("8-bit"), np.ones(4, np.float32),
                                                                   NO_RNG)), Refusal.MISMATCH),
        "NaN": (before_us, passed(0, 2, blob=blob(1.0, 4)[:-4] + b"\x00\x00\xc0\x7f"), Refusal.MALFORMED),
        "no blob": (before_us, passed(0, 2, blob=b""), Refusal.MALFORMED),
        "the mean of none": (before_us, passed(0, 2, count=0), Refusal.MALFORMED),
        "no message": (before_us, b"\xc1", Refusal.MALFORMED),
    }  # fmt: skip
    for what, (sender, body, why) in cases.items():
        assert refused(machine, Received(sender, body)) == why, what
    before = lab.snapshot(machine)
    assert machine.handle(Received(before_us, passed(1, 2, 0.7)), 0.0) == []  # the first one counts
    assert machine.handle(Received(before_us, averaged(1, 1, 0.7)), 0.0) == []
    assert lab.snapshot(machine) == before


def test_what_comes_late_is_passed_over(lab, ring) -> None:
    world = ring(3, rounds=3).start()
    while world[0].machine._round == 0:
        world.step()
    before = lab.snapshot(world[0].machine)
    assert world[0].machine.handle(Received(PeerId("p2"), averaged(0, 1)), 0.0) == []
    assert lab.snapshot(world[0].machine) == before


def test_an_average_from_who_is_not_behind_us_is_not_taken(ring) -> None:
    world = ring(4, rounds=1).start()
    for number in range(4):
        world.feed(PeerId("p0"), Received(PeerId("p2"), averaged(0, number, 9.0, 3)))
    world.settle()
    assert len({m.tobytes() for m in world.models()}) == 1
    assert np.abs(world.models()[0]).max() < 5


def test_whoever_asks_is_told_once_however_often(ring) -> None:
    world = ring(3, rounds=3).start()
    while world[0].machine._round == 0:
        world.step()
    before = len(world.said)
    for _ in range(50):
        world.feed(PeerId("p0"), Received(PeerId("p1"), messages.encode(messages.Ask(0))))
        world.feed(PeerId("p0"), Received(PeerId("p1"), passed(0, 1)))
    assert [to for _, to, m in world.said[before:]] == ["p1"] * 3


def test_nobody_is_left_out_because_somebody_asks_before_half_time(ring) -> None:
    world = ring(4, rounds=1).start()
    world.pending = [(p, what) for p, what in world.pending if p == "p0"]
    world.settle()  # p0 has trained, and waits
    world.feed(PeerId("p0"), Received(PeerId("p2"), messages.encode(messages.Ask(0))))
    assert not world[0].noted("late")
    assert {to for to, _ in says(world, 0, messages.Passed)} == {"p1"}


def test_what_is_said_ahead_does_not_pile_up(ring) -> None:
    world = ring(6, rounds=1000).start()
    for round_ in (0, 1, 2, *range(AHEAD - 1, AHEAD + 2)):
        for number in range(6):
            for sender in ("p1", "p2", "p3", "p4", "p5"):
                world.feed(PeerId("p0"), Received(PeerId(sender), passed(round_, number, length=2)))
                world.feed(PeerId("p0"), Received(PeerId(sender), averaged(round_, number, length=2)))
    kept = sum(len(tokens) for tokens in world[0].machine._inbox._kept.values())
    assert kept == 2 * 6 * (2 * 4 + 2 * 1)  # of every part four in two rounds, and one in rounds further ahead


@settings(max_examples=examples(40))
@given(body=st.binary(max_size=80), sender=st.sampled_from(["p1", "p2", "p7"]))
def test_arbitrary_bytes_never_break_a_machine(lab, body: bytes, sender: str) -> None:
    world = lab.build(3, **RING).start()
    world.feed(PeerId("p0"), Received(PeerId(sender), body))
    world.settle()


def test_nothing_is_said_to_the_dead(ring) -> None:
    world = ring(3, rounds=2).start()
    world.feed(PeerId("p0"), PeersChanged(frozenset({PeerId("p2")})))
    [train] = [what for peer, what in world.pending if peer == "p0"]
    effects = world[0].machine.handle(WorkDone(train.name, world[0].work(train.task)), 0.0)
    assert {e.to for e in effects if isinstance(e, Send)} == {"p2"}
