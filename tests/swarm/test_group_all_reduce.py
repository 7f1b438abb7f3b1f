"""All-reduce in groups: exact where nothing goes wrong, honest about its groups where something does."""

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
from veilmesh.crypto.codecs.quantised import EightBit
from veilmesh.crypto.codecs.topk import TopK
from veilmesh.peer.machine import PeerId, PeersChanged, Received, Send, Work, WorkDone
from veilmesh.swarm import messages
from veilmesh.swarm.schedule import random_groups
from veilmesh.swarm.strategies.base import STRATEGIES
from veilmesh.swarm.strategies.butterfly import Butterfly, mean
from veilmesh.swarm.strategies.group_inbox import AHEAD

GROUPS = {"strategy": "group-all-reduce"}
NO_RNG = np.random.Generator(np.random.PCG64(0))


def blob(value: float, count: int) -> bytes:
    return table.encode(Dense(), np.full(count, value, np.float32), NO_RNG)


def part(round_: int, number: int, value: float = 0.1, count: int = 4, **changes: object) -> bytes:
    said = {"round": round_, "part": number, "blob": blob(value, count), "levels": b"", **changes}
    return messages.encode(messages.Part(**said))


def averaged(round_: int, number: int, value: float = 0.1, length: int = 4, **changes: object) -> bytes:
    said = {"round": round_, "part": number, "count": 3, "blob": blob(value, length), "levels": b"", **changes}
    return messages.encode(messages.Averaged(**said))


def members(world, round_: int, index: int, size: int) -> tuple[int, ...]:
    return random_groups(5, round_, len(world.ids), size)[index]


# --- groups and parts ------------------------------------------------------------------------------------------------


@given(peers=st.integers(2, 90), size=st.integers(2, 64), seed=st.integers(0, 99), round_=st.integers(0, 99))
def test_groups_divide_the_roster_evenly_and_nobody_is_alone(peers: int, size: int, seed: int, round_: int) -> None:
    group_of = random_groups(seed, round_, peers, size)
    assert all(place in group_of[place] and group_of[place] == group_of[group_of[place][0]] for place in range(peers))
    groups = set(group_of)
    assert sorted(place for group in groups for place in group) == list(range(peers))
    sizes = {len(group) for group in groups}
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 2
    assert max(sizes) <= size or (size, peers % 2, max(sizes)) == (2, 1, 3)  # an odd one has to go somewhere


def test_groups_are_drawn_anew_every_round_and_everybody_meets_everybody() -> None:
    met = np.zeros((12, 12))
    for round_ in range(300):
        for place, group in enumerate(random_groups(0, round_, 12, 4)):
            met[place, list(group)] += 1
    apart = met[~np.eye(12, dtype=bool)]
    assert np.abs(apart / 300 - 3 / 11).max() < 0.1
    assert random_groups(0, 0, 12, 4) != random_groups(1, 0, 12, 4)


@given(members=st.integers(1, 64), dimension=st.integers(1, 200), every=st.integers(1, 20), round_=st.integers(0, 50))
def test_parts_cover_the_vector_once_and_levels_once_in_so_many_rounds(
    members: int, dimension: int, every: int, round_: int
) -> None:
    ids = tuple(PeerId(f"p{i}") for i in range(members))
    seen, swept = np.zeros(dimension, int), np.zeros(dimension, int)
    butterfly = Butterfly(ids, dimension, 0, every)
    for number in butterfly.parts:
        seen[butterfly.span(number)] += 1
        assert butterfly.length(number) == len(seen[butterfly.span(number)]) >= 1
    assert (seen == 1).all()
    for later in range(round_, round_ + every):
        butterfly = Butterfly(ids, dimension, later % every, every)
        for number in butterfly.parts:
            swept[butterfly.levels(number)] += 1
            assert butterfly.level_count(number) == len(swept[butterfly.levels(number)])
    assert (swept == 1).all()


def test_the_next_one_that_is_there_averages_for_one_that_is_gone() -> None:
    a, b, c = (PeerId(x) for x in "abc")
    butterfly = Butterfly((a, b, c), 9, 0, 1)
    assert [butterfly.reducer(k, {a, b, c}) for k in range(3)] == [a, b, c]
    assert [butterfly.reducer(k, {a, c}) for k in range(3)] == [a, c, c]
    assert [butterfly.reducer(k, {b}) for k in range(3)] == [b, b, b]


