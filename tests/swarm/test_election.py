"""The election of a leader: agreed upon, not steered, and over in the end."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmesh.core import Refusal
from veilmesh.peer.machine import PeerId, PeersChanged, Received, Send
from veilmesh.swarm import messages
from veilmesh.swarm.strategies.ballot import Ballot, committed, drawn
from veilmesh.swarm.strategies.election import AHEAD, ATTEMPTS

LEADER = {"strategy": "leader"}
NONCES = st.lists(st.sampled_from([b""]) | st.binary(min_size=16, max_size=16), min_size=3, max_size=3)
SEED = 5  # the lab's


def body(message: messages.Message) -> bytes:
    return messages.encode(message)


def outcome(world) -> list[object]:
    return [player.noted("elected")[-1]["leader"] for player in world.players.values() if player.noted("elected")]


def commit(place: int, ballot: int, nonce: bytes = b"n" * 16, round_: int = 0) -> bytes:
    return body(messages.Commit(round_, ballot, 0, committed(SEED, ballot, place, nonce)))


# --- the lot ---------------------------------------------------------------------------------------------------------


def test_the_lot_falls_on_everybody_alike() -> None:
    falls = Counter(drawn(1, [bytes([i, j]) * 8, b"", b"x" * 16], range(5)) for i in range(40) for j in range(40))
    np.testing.assert_allclose([falls[p] for p in range(5)], 320, atol=70)


@given(nonces=NONCES, other=NONCES, candidates=st.sets(st.integers(0, 9), min_size=2), gone=st.data())
def test_one_candidate_less_changes_nothing_unless_it_was_the_one(nonces, other, candidates, gone) -> None:
    leader = drawn(3, nonces, candidates)
    assert leader in candidates
    less = gone.draw(st.sampled_from(sorted(candidates - {leader})))
    assert drawn(3, nonces, candidates - {less}) == leader


def test_a_liar_that_keeps_its_nonce_to_itself_draws_once_more_and_not_for_itself() -> None:
    """The bias that is left, in figures: of eight, one that must not lead is taken back, and leads half as seldom."""
    order = tuple(PeerId(f"p{i}") for i in range(8))
    led: Counter[int] = Counter()
    for number in range(1, 1500):
        ballot = Ballot(SEED, number, order)
        for place, peer in enumerate(order):
            nonce = committed(9, number, place, b"")[:16]
            ballot.take(peer, messages.Commit(0, number, 0, committed(SEED, number, place, nonce)))
            ballot.take(peer, messages.Reveal(0, number, nonce))
        leader, _ = ballot.vote((), order)
        led[leader if leader != 3 else ballot.vote({order[7]}, order)[0]] += 1  # p7 does not want p3
    assert led[3] / 1499 < 2 / 49
    assert led[7] / 1499 < 1.3 / 8


# --- liars -----------------------------------------------------------------------------------------------------------


def test_who_commits_and_does_not_reveal_is_left_out_of_the_next_ballots(lab) -> None:
    world = lab.build(5, **LEADER, options={"term": 1, "penalty": 3}, rounds=8)
    world.lost = lambda sender, to, m: sender == "p3" and isinstance(m, messages.Reveal) and m.ballot == 1
    world.start().finish()
    for player in world.players.values():
        assert player.outcome.reason == "finished"
        assert len(player.noted("round")) == 8
    honest = [world[i].noted("elected") for i in (0, 1, 2, 4)]
    assert all(one == honest[0] for one in honest)
    by_ballot = {data["ballot"]: data["leader"] for data in honest[0]}
    assert "p3" not in [by_ballot[number] for number in range(1, 5)]
    assert world.now < 6  # half of the patience, once


def test_a_nonce_that_only_some_are_told_of_splits_one_ballot_and_no_more(lab) -> None:
    split = 0
    for seed in range(12):
        world = lab.build(4, **LEADER, options={"term": 100}, rounds=2, seed=seed)
        world.lost = lambda s, to, m: (
            (s, m.round) == ("p3", 0) and isinstance(m, messages.Reveal) and to in ("p0", "p1")
        )
        world.start().finish()
        assert len(set(outcome(world))) == 1
        failed = {len(player.noted("no-leader")) for player in world.players.values()}
        split += failed != {0}
        assert failed <= {0, 1}
        if failed == {1}:
            assert outcome(world)[0] != "p3"
        assert len({m.tobytes() for m in world.models()}) == 1
    assert split > 2


def test_two_nonces_for_two_audiences_split_one_ballot_and_cost_the_next_ones(lab) -> None:
    world = lab.build(5, **LEADER, options={"term": 100}, rounds=2).start()
    world.lost = lambda sender, to, m: sender == "p4"
    world.pending = [(p, what) for p, what in world.pending if getattr(what, "sender", p) != "p4"]
    for to in ("p0", "p1", "p2", "p3"):
        nonce = (b"a" if to in ("p0", "p1") else b"b") * 16
        world.feed(PeerId(to), Received(PeerId("p4"), commit(4, 1, nonce)))
        world.feed(PeerId(to), Received(PeerId("p4"), body(messages.Reveal(0, 1, nonce))))
    while not all(world[i].outcome for i in range(4)):
        world.settle()
        if not all(world[i].outcome for i in range(4)):
            world.ring()
    for index in range(4):
        assert len(world[index].noted("no-leader")) <= 1
        assert world[index].outcome.reason == "finished"
    assert len({world[i].noted("elected")[-1]["leader"] for i in range(4)}) == 1


def test_one_liar_cannot_call_a_ballot_nor_drive_the_numbers_up(lab) -> None:
    world = lab.build(4, **LEADER, rounds=30, options={"term": 5}).start()
    for _ in range(60):
        world.step()
    machine = world[0].machine
    before = machine._election.ballot, machine._election.on
    for number in range(1, AHEAD + 1):
        world.feed(PeerId("p0"), Received(PeerId("p1"), commit(1, before[0] + number)))
    assert (machine._election.ballot, machine._election.on) == before


def test_a_claim_to_be_ahead_gains_nothing_and_who_is_behind_does_not_lead() -> None:
    order = tuple(PeerId(f"p{i}") for i in range(5))
    claims = [7, 7, 7, 2, 1000]
    leaders = set()
    for number in range(1, 200):
        ballot = Ballot(SEED, number, order)
        for place, peer in enumerate(order):
            nonce = committed(9, number, place, b"")[:16]
            ballot.take(peer, messages.Commit(claims[place], number, 0, committed(SEED, number, place, nonce)))
            ballot.take(peer, messages.Reveal(0, number, nonce))
        leaders.add(ballot.vote((), order)[0])
    assert leaders == {0, 1, 2, 4}


def test_who_commits_after_having_seen_a_nonce_is_not_heard(lab) -> None:
    world = lab.build(3, **LEADER).start()
    world.lost = lambda sender, to, m: sender == "p2"
    world.pending = [(p, what) for p, what in world.pending if getattr(what, "sender", p) != "p2"]
    world.settle()
    world.ring()  # p0 reveals without p2
    world.feed(PeerId("p0"), Received(PeerId("p2"), commit(2, 1)))
    world.feed(PeerId("p0"), Received(PeerId("p2"), body(messages.Reveal(0, 1, b"n" * 16))))
    world.settle()
    while not world[0].noted("elected"):
        world.ring()
        world.settle()
    votes = [m for sender, _, m in world.said if isinstance(m, messages.Vote) and sender == "p0"]
    assert votes
    assert all(vote.nonces[2] == b"" for vote in votes)


# --- lost messages, and views that differ ----------------------------------------------------------------------------


def test_one_that_missed_the_votes_is_told_them_when_it_calls_the_next_ballot(lab) -> None:
    world = lab.build(4, **LEADER, rounds=3, options={"term": 100})
    world.lost = lambda sender, to, m: to == "p0" and isinstance(m, messages.Vote) and not again(world, sender)
    world.start().finish()
    assert len(set(outcome(world))) == 1
    assert world[0].noted("no-leader")
    assert [data["ballot"] for player in world.players.values() for data in player.noted("elected")] == [1] * 4
    assert len({m.tobytes() for m in world.models()}) == 1


def again(world, voter: PeerId) -> bool:
    """Whether a voter has been asked again by p0."""
    return any(s == "p0" and t == voter and isinstance(m, messages.Commit) and m.ballot > 1 for s, t, m in world.said)


def test_without_a_majority_everybody_ends_with_that_reason(lab) -> None:
    world = lab.build(4, **LEADER, rounds=3)
    world.lost = lambda sender, to, m: isinstance(m, messages.Vote)
    world.start().finish()
    for player in world.players.values():
        assert player.outcome.reason == f"no leader had a majority in {ATTEMPTS} ballots"
        assert len(player.noted("no-leader")) == ATTEMPTS


def test_a_death_that_is_noticed_at_different_moments_is_one_election(lab) -> None:
    world = lab.build(5, **LEADER, rounds=6, options={"term": 100}).start()
    while not all(player.noted("elected") for player in world.players.values()):
        world.step()
    dead = PeerId(outcome(world)[0])
    world.lost = lambda sender, to, m: sender == dead
    world.pending = [(p, what) for p, what in world.pending if p != dead and getattr(what, "sender", "") != dead]
    others = [p for p in world.ids if p != dead]
    for peer in others:
        world.settle()
        world.players[peer].neighbours = tuple(p for p in others if p != peer)
        world.feed(peer, PeersChanged(frozenset(world.players[peer].neighbours)))
    world.pending = [(p, what) for p, what in world.pending if p != dead]
    world.settle()
    for peer in others:
        assert world.players[peer].outcome.reason == "finished"
        assert len(world.players[peer].noted("elected")) == 2
        assert [data["group"] for data in world.players[peer].noted("round")] == [4] * 6


@settings(max_examples=examples(15))
@given(random=st.randoms(use_true_random=False), peers=st.integers(2, 6))
def test_whatever_the_order_all_elect_the_same(lab, random, peers: int) -> None:
    world = lab.build(peers, **LEADER, options={"term": 1}, rounds=3).start().settle(lambda n: random.randrange(n))
    elected = [player.noted("elected") for player in world.players.values()]
    assert all([e["ballot"] for e in one] == [1, 2, 3] for one in elected)
    assert all([e["leader"] for e in one] == [e["leader"] for e in elected[0]] for one in elected)


# --- what does not fit -----------------------------------------------------------------------------------------------


def test_messages_that_do_not_fit_are_refused_and_change_nothing(lab, refused: Callable[..., Refusal]) -> None:
    world = lab.build(3, **LEADER).start()
    machine, liar = world[0].machine, PeerId("p1")
    assert machine.handle(Received(liar, commit(1, 1)), 0.0) == []
    assert machine.handle(Received(liar, body(messages.Vote(0, 2, 1, (b"",) * 3))), 0.0) == []
    cases: dict[str, messages.Message] = {
        "another commitment": messages.Commit(0, 1, 0, b"d" * 32),
        "another nonce": messages.Reveal(0, 1, b"m" * 16),
        "another vote": messages.Vote(0, 2, 2, (b"",) * 3),
        "nobody": messages.Vote(0, 1, 3, (b"",) * 3),
        "another roster": messages.Vote(0, 1, 1, (b"",) * 4),
        "far ahead": messages.Reveal(0, 2 + AHEAD, b"n" * 16),
    }
    for what, message in cases.items():
        assert refused(machine, Received(liar, body(message))) == Refusal.MISMATCH, what
    malformed = {
        "ballot 0": messages.Reveal(0, 0, b"n" * 16),
        "a short nonce": messages.Reveal(0, 1, b"n"),
        "a long digest": messages.Commit(0, 1, 0, b"d" * 33),
        "settled later": messages.Commit(0, 1, 1, b"d" * 32),
        "a long nonce in a vote": messages.Vote(0, 1, 1, (b"n" * 17,) * 3),
        "a negative leader": messages.Vote(0, 1, -1, (b"",) * 3),
    }
    for what, message in malformed.items():
        assert refused(machine, Received(liar, body(message))) == Refusal.MALFORMED, what
    assert refused(machine, Received(PeerId("p9"), commit(1, 1))) == Refusal.MISMATCH


def test_what_is_said_of_ballots_does_not_pile_up_nor_is_it_answered_again_and_again(lab) -> None:
    world = lab.build(3, **LEADER, rounds=50, options={"term": 100}).start()
    while not world[0].noted("elected"):
        world.step()
    answers = 0
    for _ in range(20):
        for number in range(1, 200):
            effects = world.feed(PeerId("p0"), Received(PeerId("p1"), commit(1, number)))
            answers += sum(isinstance(effect, Send) for effect in effects)
    assert answers <= AHEAD + 1
    assert len(world[0].machine._election._ballots) <= AHEAD


@pytest.mark.parametrize("private", [1, 2])
def test_nonces_follow_from_nothing_public(lab, private: int) -> None:
    from dataclasses import replace

    from veilmesh.swarm.strategies.merging import LeaderMachine

    world = lab.build(2, **LEADER)
    kit = replace(world[0].machine._kit, private=private)
    commits = [e.body for e in LeaderMachine(kit, 10, 3).handle(*started(world)) if isinstance(e, Send)]
    usual = [e.body for e in world[0].machine.handle(*started(world)) if isinstance(e, Send)]
    assert commits != usual


def started(world):
    from veilmesh.peer.machine import Started

    return Started(frozenset({world.ids[1]})), 0.0
