"""Merging by an elected leader: to the bit what a star does, and no round lost when a leader goes."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

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
from veilmesh.peer.machine import PeerId, PeersChanged, Received, Send, Stop, Work, WorkFailed
from veilmesh.swarm import messages
from veilmesh.swarm.aggregators.base import AGGREGATORS
from veilmesh.swarm.strategies.base import STRATEGIES
from veilmesh.swarm.strategies.election import ATTEMPTS
from veilmesh.swarm.strategies.hub import HubMachine
from veilmesh.swarm.strategies.merging import LeaderMachine

LEADER = {"strategy": "leader"}


def blob(value: float = 1.0, count: int = 12) -> bytes:
    return table.encode(Dense(), np.full(count, value, np.float32), np.random.default_rng(0))


def update(round_: int, **changes: object) -> bytes:
    return messages.encode(messages.Update(**{"round": round_, "samples": 10, "blob": blob(), **changes}))


def merged(round_: int, ballot: int = 1, **changes: object) -> bytes:
    said = {"round": round_, "ballot": ballot, "group": 3, "blob": blob(0.5), **changes}
    return messages.encode(messages.Merged(**said))


def elect(lab, peers: int = 4, **built: object):
    """A world in which the first leader has just been elected, and nobody has trained; with the leader's place."""
    world = lab.build(peers, **{**LEADER, **built}).start()
    while not all(player.noted("elected") for player in world.players.values()):
        world.step(next(i for i, (_, what) in enumerate(world.pending) if isinstance(what, Received)))
    return world, world.ids.index(leader_of(world[0]))


def leader_of(player) -> PeerId:
    return PeerId(player.noted("elected")[-1]["leader"])


def rounds(player) -> list[tuple[object, object]]:
    return [(data["round"], data["group"]) for data in player.noted("round")]


# --- what it comes to ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["dense", "8-bit", "top-k"])
@pytest.mark.parametrize("peers", [2, 3, 7])
def test_it_is_fedavg_to_the_bit(lab, peers: int, codec: str) -> None:
    built = {"rounds": 25, "codec": CODECS.build(codec), "samples": range(1, 9)}
    led = lab.build(peers, **LEADER, **built).start().settle()
    star = lab.build(peers, strategy="fedavg", **built).start().settle()
    assert {model.tobytes() for model in led.models()} == {star.models()[0].tobytes()}
    assert all(rounds(player) == [(r, peers) for r in range(25)] for player in led.players.values())


def test_the_scenario_s_aggregator_merges(lab) -> None:
    median = AGGREGATORS.build("median")
    led, star = lab.build(5, **LEADER, rounds=4), lab.build(5, strategy="fedavg", rounds=4)
    for player in led.players.values():
        player.machine = LeaderMachine(replace(player.machine._kit, aggregator=median), 10, 3)
    hub = star.players[PeerId("hub")]
    hub.machine = HubMachine(replace(hub.machine._kit, aggregator=median))
    assert led.start().settle().models()[0].tobytes() == star.start().settle().models()[0].tobytes()
    assert led.models()[0].tobytes() != lab.build(5, **LEADER, rounds=4).start().settle().models()[0].tobytes()


@settings(max_examples=examples(50))
@given(random=st.randoms(use_true_random=False), peers=st.integers(2, 6), codec=st.sampled_from([Dense(), TopK(0.25)]))
def test_no_order_of_delivery_changes_a_bit(lab, random, peers: int, codec: object) -> None:
    built = {**LEADER, "options": {"term": 2}, "rounds": 5, "codec": codec, "samples": range(1, 9)}
    straight = lab.build(peers, **built).start().settle()
    shuffled = lab.build(peers, **built).start().settle(lambda count: random.randrange(count))
    assert {m.tobytes() for m in straight.models()} == {m.tobytes() for m in shuffled.models()}
    assert not any(player.refused for player in shuffled.players.values())
    for player in shuffled.players.values():
        told = {data["round"] - 1 for data in player.noted("taken-over")}  # the next leader's model came first
        assert {r for r, _ in rounds(player)} | told == set(range(5))
        assert {group for _, group in rounds(player)} <= {peers}