def test_a_mean_is_summed_in_double_precision() -> None:
    pieces = [(np.float32([value]), np.zeros(0, np.float32)) for value in (1e6, 1e-2, -1e6)]
    np.testing.assert_allclose(mean(pieces)[0], 1e-2 / 3, rtol=1e-6)


# --- what it comes to ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peers", [2, 3, 8, 13])
def test_one_group_of_all_is_fedavg(lab, peers: int) -> None:
    groups = lab.build(peers, **GROUPS, options={"group": 64}, rounds=12).start().settle()
    star = lab.build(peers, strategy="fedavg", rounds=12).start().settle()
    assert len({model.tobytes() for model in groups.models()}) == 1
    np.testing.assert_allclose(groups.models()[0], star.models()[0], atol=2e-6)
    assert all(data["group"] == peers for player in groups.players.values() for data in player.noted("round"))


def test_a_round_is_the_exact_average_of_the_group(lab) -> None:
    world = lab.build(9, **GROUPS, options={"group": 4}, rounds=1).start().settle()
    half = np.array([player.target * lab.rate for player in world.players.values()])
    for index in range(9):
        group = members(world, 0, index, 4)
        np.testing.assert_allclose(world[index].outcome.parameters, half[list(group)].mean(0), atol=1e-6)
        assert world[index].noted("round") == [{"round": 0, "group": len(group)}]


def test_a_round_costs_two_vectors_less_two_parts(lab) -> None:
    world = lab.build(8, **GROUPS, options={"group": 4}, rounds=1, dimension=4000).start().settle()
    said = [len(m.blob) for sender, _, m in world.said if sender == "p3"]
    assert abs(sum(said) - 2 * 3 / 4 * 4 * 4000) < 20


@settings(max_examples=examples(20))
@given(data=st.data(), peers=st.integers(2, 7), codec=st.sampled_from(["dense", "8-bit", "top-k", "rand-k"]))
def test_no_order_of_delivery_changes_a_bit(lab, data, peers: int, codec: str) -> None:
    built = {**GROUPS, "options": {"group": 3}, "rounds": 5, "codec": CODECS.build(codec)}
    straight = lab.build(peers, **built).start().settle()
    random = data.draw(st.randoms(use_true_random=False))
    shuffled = lab.build(peers, **built).start().settle(lambda count: random.randrange(count))
    assert [m.tobytes() for m in straight.models()] == [m.tobytes() for m in shuffled.models()]
    assert not any(player.refused for player in shuffled.players.values())


@settings(max_examples=examples(20))
@given(peers=st.integers(2, 7), group=st.integers(2, 4), sweep=st.integers(1, 5), codec=st.sampled_from(CODECS.names()))
def test_what_was_learnt_is_in_the_models_or_still_to_be_said(lab, peers, group, sweep, codec) -> None:
    """Whatever the codec: the sum over peers of model and memory is the sum of all updates."""
    options = {"group": group, "sweep": sweep}
    world = lab.build(peers, **GROUPS, options=options, rounds=6, codec=CODECS.build(codec)).start()
    learnt = np.zeros(lab.dimension)
    while world.pending:
        peer, what = world.pending[0]
        if isinstance(what, Work) and what.name.startswith("train"):
            learnt += world.players[peer].work(what.task).update
        world.step()
    machines = [player.machine for player in world.players.values()]
    there = sum(m._x.astype(np.float64) + (0 if codec == "dense" else m._codec.left_out) for m in machines)
    np.testing.assert_allclose(there, learnt, atol=1e-3)


@pytest.mark.parametrize("codec", [EightBit(), TopK(0.25)], ids=["8-bit", "top-k"])
def test_with_a_lossy_codec_all_come_to_the_common_bottom(lab, codec: object) -> None:
    world = lab.build(8, **GROUPS, options={"group": 4}, rounds=150, codec=codec).start().settle()
    bottom = np.mean([world[i].target for i in range(8)], axis=0)
    for model in world.models():
        assert np.linalg.norm(model - bottom) < 0.5 * np.linalg.norm(bottom - world[0].target)
    np.testing.assert_allclose(np.mean(world.models(), axis=0), bottom, atol=0.2)


