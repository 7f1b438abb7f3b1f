"""The star: the hub averages what came, waits for nobody for ever, and its clients do not outlive it."""

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmesh.core import LocalError, Refusal
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.crypto.codecs.quantised import EightBit
from veilmesh.crypto.codecs.topk import TopK
from veilmesh.peer.machine import PeerId, PeersChanged, Received, Send, TimerFired, WorkDone, WorkFailed
from veilmesh.swarm import messages
from veilmesh.swarm.strategies.base import STRATEGIES
from veilmesh.swarm.strategies.star import ClientMachine

NO_RNG = np.random.Generator(np.random.PCG64(0))
HUB = PeerId("hub")


def blob(values: object = 1.0, dimension: int = 12, codec: object = None) -> bytes:
    return table.encode(codec or Dense(), np.full(dimension, values, np.float32), NO_RNG)


def model(round_: int, **options: object) -> bytes:
    return messages.encode(messages.Model(round_, blob(**options)))


def test_the_hub_weighs_updates_by_examples(lab) -> None:
    samples, rounds = [1, 2, 7], 9
    world = lab.build(3, strategy="fedavg", samples=samples, rounds=rounds).start()
    targets = np.array([world[i].target for i in range(3)], np.float64)
    share, x = np.array(samples) / sum(samples), np.zeros(lab.dimension)
    for _ in range(rounds):
        x = x + share @ ((targets - x) * float(lab.rate))
    for found in world.settle().models():
        np.testing.assert_allclose(found, x, atol=1e-6)


def test_all_members_end_with_the_same_model_and_its_accuracy(lab) -> None:
    world = lab.build(4, strategy="fedavg", rounds=5, evaluate_every=2).start().settle()
    assert len({m.tobytes() for m in world.models()}) == 1
    outcomes = [p.outcome for p in world.players.values()]
    assert {(o.reason, o.rounds, o.accuracy) for o in outcomes} == {("finished", 5, 0.5)}
    assert [data["round"] for data in world.players[HUB].noted("accuracy")] == [2, 4, 5]


def test_with_one_step_fedavg_is_fedsgd(lab) -> None:
    a, b = (lab.build(4, strategy=s, rounds=6).start().settle() for s in ("fedavg", "fedsgd"))
    assert [m.tobytes() for m in a.models()] == [m.tobytes() for m in b.models()]
    assert a.said == b.said


@settings(max_examples=examples(20))
@given(random=st.randoms(use_true_random=False), peers=st.integers(1, 5), codec=st.sampled_from([Dense(), TopK(0.25)]))
def test_no_order_of_delivery_changes_a_bit(lab, random, peers: int, codec: object) -> None:
    options = {"strategy": "fedavg", "rounds": 3, "codec": codec, "samples": range(1, 9)}
    straight = lab.build(peers, **options).start().settle()
    shuffled = lab.build(peers, **options).start().settle(lambda count: random.randrange(count))
    assert [m.tobytes() for m in straight.models()] == [m.tobytes() for m in shuffled.models()]
    assert len(shuffled.models()) == peers + 1
    assert not any(player.refused for player in shuffled.players.values())


def test_every_round_notes_how_many_took_part(lab) -> None:
    world = lab.build(3, strategy="fedavg", rounds=3).start().settle()
    assert world.players[HUB].noted("round") == [{"round": r, "group": 3} for r in range(3)]


# --- slow, gone, lost ------------------------------------------------------------------------------------------------


def test_a_slow_client_is_left_out_and_its_late_update_is_refused(lab) -> None:
    world = lab.build(3, strategy="fedavg", rounds=3).start()
    slow = next(i for i, (peer, _) in enumerate(world.pending) if peer == "p2")
    world.pending.pop(slow)  # the model never reaches p2
    world.settle()
    assert world.players[HUB].noted("round") == []
    world.ring()
    assert world.players[HUB].noted("late") == [{"round": 0, "peers": ["p2"]}]
    late = messages.encode(messages.Update(0, 10, blob()))
    world.feed(HUB, Received(PeerId("p2"), late))
    world.settle()
    assert world.players[HUB].refused == [Refusal.MISMATCH]
    assert [data["group"] for data in world.players[HUB].noted("round")] == [2, 3, 3]