def test_a_mesh_that_lacks_a_link_is_refused_with_what_to_do() -> None:
    with pytest.raises(BadInput, match="topology to complete"):
        STRATEGIES.build("leader").weights(nx.cycle_graph(5))


# --- terms -----------------------------------------------------------------------------------------------------------


def test_everybody_agrees_who_leads_and_a_leader_serves_one_term(lab) -> None:
    world = lab.build(5, **LEADER, options={"term": 4}, rounds=40).start().settle()
    elected = [player.noted("elected") for player in world.players.values()]
    assert all(one == elected[0] for one in elected)
    assert [data["round"] for data in elected[0]] == list(range(0, 40, 4))
    assert len({data["leader"] for data in elected[0]}) > 2
    said = Counter((sender, m.ballot) for sender, _, m in world.said if isinstance(m, messages.Merged))
    assert said == {(data["leader"], data["ballot"]): 4 * 4 for data in elected[0]}
    assert not any(p.noted("no-leader") or p.noted("leader-lost") or p.refused for p in world.players.values())


def test_every_peer_is_as_likely_to_lead(lab) -> None:
    leaders = Counter(leader_of(elect(lab, 4, seed=seed)[0][0]) for seed in range(120))
    assert set(leaders) == {"p0", "p1", "p2", "p3"}
    assert min(leaders.values()) > 14


# --- leaders that go -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", range(0, 60, 4))
def test_a_leader_that_dies_costs_one_election_and_no_round(lab, after: int) -> None:
    world, place = elect(lab, 5, rounds=9)
    for _ in range(after):
        world.step()
    world.die(place)
    world.settle()  # no timer has to fire
    for player in world.players.values():
        assert player.outcome.reason == "finished"
        assert len(player.noted("elected")) <= 2
        assert len(player.noted("leader-lost")) == len(player.noted("elected")) - 1
        done = [r for r, _ in rounds(player)]
        told = [data["round"] - 1 for data in player.noted("taken-over")]  # where some had heard the last one only
        assert set(done) | set(told) == set(range(9))
        assert len(done) <= 10
        assert len(told) <= 1
    assert len({m.tobytes() for m in world.models()}) == 1


def test_some_heard_the_last_model_of_a_leader_that_died_and_all_go_on_from_one(lab) -> None:
    world, place = elect(lab, 4, rounds=6)
    leader, others = world.ids[place], [i for i in range(4) if i != place]
    heard = world.ids[others[0]]
    world.lost = lambda sender, to, m: sender == leader and isinstance(m, messages.Merged) and to != heard
    while not world[others[0]].noted("round"):
        world.step()
    world.die(place)
    world.settle()
    assert len({m.tobytes() for m in world.models()}) == 1
    for index in others:
        assert sorted({r for r, _ in rounds(world[index])}) == list(range(6))
        assert world[index].outcome.reason == "finished"


def test_a_leader_that_falls_silent_is_replaced_after_twice_the_patience(lab) -> None:
    world, place = elect(lab, 4, rounds=5)
    leader = world.ids[place]
    world.lost = lambda sender, to, m: sender == leader
    world.pending = [(p, what) for p, what in world.pending if p != leader and getattr(what, "sender", "") != leader]
    world.settle()
    assert not any(world[i].noted("round") for i in range(4))
    while not all(world[i].outcome for i in range(4) if i != place):
        world.ring()
        world.settle()
    for index in range(4):
        if index != place:
            assert [data["why"] for data in world[index].noted("leader-lost")] == ["silent"]
            assert len(world[index].noted("elected")) == 2
            assert leader_of(world[index]) != leader
            assert rounds(world[index]) == [(r, 3) for r in range(5)]


