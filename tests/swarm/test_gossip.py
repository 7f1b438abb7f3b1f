"""Gossip: what its rounds come to, in any order, with losses, deaths and liars."""

import pickle
from collections.abc import Callable

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmesh.core import LocalError, Refusal
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import Codec
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.crypto.codecs.quantised import EightBit
from veilmesh.crypto.codecs.topk import TopK
from veilmesh.peer.machine import Note, PeerId, PeersChanged, Received, Send, Stop, TimerFired, WorkDone, WorkFailed
from veilmesh.swarm import messages
from veilmesh.swarm.strategies.base import STRATEGIES, Outcome
from veilmesh.swarm.strategies.gossip import AHEAD
from veilmesh.swarm.topology import TOPOLOGIES, metropolis_hastings

CODECS = [Dense(), TopK(keep=0.25), EightBit()]
NO_RNG = np.random.Generator(np.random.PCG64(0))


def blob(values: object = 1.0, dimension: int = 12, codec: Codec | None = None) -> bytes:
    x = np.full(dimension, values, np.float32)
    return table.encode(codec or Dense(), x, NO_RNG)


def update(round_: int, values: object = 1.0, **options: object) -> bytes:
    return messages.encode(messages.Update(round_, 10, blob(values, **options)))


def ring(peers: int) -> dict[int, dict[int, float]]:
    return metropolis_hastings(TOPOLOGIES.build("ring").graph(peers, 0))


# --- what a run comes to ---------------------------------------------------------------------------------------------


def test_dense_gossip_on_a_complete_graph_is_federated_averaging(lab) -> None:
    swarm = lab.build(5, rounds=20).start().settle()
    star = lab.build(5, rounds=20, strategy="fedavg").start().settle()
    for model in swarm.models():
        np.testing.assert_allclose(model, star.models()[0], atol=1e-6)


def test_dense_gossip_is_d_psgd(lab) -> None:
    rows, rounds = ring(6), 15
    world = lab.build(6, rows=rows, rounds=rounds).start()
    targets = np.array([world[i].target for i in range(6)], np.float64)
    w = np.array([[rows[i].get(j, 0.0) for j in range(6)] for i in range(6)])
    x = np.zeros_like(targets)
    for _ in range(rounds):
        x = w @ (x + (targets - x) * float(lab.rate))
    np.testing.assert_allclose(world.settle().models(), x, atol=1e-6)


def test_a_consensus_step_goes_a_part_of_the_way(lab) -> None:
    """x <- x^{t+1/2} + step (W - I) x^{t+1/2}."""
    rows, step = ring(5), 0.3
    graph = TOPOLOGIES.build("ring").graph(5, 0)
    world = lab.build(5, rows=STRATEGIES.build("gossip", {"step": step}).weights(graph), rounds=1).start()
    half = np.array([world[i].target for i in range(5)], np.float64) * float(lab.rate)
    w = np.array([[rows[i].get(j, 0.0) for j in range(5)] for i in range(5)])
    np.testing.assert_allclose(world.settle().models(), half + step * (w @ half - half), atol=1e-6)


@pytest.mark.parametrize("codec", CODECS, ids=lambda c: type(c).__name__)
def test_models_follow_the_public_copies_that_were_said(lab, codec: Codec) -> None:
    """xhat and x computed anew, in double precision, from nothing but what crossed the wire."""
    rows, peers, rounds = ring(5), 5, 12
    world = lab.build(peers, rows=rows, rounds=rounds, codec=codec).start().settle()
    said = {(sender, m.round): m.blob for sender, _, m in world.said if isinstance(m, messages.Update)}
    targets = np.array([world[i].target for i in range(peers)], np.float64)
    x, xhat = np.zeros_like(targets), np.zeros_like(targets)
    w = np.array([[rows[i].get(j, 0.0) for j in range(peers)] for i in range(peers)])
    for round_ in range(rounds):
        half = x + (targets - x) * float(lab.rate)
        xhat = xhat + [table.decode(said[p, round_], lab.dimension).values for p in world.ids]
        x = half + w @ xhat - xhat  # the rows of W sum to one
    np.testing.assert_allclose(world.models(), x, atol=1e-5)