def test_a_client_that_dies_is_not_waited_for(lab) -> None:
    world = lab.build(3, strategy="fedavg", rounds=4).start()
    world.die(0)
    world.settle()  # no timer has to fire
    assert [data["group"] for data in world.players[HUB].noted("round")] == [2] * 4
    assert [p.outcome.reason for p in world.players.values()] == ["finished"] * 3


def test_the_hub_stops_when_every_client_is_gone(lab) -> None:
    world = lab.build(2, strategy="fedavg", rounds=4).start()
    world.die(0)
    world.die(1)
    assert world.players[HUB].outcome.reason == "every client is gone"


def test_a_client_stops_when_the_hub_goes(lab) -> None:
    world = lab.build(2, strategy="fedavg", rounds=4).start()
    world.step()
    world.die(2)
    assert [p.outcome.reason for p in world.players.values()] == ["the server is gone"] * 2


def test_a_client_stops_when_the_hub_says_nothing_any_more(lab) -> None:
    world = lab.build(2, strategy="fedavg", rounds=4)
    world.lost = lambda sender, to, message: to == HUB
    world.start().settle()
    world.players.pop(HUB)
    world.finish()
    assert {p.outcome.reason for p in world.players.values()} == {"the server says nothing any more"}


def test_a_client_that_has_the_last_model_needs_no_hub(lab) -> None:
    world = lab.build(1, strategy="fedavg", rounds=1).start()
    client = world[0]
    world.feed(PeerId("p0"), Received(HUB, model(1)))
    assert client.timers == {}
    assert world.feed(PeerId("p0"), PeersChanged(frozenset())) == []
    assert world.feed(PeerId("p0"), TimerFired("hub")) == []
    world.settle()
    assert client.outcome.reason == "finished"


def test_a_client_that_is_overtaken_does_not_say_what_is_late(lab) -> None:
    world = lab.build(1, strategy="fedavg", rounds=5).start()
    world.step()
    [(peer, train)] = world.pending
    world.pending.clear()
    world.feed(peer, Received(HUB, model(1)))
    effects = world.feed(peer, WorkDone(train.name, world[0].work(train.task)))
    assert not [e for e in effects if isinstance(e, Send)]
    world.settle()
    assert [m.round for _, _, m in world.said if isinstance(m, messages.Update)] == [1]


def test_the_last_model_is_for_everybody(lab) -> None:
    world = lab.build(3, strategy="fedavg", rounds=1).start().settle()
    models = [(to, m.round) for _, to, m in world.said if isinstance(m, messages.Model)]
    assert models == [("p0", 0), ("p1", 0), ("p2", 0), ("p0", 1), ("p1", 1), ("p2", 1)]


def test_work_that_fails_ends_a_member_with_the_reason(lab) -> None:
    world = lab.build(2, strategy="fedavg").start()
    world.feed(HUB, WorkFailed("evaluate-1", "no room"))
    world.feed(PeerId("p0"), WorkFailed("train-0", "no room"))
    assert world.players[HUB].outcome.reason == "evaluate-1: no room"
    assert world[0].outcome.reason == "train-0: no room"


# --- error feedback --------------------------------------------------------------------------------------------------


def test_what_a_lossy_codec_leaves_out_is_said_later(lab) -> None:
    """Karimireddy et al. 2019, algorithm 2, computed anew beside the client."""
    codec, memory, pairs = TopK(keep=0.25), np.zeros(lab.dimension, np.float32), []
    world = lab.build(1, strategy="fedavg", codec=codec, rounds=8).start()
    while world.pending:
        peer, what = world.pending[0]
        if peer == "p0" and not isinstance(what, Received) and what.name.startswith("train"):
            wanted = world[0].work(what.task).update + memory
            said = table.decode(table.encode(codec, wanted, NO_RNG), lab.dimension).values
            memory = wanted - said
            pairs.append(said)
        world.step()
    blobs = [m.blob for _, _, m in world.said if isinstance(m, messages.Update)]
    np.testing.assert_array_equal([table.decode(b, lab.dimension).values for b in blobs], pairs)
    assert len(blobs) == 8