def test_what_was_said_to_a_leader_that_died_is_said_to_the_next_as_it_was(lab) -> None:
    world, place = elect(lab, 4, rounds=1, codec=TopK(0.25))
    while any(isinstance(what, Work) and peer != world.ids[place] for peer, what in world.pending):
        world.step(next(i for i, (p, w) in enumerate(world.pending) if isinstance(w, Work) and p != world.ids[place]))
    world.die(place)
    world.settle()
    said: dict[PeerId, set[bytes]] = {}
    for sender, _, message in world.said:
        if isinstance(message, messages.Update):
            said.setdefault(sender, set()).add(message.blob)
    assert all(len(blobs) == 1 for blobs in said.values())
    assert all(rounds(player) == [(0, 3)] for player in world.players.values())


def test_a_member_that_is_slow_is_left_out_of_the_round_and_comes_back(lab) -> None:
    world, place = elect(lab, 4, rounds=3)
    slow = world.ids[(place + 1) % 4]
    [at] = [i for i, (peer, what) in enumerate(world.pending) if peer == slow and isinstance(what, Work)]
    work = world.pending.pop(at)
    world.settle()
    world.ring()
    world.pending.append(work)
    world.settle()
    assert world[place].noted("late") == [{"round": 0, "peers": [slow]}]
    assert all(rounds(player) == [(0, 3), (1, 4), (2, 4)] for player in world.players.values())


def test_a_leader_without_a_majority_steps_down_and_nothing_is_merged(lab) -> None:
    world, place = elect(lab, 5, rounds=3)
    world.pending = [  # only one other peer has trained
        (p, what)
        for p, what in world.pending
        if not isinstance(what, Work) or p in (world.ids[place], world.ids[(place + 1) % 5])
    ]
    world.settle()
    world.ring()
    assert world[place].noted("leader-lost") == [{"round": 0, "leader": world.ids[place], "why": "no majority"}]
    assert not any(player.noted("round") for player in world.players.values())


def test_the_last_one_left_does_not_go_on_alone(lab) -> None:
    world = lab.build(3, **LEADER, rounds=50).start()
    for _ in range(40):
        world.step()
    world.die(0)
    world.die(1)
    assert world[2].outcome.reason == "everybody else is gone"
    assert all(group > 1 for _, group in rounds(world[2]))


def test_work_that_fails_ends_a_peer_with_its_reason(lab) -> None:
    world = lab.build(3, **LEADER).start()
    world.feed(PeerId("p0"), WorkFailed("train-0-0", "no memory"))
    assert world[0].outcome.reason == "train-0-0: no memory"


@settings(max_examples=examples(15))
@given(random=st.randoms(use_true_random=False), peers=st.integers(2, 5), rate=st.sampled_from([0.02, 0.1, 0.3]))
def test_it_ends_whatever_is_lost(lab, random, peers: int, rate: float) -> None:
    world = lab.build(peers, **LEADER, options={"term": 2}, rounds=5)
    world.lost = lambda sender, to, message: random.random() < rate
    world.start().finish()
    reasons = {player.outcome.reason for player in world.players.values()}
    assert reasons <= {"finished", f"no leader had a majority in {ATTEMPTS} ballots"}
    for player in world.players.values():
        assert all(2 * group > peers for _, group in rounds(player))  # never a round of a minority


def test_stop_is_the_last_effect(lab) -> None:
    world = lab.build(2, **LEADER).start()
    effects = world[0].machine.handle(PeersChanged(frozenset()), 0.0)
    assert [type(e) for e in effects].count(Stop) == 1
    assert isinstance(effects[-1], Stop)


# --- lies ------------------------------------------------------------------------------------------------------------