def test_what_a_lossy_codec_leaves_out_is_said_later(lab) -> None:
    """With one coordinate of twelve a round, the models still meet at the mean of all targets' pull."""
    world = lab.build(4, rounds=300, codec=TopK(keep=0.08)).start()
    mean = np.mean([world[i].target for i in range(4)], axis=0)
    average = np.mean(world.settle().models(), axis=0)
    np.testing.assert_allclose(average, mean, atol=1e-3)


@settings(max_examples=examples(30))
@given(data=st.data(), peers=st.integers(2, 6), codec=st.sampled_from(CODECS), p=st.sampled_from([0.5, 1.0]))
def test_no_order_of_delivery_changes_a_bit(lab, data: st.DataObject, peers: int, codec: Codec, p: float) -> None:
    rows = metropolis_hastings(TOPOLOGIES.build("erdos-renyi", {"p": p}).graph(peers, data.draw(st.integers(0, 9))))
    options = {"rows": rows, "rounds": 3, "codec": codec}
    straight = lab.build(peers, **options).start().settle()
    random = data.draw(st.randoms(use_true_random=False))
    shuffled = lab.build(peers, **options).start().settle(lambda count: random.randrange(count))
    assert [m.tobytes() for m in straight.models()] == [m.tobytes() for m in shuffled.models()]
    assert len(shuffled.models()) == peers
    assert not any(player.refused for player in shuffled.players.values())


def test_every_round_notes_how_many_took_part(lab) -> None:
    world = lab.build(5, rows=ring(5), rounds=4).start().settle()
    for player in world.players.values():
        assert player.noted("round") == [{"round": r, "group": 3} for r in range(4)]


def test_a_peer_without_neighbours_trains_alone(lab) -> None:
    world = lab.build(1, rounds=40).start().settle()
    np.testing.assert_allclose(world.models()[0], world[0].target, atol=1e-4)
    assert {data["group"] for data in world[0].noted("round")} == {1}
    assert not world[0].timers


def test_it_evaluates_when_due_and_at_the_end(lab) -> None:
    world = lab.build(2, rounds=7, evaluate_every=3).start().settle()
    assert [data["round"] for data in world[0].noted("accuracy")] == [3, 6, 7]
    outcome = world[0].outcome
    assert isinstance(outcome, Outcome)
    assert (outcome.reason, outcome.rounds, outcome.accuracy) == ("finished", 7, 0.5)


def test_work_that_fails_ends_the_peer_with_the_reason(lab) -> None:
    world = lab.build(3).start()
    effects = world.feed(world.ids[0], WorkFailed("train-0", "out of memory"))
    assert [type(e) for e in effects] == [Note, Stop]
    assert world[0].outcome.reason == "train-0: out of memory"


# --- losses ----------------------------------------------------------------------------------------------------------


def lose_one(sender: int, to: int, round_: int) -> Callable[..., bool]:
    def lost(a: PeerId, b: PeerId, message: messages.Message) -> bool:
        return (a, b) == (f"p{sender}", f"p{to}") and isinstance(message, messages.Update) and message.round == round_

    return lost


@pytest.mark.parametrize("codec", CODECS, ids=lambda c: type(c).__name__)
def test_a_lost_update_is_mended_by_a_copy(lab, codec: Codec) -> None:
    world = lab.build(3, rounds=12, codec=codec)
    world.lost = lose_one(0, 1, 2)
    world.start().finish()
    asked = [(a, b, m) for a, b, m in world.said if isinstance(m, messages.Ask)]
    copies = [(a, b) for a, b, m in world.said if isinstance(m, messages.Copy)]
    assert asked == [("p1", "p0", messages.Ask(2))]
    assert copies == [("p0", "p1")]
    assert world[1].noted("late") == [{"round": 2, "peers": ["p0"]}]
    groups = [data["group"] for data in world[1].noted("round")]
    assert groups == [3, 3, 2] + [3] * 9
    assert all(player.outcome.reason == "finished" for player in world.players.values())


def test_after_a_copy_both_sides_hold_the_same_again(lab) -> None:
    """Drifts far away would show: the bowl's own pull is the only thing left to differ by."""
    whole = lab.build(3, rounds=60).start().settle()
    broken = lab.build(3, rounds=60)
    broken.lost = lose_one(0, 1, 2)
    broken.start().finish()
    np.testing.assert_allclose(broken.models(), whole.models(), atol=1e-5)