def test_equal_models_stay_equal_with_a_lossy_codec(lab) -> None:
    world = lab.build(4, **GROUPS, rounds=20, codec=TopK(0.25)).start().settle()
    models = np.array(world.models())
    np.testing.assert_allclose(models, np.broadcast_to(models[0], models.shape), atol=1e-4)


def test_a_mesh_that_lacks_a_link_is_refused_with_what_to_do() -> None:
    with pytest.raises(BadInput, match="topology to complete"):
        STRATEGIES.build("group-all-reduce").weights(nx.cycle_graph(5))


# --- losses, deaths --------------------------------------------------------------------------------------------------


def test_a_reducer_that_dies_is_replaced_in_the_same_round(lab) -> None:
    """No timer has to fire, and no coordinate is left out."""
    world = lab.build(4, **GROUPS, rounds=3).start()
    world.pending = [(p, what) for p, what in world.pending if p != "p1"]  # it never speaks
    world.settle()
    half = np.array([world[i].target * lab.rate for i in (0, 2, 3)])
    world.die(1)
    while not world[0].noted("round"):
        world.step()
    np.testing.assert_allclose(world[0].machine._x, half.mean(0), atol=1e-6)
    world.settle()
    for player in world.players.values():
        assert [data["group"] for data in player.noted("round")] == [3] * 3
        assert not player.noted("partial")
        assert not player.refused
    assert len({m.tobytes() for m in world.models()}) == 1


def test_a_reducer_that_died_after_its_say_is_not_asked_again(lab) -> None:
    world = lab.build(3, **GROUPS, rounds=1).start()
    world.settle()
    told = {to for sender, to, m in world.said if sender == "p1" and isinstance(m, messages.Averaged)}
    assert told == {"p0", "p2"}

    world = lab.build(3, **GROUPS, rounds=1).start()
    while not any(sender == "p1" and isinstance(m, messages.Averaged) for sender, _, m in world.said):
        world.step()
    world.die(1)  # what it said is still under way
    world.settle()
    assert [data["group"] for player in world.players.values() for data in player.noted("round")] == [3, 3]


def test_deaths_are_noticed_at_different_moments_and_nothing_is_lost(lab) -> None:
    world = lab.build(4, **GROUPS, rounds=2).start()
    world.pending = [(p, what) for p, what in world.pending if p != "p1"]
    world.settle()
    for index in (0, 2, 3):  # p2, the deputy, learns of it while parts of p0 are under way, or there
        rest = frozenset(world.ids) - {"p1", world.ids[index]}
        world[index].neighbours = tuple(sorted(rest))
        world.feed(world.ids[index], PeersChanged(rest))
        world.settle()
    for index in (0, 2, 3):
        assert [data["group"] for data in world[index].noted("round")] == [3, 3]
        assert not world[index].refused


def test_one_that_is_silent_is_left_out_at_half_time_and_its_part_stays_as_it_is(lab) -> None:
    world = lab.build(4, **GROUPS, rounds=1).start()
    world.pending = [(p, what) for p, what in world.pending if p != "p1"]
    world.settle()
    targets = [world[i].target * lab.rate for i in range(4)]
    while any(world[i].outcome is None for i in (0, 2, 3)):
        world.ring()
        world.settle()
    assert world.now < 10.1
    others = np.mean([targets[i] for i in (0, 2, 3)], axis=0)
    for index in (0, 2, 3):
        assert world[index].noted("late") == [{"round": 0, "peers": ["p1"]}]
        assert world[index].noted("partial") == [{"round": 0, "parts": [1], "of": 4}]
        assert world[index].noted("round") == [{"round": 0, "group": 1}]  # honest: of some coordinates, nobody's
        x = world[index].outcome.parameters
        np.testing.assert_allclose(x[3:6], targets[index][3:6], atol=1e-6)
        np.testing.assert_allclose(np.delete(x, [3, 4, 5]), np.delete(others, [3, 4, 5]), atol=1e-6)


@pytest.mark.parametrize("kind", [messages.Part, messages.Averaged])
def test_a_lost_frame_is_said_again_and_costs_a_quarter_of_the_patience(lab, kind: type) -> None:
    lost = []

    def once(sender: str, to: str, message: messages.Message) -> bool:
        if (sender, to) == ("p1", "p2") and isinstance(message, kind) and not lost:
            lost.append(message)
            return True
        return False

    world = lab.build(3, **GROUPS, rounds=3)
    world.lost = once
    world.start().finish()
    assert lost
    assert world.now < 10 / 4 + 1
    assert all([data["group"] for data in player.noted("round")] == [3] * 3 for player in world.players.values())
    assert not any(player.refused or player.noted("late") for player in world.players.values())