def test_messages_that_do_not_fit_are_refused_and_change_nothing(lab, refused: Callable[..., Refusal]) -> None:
    world, place = elect(lab, 4, rounds=100)
    leader, member = world.ids[place], world.ids[(place + 1) % 4]
    liar = world.ids[(place + 2) % 4]
    for what, body in {
        "a stranger's model": ("p9", merged(1)),
        "one that does not lead": (liar, merged(1)),
        "of another ballot": (leader, merged(1, 2)),
        "beyond the term": (leader, merged(11)),
        "more updates than peers": (leader, merged(1, group=5)),
        "huge": (leader, merged(1, blob=blob(1e7))),
        "another dimension": (leader, merged(1, blob=blob(1.0, 13))),
        "lossy": (leader, merged(1, blob=table.encode(EightBit(), np.ones(12, np.float32), np.random.default_rng(0)))),
        "an update for a member": (liar, update(0)),
        "a gossip's": (liar, messages.encode(messages.Copy(0, blob()))),
    }.items():
        sender, said = body
        assert refused(world.players[member].machine, Received(PeerId(sender), said)) == Refusal.MISMATCH, what
    for what, said in {
        "a model for the leader": merged(1),
        "huge": update(0, blob=blob(1e7)),
        "another dimension": update(0, blob=blob(1.0, 13)),
        "no blob": update(0, blob=b""),
        "nothing": b"",
    }.items():
        assert refused(world[place].machine, Received(liar, said)), what
    assert refused(world[place].machine, Received(PeerId("p9"), update(0))) == Refusal.MISMATCH


def test_no_member_can_claim_more_examples_than_a_round_has(lab, refused: Callable[..., Refusal]) -> None:
    world = lab.build(3, **LEADER)
    for player in world.players.values():
        player.machine = LeaderMachine(replace(player.machine._kit, examples=10), 10, 3)
    world.start()
    assert refused(world[0].machine, Received(PeerId("p1"), update(0, samples=11))) == Refusal.MISMATCH
    assert world.feed(PeerId("p0"), Received(PeerId("p1"), update(0))) == []


def test_an_update_said_once_more_counts_once(lab) -> None:
    world, place = elect(lab, 4, rounds=2)
    liar = world.ids[(place + 1) % 4]
    for _ in range(20):
        world.feed(world.ids[place], Received(liar, update(0)))
    assert not any(player.noted("round") for player in world.players.values())
    world.settle()
    assert rounds(world[place]) == [(0, 4), (1, 4)]


def test_a_liar_that_is_elsewhere_is_helped_once_a_term(lab) -> None:
    world, place = elect(lab, 4, rounds=20)
    liar = world.ids[(place + 1) % 4]
    helped = [
        effect
        for round_ in range(1, 50)
        for effect in world.feed(world.ids[place], Received(liar, update(round_)))
        if isinstance(effect, Send)
    ]
    assert len(helped) == 1


def test_a_lying_leader_can_say_any_model_but_not_end_the_run(lab) -> None:
    world, place = elect(lab, 4, rounds=100)
    leader, member = world.ids[place], (place + 1) % 4
    world.feed(world.ids[member], Received(leader, merged(10, blob=blob(7.0))))
    assert rounds(world[member]) == [(9, 3)]
    assert world[member].machine._x.max() == 7.0
    assert any(isinstance(m, messages.Commit) and m.ballot == 2 for s, _, m in world.said if s == world.ids[member])


def test_what_is_said_does_not_pile_up(lab) -> None:
    world = lab.build(4, **LEADER, rounds=1000).start()
    for number in range(200):
        for sender in ("p1", "p2", "p3"):
            for body in (merged(number, number + 1), update(number)):
                world.feed(PeerId("p0"), Received(PeerId(sender), body))
    machine = world[0].machine
    assert len(machine._early) <= 3
    assert len(machine._got) <= 3


@settings(max_examples=examples(75))
@given(body=st.binary(max_size=80), sender=st.sampled_from(["p1", "p2", "p7"]))
def test_arbitrary_bytes_never_break_a_machine(lab, body: bytes, sender: str) -> None:
    world = lab.build(3, **LEADER).start()
    world.feed(PeerId("p0"), Received(PeerId(sender), body))
    world.settle()