def test_without_a_lossy_codec_nothing_is_remembered(lab) -> None:
    world = lab.build(1, strategy="fedavg", rounds=30).start().settle()
    np.testing.assert_allclose(world.models()[0], world[0].target, atol=1e-3)


# --- lies ------------------------------------------------------------------------------------------------------------


def test_the_hub_refuses_what_does_not_fit(lab, refused) -> None:
    world = lab.build(2, strategy="fedavg").start()
    hub, client = world.players[HUB].machine, PeerId("p0")
    hub.handle(Received(client, messages.encode(messages.Update(0, 5, blob()))), 0.0)
    other = PeerId("p1")
    cases = {
        "a stranger": (PeerId("p9"), messages.Update(0, 5, blob()), Refusal.MISMATCH),
        "a second update": (client, messages.Update(0, 5, blob()), Refusal.MISMATCH),
        "a round that is over": (other, messages.Update(5, 5, blob()), Refusal.MISMATCH),
        "another dimension": (other, messages.Update(0, 5, blob(dimension=3)), Refusal.MISMATCH),
        "NaN": (other, messages.Update(0, 5, blob()[:-4] + b"\x00\x00\xc0\x7f"), Refusal.MALFORMED),
        "a model": (other, messages.Model(0, blob()), Refusal.MISMATCH),
        "an ask": (other, messages.Ask(0), Refusal.MISMATCH),
        "a copy": (other, messages.Copy(0, blob()), Refusal.MISMATCH),
    }
    for what, (sender, message, why) in cases.items():
        assert refused(hub, Received(sender, messages.encode(message))) == why, what
    assert refused(hub, Received(other, b"\xff\x00")) == Refusal.MALFORMED


def test_nothing_is_taken_after_the_last_round(lab, refused) -> None:
    world = lab.build(1, strategy="fedavg", rounds=1).start()
    while not world.players[HUB].noted("round"):
        world.step()
    last = Received(PeerId("p0"), messages.encode(messages.Update(1, 5, blob())))
    assert refused(world.players[HUB].machine, last) == Refusal.MISMATCH


def test_a_client_refuses_what_does_not_fit(lab, refused) -> None:
    world = lab.build(2, strategy="fedavg").start()
    world.step()
    client = world[0].machine
    cases = {
        "another client's model": (PeerId("p1"), messages.Model(1, blob()), Refusal.MISMATCH),
        "an update": (HUB, messages.Update(1, 5, blob()), Refusal.MISMATCH),
        "the same round again": (HUB, messages.Model(0, blob()), Refusal.MISMATCH),
        "a round beyond the end": (HUB, messages.Model(99, blob()), Refusal.MISMATCH),
        "a lossy model": (HUB, messages.Model(1, blob(codec=EightBit())), Refusal.MISMATCH),
        "another dimension": (HUB, messages.Model(1, blob(dimension=5)), Refusal.MISMATCH),
    }
    for what, (sender, message, why) in cases.items():
        assert refused(client, Received(sender, messages.encode(message))) == why, what


@settings(max_examples=examples(50))
@given(body=st.binary(max_size=80), sender=st.sampled_from(["p0", "p1", "hub", "p7"]), to=st.sampled_from([0, 2]))
def test_arbitrary_bytes_never_break_a_machine(lab, body: bytes, sender: str, to: int) -> None:
    world = lab.build(2, strategy="fedavg").start()
    world.feed(world.ids[to], Received(PeerId(sender), body))


def test_a_star_without_a_server_is_our_own_mistake(lab) -> None:
    class Kitless:
        server = None

    with pytest.raises(LocalError):
        STRATEGIES.build("fedavg").machine(Kitless())


def test_hub_and_client_are_told_apart_by_who_the_server_is(lab) -> None:
    world = lab.build(2, strategy="fedavg")
    assert isinstance(world[0].machine, ClientMachine)
    assert not isinstance(world.players[HUB].machine, ClientMachine)
    assert not any(isinstance(e, Send) for e in world.feed(PeerId("p0"), PeersChanged(frozenset({HUB}))))