def test_an_average_that_never_comes_leaves_one_peer_with_its_own_part(lab) -> None:
    world = lab.build(3, **GROUPS, rounds=1)
    world.lost = lambda sender, to, message: (sender, to) == ("p1", "p2") and isinstance(message, messages.Averaged)
    world.start().finish()
    assert world[2].noted("partial") == [{"round": 0, "parts": [1], "of": 3}]
    assert [world[i].noted("round")[0]["group"] for i in range(3)] == [3, 3, 1]


def test_an_average_is_repeated_once_however_often_one_asks(lab) -> None:
    world = lab.build(2, **GROUPS, rounds=3).start()
    while world[0].machine._round == 0:
        world.step()
    before = len(world.said)
    for _ in range(50):
        world.feed(PeerId("p0"), Received(PeerId("p1"), part(0, 0, count=6)))
    assert [to for _, to, _ in world.said[before:]] == ["p1"]


def test_a_peer_alone_in_its_group_goes_on_and_says_so(lab) -> None:
    world = lab.build(4, **GROUPS, options={"group": 2}, rounds=6).start()
    world.die(3)
    world.settle()
    for index, player in enumerate(world.players.values()):
        sizes = [len(set(random_groups(5, r, 4, 2)[index]) - {3}) for r in range(6)]
        assert [data["group"] for data in player.noted("round")] == sizes
        assert player.outcome.reason == "finished"


def test_all_others_dead_is_training_alone(lab) -> None:
    world = lab.build(3, **GROUPS, rounds=3).start()
    world.die(1)
    world.die(2)
    world.settle()
    assert [data["group"] for data in world[0].noted("round")] == [1] * 3


@settings(max_examples=examples(20))
@given(random=st.randoms(use_true_random=False), peers=st.integers(2, 6), codec=st.sampled_from(["dense", "top-k"]))
def test_it_ends_whatever_is_lost(lab, random, peers: int, codec: str) -> None:
    world = lab.build(peers, **GROUPS, options={"group": 3}, rounds=4, codec=CODECS.build(codec))
    world.lost = lambda sender, to, message: random.random() < 0.3
    world.start().finish()
    assert [p.outcome.reason for p in world.players.values()] == ["finished"] * peers
    assert np.isfinite(world.models()).all()


# --- lies ------------------------------------------------------------------------------------------------------------


def test_messages_that_do_not_fit_are_refused_and_change_nothing(lab, refused: Callable[..., Refusal]) -> None:
    world = lab.build(3, **GROUPS, rounds=100).start()
    machine, honest = world[0].machine, PeerId("p1")
    machine.handle(Received(honest, part(1, 0)), 0.0)
    machine.handle(Received(honest, averaged(1, 1)), 0.0)
    cases = {
        "a stranger's": (PeerId("p9"), part(0, 0), Refusal.MISMATCH),
        "its own": (PeerId("p0"), part(0, 0), Refusal.MISMATCH),
        "too far ahead": (honest, part(AHEAD, 0), Refusal.MISMATCH),
        "ahead, and another's turn": (honest, part(2, 2), Refusal.MISMATCH),
        "ahead, and not its turn": (honest, averaged(2, 0), Refusal.MISMATCH),
        "a part there is not": (honest, part(0, 3), Refusal.MISMATCH),
        "more models than members": (honest, averaged(0, 1, count=4), Refusal.MISMATCH),
        "levels beside a lossless part": (honest, part(0, 0, levels=blob(1.0, 4)), Refusal.MISMATCH),
        "an update": (honest, messages.encode(messages.Update(0, 1, blob(1.0, 12))), Refusal.MISMATCH),
        "huge": (honest, part(0, 0, 1e7), Refusal.MISMATCH),
        "huge, averaged": (honest, averaged(0, 1, 1e7), Refusal.MISMATCH),
        "another length": (honest, part(0, 0, count=5), Refusal.MISMATCH),
        "NaN": (honest, part(0, 0, blob=blob(1.0, 4)[:-4] + b"\x00\x00\xc0\x7f"), Refusal.MALFORMED),
        "no blob": (honest, part(0, 0, blob=b""), Refusal.MALFORMED),
        "a model of none": (honest, averaged(0, 1, count=0), Refusal.MALFORMED),
        "no message": (honest, b"\xc1", Refusal.MALFORMED),
    }
    for what, (sender, body, why) in cases.items():
        assert refused(machine, Received(sender, body)) == why, what
    before = lab.snapshot(machine)
    assert machine.handle(Received(honest, part(1, 0, 0.7)), 0.0) == []  # the first one counts
    assert machine.handle(Received(honest, averaged(1, 1, 0.7)), 0.0) == []
    assert lab.snapshot(machine) == before