def test_a_copy_that_is_lost_too_is_asked_for_again(lab) -> None:
    world = lab.build(3, rounds=12)
    lost_update, copies = lose_one(0, 1, 2), []

    def lost(a: PeerId, b: PeerId, message: messages.Message) -> bool:
        if isinstance(message, messages.Copy):
            copies.append(message)
            return len(copies) == 1
        return lost_update(a, b, message)

    world.lost = lost
    world.start().finish()
    assert len(copies) == 2
    assert [m for _, _, m in world.said if isinstance(m, messages.Ask)] == [messages.Ask(2)] * 2
    assert [data["group"] for data in world[1].noted("round")][-1] == 3


@pytest.mark.parametrize("held", [0, 3])
def test_a_slow_neighbour_is_left_out_and_its_late_update_still_counts(lab, held: int) -> None:
    """Late is not lost: nothing is copied, and nothing it says is refused."""
    world = lab.build(3, rounds=8).start()
    while not (slow := [x for x in world.pending if x[0] == "p2" and getattr(x[1], "name", "") == f"train-{held}"]):
        world.step()
    world.pending.remove(slow[0])
    world.settle()
    world.ring()
    world.ring()
    world.settle()
    assert [data["group"] for data in world[0].noted("round")][-1] == 2
    world.pending += slow
    world.finish()
    assert [m for _, _, m in world.said if isinstance(m, messages.Ask)] == [messages.Ask(held)] * 2
    assert not [m for _, _, m in world.said if isinstance(m, messages.Copy)]
    assert not any(player.refused for player in world.players.values())
    assert [data["group"] for data in world[0].noted("round")][-1] == 3


def test_a_copy_is_given_once_a_round(lab) -> None:
    world = lab.build(3).start()
    first = world[0].machine
    ask = Received(world.ids[1], messages.encode(messages.Ask(0)))
    assert first.handle(ask, 0.0) == []  # nothing was said yet, so nothing can be missing
    train = world.pending[0][1]
    world.feed(world.ids[0], WorkDone(train.name, world[0].work(train.task)))
    [answer] = first.handle(ask, 0.0)
    assert isinstance(answer, Send)
    assert messages.decode(answer.body).round == 0
    assert first.handle(ask, 0.0) == []
    [other] = first.handle(Received(world.ids[2], messages.encode(messages.Ask(0))), 0.0)
    assert other.to == world.ids[2]


# --- deaths ----------------------------------------------------------------------------------------------------------


@settings(max_examples=examples(30))
@given(data=st.data(), peers=st.integers(2, 6), dead=st.integers(1, 3))
def test_a_neighbour_that_dies_at_any_moment_blocks_nobody(lab, data: st.DataObject, peers: int, dead: int) -> None:
    world = lab.build(peers, rounds=4).start()
    random = data.draw(st.randoms(use_true_random=False))
    for _ in range(min(dead, peers - 1)):
        for _ in range(data.draw(st.integers(0, 30))):
            if world.pending:
                world.step(random.randrange(len(world.pending)))
        world.die(0)
        world.ids = tuple(world.players)
    world.settle(lambda count: random.randrange(count))  # no timer has to fire
    assert [p.outcome.reason for p in world.players.values()] == ["finished"] * len(world.players)


def test_the_weight_of_a_dead_neighbour_stays_with_the_peer(lab) -> None:
    world = lab.build(3, rounds=1).start()
    world.die(2)
    a, b = (world[i].target.astype(np.float64) * float(lab.rate) for i in (0, 1))
    np.testing.assert_allclose(world.settle().models(), [a * 2 / 3 + b / 3, b * 2 / 3 + a / 3], atol=1e-6)


def test_one_that_comes_back_takes_part_again(lab) -> None:
    world = lab.build(3, rounds=12).start()
    absent, everybody = frozenset({PeerId("p1")}), frozenset({PeerId("p1"), PeerId("p2")})
    world.feed(PeerId("p0"), PeersChanged(absent))
    for _ in range(12):
        world.step()
    world.feed(PeerId("p0"), PeersChanged(everybody))
    world.finish()
    assert [data["group"] for data in world[0].noted("round")][-1] == 3
    assert [data["group"] for data in world[2].noted("round")][-1] == 3