def test_lossy_parts_have_levels_and_both_are_in_range(lab, refused: Callable[..., Refusal]) -> None:
    world = lab.build(3, **GROUPS, rounds=9, codec=EightBit()).start()
    bad = {"none": b"", "other": blob(1.0, 3), "huge": blob(1e7, 4)}
    for what, levels in bad.items():
        assert refused(world[0].machine, Received(PeerId("p1"), part(0, 0, levels=levels))), what
    assert world[0].machine.handle(Received(PeerId("p1"), part(0, 0, levels=blob(1.0, 4))), 0.0) == []


def test_nobody_outside_the_group_of_a_round_is_heard(lab, refused: Callable[..., Refusal]) -> None:
    world = lab.build(6, **GROUPS, options={"group": 3}, rounds=10).start()
    for round_ in range(2):
        inside = members(world, round_, 0, 3)
        for index in range(1, 6):
            event = Received(world.ids[index], part(round_, 0))
            if index in inside:
                assert world[0].machine.handle(event, 0.0) == []
            else:
                assert refused(world[0].machine, event) == Refusal.MISMATCH


def test_what_is_said_ahead_does_not_pile_up(lab) -> None:
    world = lab.build(4, **GROUPS, rounds=1000).start()
    for round_ in range(40):
        for number in range(4):
            for sender in ("p1", "p2", "p3"):
                world.feed(PeerId("p0"), Received(PeerId(sender), part(round_, number, count=3)))
                world.feed(PeerId("p0"), Received(PeerId(sender), averaged(round_, number, length=3)))
    inbox = world[0].machine._inbox
    assert len(inbox._parts) + len(inbox._averages) <= 3 * (2 * 2 * 4 + 2 * AHEAD)  # a few vectors for each of three


def test_a_liar_that_averages_wrongly_is_believed_within_range_and_nobody_breaks(lab) -> None:
    world = lab.build(3, **GROUPS, rounds=3).start()
    world.players[PeerId("p1")].neighbours = ()
    world.pending = [(p, what) for p, what in world.pending if p != "p1"]
    while any(world[i].outcome is None for i in (0, 2)):
        for honest, number in (("p0", 0), ("p2", 2)):
            round_ = len(world.players[PeerId(honest)].noted("round"))
            world.feed(PeerId(honest), Received(PeerId("p1"), part(round_, number, 1.0)))
            world.feed(PeerId(honest), Received(PeerId("p1"), averaged(round_, 1, 9e5)))
        world.pending = [(p, what) for p, what in world.pending if p != "p1"]
        world.settle()
    for index in (0, 2):
        x = world[index].outcome.parameters
        assert np.isfinite(x).all()
        assert np.abs(x[[*range(4), *range(8, 12)]]).max() < 10


@settings(max_examples=examples(75))
@given(body=st.binary(max_size=80), sender=st.sampled_from(["p1", "p2", "p7"]))
def test_arbitrary_bytes_never_break_a_machine(lab, body: bytes, sender: str) -> None:
    world = lab.build(3, **GROUPS).start()
    world.feed(PeerId("p0"), Received(PeerId(sender), body))
    world.settle()


def test_nothing_is_said_to_the_dead(lab) -> None:
    world = lab.build(3, **GROUPS, rounds=2).start()
    world.feed(PeerId("p0"), PeersChanged(frozenset({PeerId("p2")})))
    [train] = [what for peer, what in world.pending if peer == "p0"]
    effects = world[0].machine.handle(WorkDone(train.name, world[0].work(train.task)), 0.0)
    assert {e.to for e in effects if isinstance(e, Send)} == {"p2"}