def test_what_is_said_goes_to_those_present_only(lab) -> None:
    world = lab.build(4).start()
    world.feed(PeerId("p0"), PeersChanged(frozenset({PeerId("p2")})))
    train = world.pending.pop(0)[1]
    effects = world.feed(PeerId("p0"), WorkDone(train.name, world[0].work(train.task)))
    assert [e.to for e in effects if isinstance(e, Send)] == ["p2"]


# --- lies ------------------------------------------------------------------------------------------------------------


def test_messages_that_do_not_fit_are_refused_and_change_nothing(lab, refused) -> None:
    world = lab.build(3, rounds=20).start()
    for _ in range(9):
        world.step()
    machine, honest = world[0].machine, PeerId("p1")
    machine.handle(Received(honest, update(7)), 0.0)
    cases = {
        "another's message": (PeerId("p9"), update(7), Refusal.MISMATCH),
        "its own message": (PeerId("p0"), update(7), Refusal.MISMATCH),
        "a second update": (honest, update(7, 2.0), Refusal.MISMATCH),
        "too late": (honest, update(0), Refusal.MISMATCH),
        "too far ahead": (honest, update(1000), Refusal.MISMATCH),
        "another dimension": (honest, update(6, dimension=13), Refusal.MISMATCH),
        "NaN": (honest, messages.encode(messages.Update(6, 1, blob()[:-4] + b"\x00\x00\xc0\x7f")), Refusal.MALFORMED),
        "no codec": (honest, messages.encode(messages.Update(6, 1, b"\xff")), Refusal.MALFORMED),
        "an empty blob": (honest, messages.encode(messages.Update(6, 1, b"")), Refusal.MALFORMED),
        "no message": (honest, b"\xc1", Refusal.MALFORMED),
        "a global model": (honest, messages.encode(messages.Model(6, blob())), Refusal.MISMATCH),
        "an old copy": (honest, messages.encode(messages.Copy(0, blob())), Refusal.MISMATCH),
        "a copy of the far future": (honest, messages.encode(messages.Copy(1000, blob())), Refusal.MISMATCH),
        "a lossy copy": (honest, messages.encode(messages.Copy(6, blob(codec=EightBit()))), Refusal.MISMATCH),
        "a cut copy": (honest, messages.encode(messages.Copy(6, blob()[:-1])), Refusal.MISMATCH),
    }
    for what, (sender, body, why) in cases.items():
        assert refused(machine, Received(sender, body)) == why, what


@settings(max_examples=examples(100))
@given(body=st.binary(max_size=80), sender=st.sampled_from(["p1", "p2", "p7"]))
def test_arbitrary_bytes_never_break_a_machine(lab, body: bytes, sender: str) -> None:
    world = lab.build(3).start()
    world.feed(PeerId("p0"), Received(PeerId(sender), body))  # the driver holds the state against the one before
    world.settle()


def test_updates_far_ahead_do_not_pile_up(lab) -> None:
    """A neighbour leaves out one round and says all the others, as early as it can and over and over."""
    rounds = 60
    world = lab.build(2, rounds=rounds, dimension=1000).start()
    liar, held = PeerId("p1"), 0
    while world[0].outcome is None:
        for round_ in range(1, rounds):
            world.feed(PeerId("p0"), Received(liar, update(round_, dimension=1000)))
        held = max(held, len(pickle.dumps(lab.snapshot(world[0].machine._held))))
        world.pending = [(p, what) for p, what in world.pending if p == "p0" and not isinstance(what, Received)]
        world.settle()
        if world[0].outcome is None:
            world.ring()
    assert world[0].outcome.reason == "finished"
    assert held <= (2 * AHEAD + 6) * 4 * 1000
    assert Refusal.MISMATCH in world[0].refused


def test_a_timer_that_fires_out_of_turn_does_nothing(lab) -> None:
    world = lab.build(3).start()
    before = lab.snapshot(world[0].machine)
    assert world[0].machine.handle(TimerFired("round"), 99.0) == []
    assert lab.snapshot(world[0].machine) == before


def test_an_update_that_is_not_finite_is_never_said(lab) -> None:
    world = lab.build(2).start()
    world[0].target = np.full(lab.dimension, np.nan, np.float32)
    try:
        world.settle()
    except LocalError:
        pytest.fail("a training that diverged must end the peer with a reason")
    assert world[0].outcome.reason == "the model is no longer finite"
