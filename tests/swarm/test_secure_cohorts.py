"""Sums by masks of whole cohorts: exact whoever drops out, and all of them together say nothing of less than one."""

import random
from collections.abc import Collection, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_sums import KINDS, Room, dropped, plan, subsets

from veilmesh.attacks.seen.overlap import singled_out
from veilmesh.core import BadInput, LocalError, RemoteError
from veilmesh.peer.machine import PeerId
from veilmesh.swarm.schedule import cohort_groups, cohorts, random_groups
from veilmesh.swarm.secure_messages import Agreed, Counted, Masked, Roll, SumMessage, Total, Unmasked
from veilmesh.swarm.strategies.base import STRATEGIES
from veilmesh.swarm.strategies.secure_state import Phase

PAIRS, TRIPLES = ((0, 3), (1, 5), (2, 4)), ((0, 2, 5), (1, 3, 4))
Cohorts = tuple[tuple[int, ...], ...]


def whole(members: Sequence[PeerId], together: Cohorts, there: Collection[PeerId]) -> list[PeerId]:
    """Those of `there` with all of their cohort."""
    named = [{members[place] for place in cohort} for cohort in together]
    return [p for p in members if any(p in cohort and cohort <= set(there) for cohort in named)]


def check_apart(room: Room, survivors: Collection[PeerId]) -> None:
    """Of whom the sum does not count nobody said the seed, or a share of it, and no coalition of one can find it."""
    for place, member in enumerate(room.plan.members):
        if member in survivors:
            continue
        for p, session in room.sessions.items():
            assert session.revealed.get(member) in (None, "key"), (p, member)
        for sender, _, message in room.heard:
            assert not (isinstance(message, Unmasked) and sender == member and message.seed)
        for other in room.plan.members:
            assert other == member or "seed" not in room.opened(member, {other}), (place, other)


# --- one sum ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [PAIRS, TRIPLES], ids=["pairs", "triples"])
@pytest.mark.parametrize("kind", KINDS)
def test_whoever_drops_out_anywhere_takes_its_cohort_along(kind: type, together: Cohorts) -> None:
    made = plan(6, cohorts=together)
    for gone in subsets(made.members, 6 - made.threshold):
        room = dropped(made, gone, kind)
        survive = kind in (Counted, Agreed, Unmasked, Total)  # they had said all of their vector
        survivors = whole(made.members, together, [p for p in made.members if survive or p not in gone])
        room.check(survivors)
        assert len(survivors) == (6 if survive or not gone else 6 - len(together[0]))
        check_apart(room, survivors)


@pytest.mark.parametrize("together", [((0, 3), (1, 5), (2, 4), (6, 7)), ((0, 2, 5, 6), (1, 3, 4, 7))])
@pytest.mark.parametrize("kind", [Masked, Counted, Unmasked])
def test_two_of_eight_leave_what_is_whole_or_nothing(kind: type, together: Cohorts) -> None:
    made = plan(8, cohorts=together)
    for gone in random.Random(kind.__name__).sample(list(combinations(made.members, 2)), 4):
        room = dropped(made, gone, kind)
        there = made.members if kind is not Masked else [p for p in made.members if p not in gone]
        survivors = whole(made.members, together, there)
        if survivors:
            room.check(survivors)
            continue
        assert {room.sessions[p].reason for p in room.alive} == {"no cohort is whole"}
        assert not any(isinstance(message, Agreed | Unmasked) for _, _, message in room.heard)
        room.check_hidden()


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_below_the_threshold_a_whole_cohort_is_not_enough(kind: type) -> None:
    """Cohort-mates gone together leave the other cohorts whole, and too few to help."""
    made = plan(6, cohorts=PAIRS)
    for cohort in PAIRS:
        room = dropped(made, tuple(made.members[place] for place in cohort), kind)
        assert all(room.sessions[p].phase is Phase.ABANDONED for p in room.alive)
        room.check_hidden()
        if kind is not Unmasked:
            assert not any(isinstance(message, Unmasked) for _, _, message in room.heard)


def test_who_is_left_out_for_its_cohorts_sake_helps_to_the_end() -> None:
    """Nothing that p5 masks arrives. It is there, and so are p0 and p2, its mates."""
    made = plan(6, cohorts=TRIPLES)
    room = Room(made)
    room.lost = lambda sender, to, message: sender == "p5" and isinstance(message, Masked)
    room.begin().settle().clock()
    apart = [made.members[place] for place in TRIPLES[0]]
    for p in made.members:
        result = room.sessions[p].result
        assert result is not None
        assert result.survivors == ("p1", "p3", "p4")
        assert (result.words == room.total(result.survivors)).all()
    helped = {sender for sender, _, message in room.heard if isinstance(message, Unmasked) and any(message.shares)}
    assert helped == set(made.members)
    assert all(session.revealed[p] == "key" for session in room.sessions.values() for p in apart)
    check_apart(room, ("p1", "p3", "p4"))
    room.check_hidden()


@settings(deadline=None, max_examples=examples(30))
@given(data=st.data(), together=st.sampled_from([PAIRS, TRIPLES]), seed=st.integers(0, 2**32))
def test_whoever_ends_at_any_moment_leaves_one_sum_of_whole_cohorts_or_none(
    data: st.DataObject, together: Cohorts, seed: int
) -> None:
    room, order = Room(plan(6, cohorts=together)).begin(), random.Random(seed)
    gone = data.draw(st.sampled_from(room.plan.members))
    for _ in range(data.draw(st.integers(0, 200))):
        if room.pending:
            sender, to, message = room.pending.pop(order.randrange(len(room.pending)))
            room.heard.append((sender, to, message))
            room.post(to, room.sessions[to].receive(sender, message))
    room.die(gone)
    if data.draw(st.booleans()):
        room.pending = [item for item in room.pending if item[0] != gone]
    room.settle(order.randrange)
    room.all_see().clock()
    results = [room.sessions[p].result for p in room.alive]
    done = [result for result in results if result is not None]
    assert len({result.survivors for result in done}) <= 1
    for result in done:
        assert list(result.survivors) == whole(room.plan.members, together, result.survivors)
        holes = [n for start, stop in result.missing for n in range(start, stop)]
        assert (np.delete(result.words, holes) == np.delete(room.total(result.survivors), holes)).all()
    said = {message.members for _, _, message in room.heard if isinstance(message, Agreed)}
    for members in said:
        assert room.plan.whole(members) == members
    if done:
        check_apart(room, done[0].survivors)
    room.check_hidden()


@settings(deadline=None, max_examples=examples(30))
@given(seed=st.integers(0, 2**32), data=st.data(), together=st.sampled_from([PAIRS, TRIPLES]))
def test_liars_below_a_third_open_no_part_of_a_cohort(seed: int, data: st.DataObject, together: Cohorts) -> None:
    """They say what they like to whom they like of members, cards and shares; frames are lost besides."""
    order, room = random.Random(seed), Room(plan(6, cohorts=together))
    liars = [data.draw(st.sampled_from(room.plan.members))]
    share = data.draw(st.sampled_from([0.0, 0.02]))

    def lie(sender: PeerId, to: PeerId, message: SumMessage) -> SumMessage:
        if sender not in liars or order.random() < 0.5:
            return message
        match message:
            case Counted(round_, number, label, named):
                return Counted(round_, number, label, tuple(m for m in named if order.random() < 0.8))
            case Agreed(round_, number, label, named):
                fewer = room.plan.whole([m for m in named if order.random() < 0.8])
                return Agreed(round_, number, label, fewer)
            case Roll(round_, number, cards):
                return Roll(round_, number, tuple(card if order.random() < 0.9 else b"" for card in cards))
        return message

    room.altered = lie
    room.lost = lambda sender, to, message: order.random() < share
    room.begin().settle(order.randrange).clock()
    honest = [p for p in room.plan.members if p not in liars]
    sums = {room.sessions[p].result.survivors for p in honest if room.sessions[p].result}
    assert len(sums) <= 1
    for survivors in sums:
        assert list(survivors) == whole(room.plan.members, together, survivors)
    for victim in honest:
        kinds = {room.sessions[p].revealed.get(victim) for p in honest} - {None}
        assert len(kinds) <= 1
    seeds = [p for p in honest if any(room.sessions[q].revealed.get(p) == "seed" for q in honest)]
    named = [{room.plan.members[place] for place in cohort} for cohort in together]
    assert all(cohort <= {*seeds, *liars} or not cohort & set(seeds) for cohort in named)
    room.check_hidden(liars)


def test_a_set_with_a_part_of_a_cohort_is_said_by_no_honest_member() -> None:
    room = Room(plan(6, cohorts=PAIRS)).begin()
    session, label = room.sessions[PeerId("p0")], b"l" * 32
    for members in ((0, 1, 2, 3, 4), (0, 1, 2, 4, 5), (0,), (0, 3, 6)):
        with pytest.raises(RemoteError):
            session.receive(PeerId("p1"), Agreed(3, 0, label, members))
    session.receive(PeerId("p1"), Agreed(3, 0, label, (0, 2, 3, 4)))


def test_other_cohorts_are_another_sum_and_cohorts_hold_everybody_once() -> None:
    assert len({plan(6, cohorts=together).salt for together in ((), PAIRS, TRIPLES)}) == 3
    for wrong in (((0, 1), (2, 3), (4, 4)), ((0, 1), (2, 3)), ((0, 1, 2), (2, 3, 4, 5)), ((0, 1, 2), (3, 4, 6))):
        with pytest.raises(LocalError):
            plan(6, cohorts=wrong)
    assert plan(6).whole([4, 1, 9]) == (1, 4)
    assert plan(6, cohorts=PAIRS).whole([0, 1, 2, 3]) == (0, 3)


# --- groups of cohorts -----------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 99), peers=st.integers(1, 60), size=st.integers(1, 12), round_=st.integers(0, 30))
def test_groups_are_of_whole_cohorts_that_stay(seed: int, peers: int, size: int, round_: int) -> None:
    divided = cohorts(seed, peers, size)
    assert sorted(place for cohort in divided for place in cohort) == list(range(peers))
    lengths = [len(cohort) for cohort in divided]
    assert min(lengths) >= min(size, peers)
    assert max(lengths) - min(lengths) <= 1
    groups = cohort_groups(seed, round_, divided, 2)
    for place, group in enumerate(groups):
        assert any(place in cohort for cohort in group)
        assert set(group) <= set(divided)
        assert len(group) >= min(2, len(divided))
        assert all(groups[mate] == group for cohort in group for mate in cohort)


def test_a_cohort_meets_every_other() -> None:
    divided = cohorts(5, 16, 4)
    met = {
        (a, b) for round_ in range(40) for group in cohort_groups(5, round_, divided, 2) for a in group for b in group
    }
    assert len(met) == 16


def test_cohorts_of_one_are_what_was_there_before(lab: Any) -> None:
    world = lab.build(9, strategy="secure-groups", options={"group": 4, "cohort": 1})
    for round_ in range(5):
        plans = [player.machine._schedule.plan(round_, i, 12, 32) for i, player in enumerate(world.players.values())]
        groups = random_groups(5, round_, 9, 4)
        assert [p.members for p in plans] == [tuple(world.ids[j] for j in group) for group in groups]
        assert not any(p.cohorts for p in plans)


def test_what_does_not_fit_is_refused_with_what_to_do(lab: Any) -> None:
    with pytest.raises(BadInput, match="cohort of 5 does not fit into a group of 4"):
        STRATEGIES.build("secure-groups", {"group": 4, "cohort": 5})
    for peers, options, why in (
        (5, {"cohort": 6}, "no cohort of 6 among 5 peers"),
        (12, {"cohort": 6}, "take group = 12 or more"),
        (90, {"cohort": 30, "group": 60}, "groups of up to 90"),
    ):
        with pytest.raises(BadInput, match=why):
            lab.build(peers, strategy="secure-groups", options=options)


# --- a run -----------------------------------------------------------------------------------------------------------


def test_with_everybody_there_cohorts_learn_as_groups_do(lab: Any) -> None:
    options = {"group": 4, "cohort": 2}
    world = lab.build(8, strategy="secure-groups", options=options, rounds=40).start().settle()
    assert all(data["group"] == 4 for player in world.players.values() for data in player.noted("round"))
    bottom = np.mean([world[i].target for i in range(8)], axis=0)
    np.testing.assert_allclose(np.mean(world.models(), axis=0), bottom, atol=0.25)


def test_where_one_has_gone_its_mate_takes_the_others_average(lab: Any) -> None:
    world = lab.build(6, strategy="secure-groups", options={"group": 6, "cohort": 2}, rounds=3).start()
    world.pending = [(p, what) for p, what in world.pending if p != "p1"]
    world.die(1)
    world.settle()
    for player in world.players.values():
        assert [data["group"] for data in player.noted("round")] == [4] * 3
        assert not player.noted("abandoned")
        assert not player.refused
    assert len({model.tobytes() for model in world.models()}) == 1


def sums_of(world: Any) -> set[tuple[PeerId, ...]]:
    """Whose sums anybody has, of the rounds that are still kept."""
    kept = [session for player in world.players.values() for session in player.machine._sessions.values()]
    return {session.result.survivors for session in kept if session.result is not None}


@settings(max_examples=examples(4))
@given(
    cohort=st.sampled_from([2, 3]),
    share=st.sampled_from([0.0, 0.01, 0.05]),
    deaths=st.lists(st.integers(0, 4000), max_size=2),
    seed=st.integers(0, 2**32),
)
def test_no_sums_of_a_run_with_losses_single_anybody_out(
    lab: Any, cohort: int, share: float, deaths: list[int], seed: int
) -> None:
    order, found = random.Random(seed), set[tuple[PeerId, ...]]()
    world = lab.build(12, strategy="secure-groups", options={"group": 6, "cohort": cohort}, rounds=5)
    world.lost = lambda sender, to, message: order.random() < share
    world.start()
    for step in range(100_000):
        if all(player.outcome for player in world.players.values()):
            break
        world.step() if world.pending else world.ring()
        if step in deaths:
            world.die(world.ids.index(order.choice(sorted(world.players))))
        if step % 200 == 0:
            found |= sums_of(world)
    found |= sums_of(world)
    assert found
    assert not singled_out(sorted(found))
    ids = [PeerId(f"p{i}") for i in range(12)]
    assert all(list(group) == whole(ids, cohorts(5, 12, cohort), group) for group in found)


@pytest.mark.parametrize("cohort", [1, 2])
def test_without_cohorts_one_that_drops_out_now_and_then_is_singled_out(cohort: int) -> None:
    """What the cohorts are for: two sums that differ by one member."""
    together = PAIRS if cohort == 2 else ()
    groups = []
    for gone in ((), (PeerId("p1"),)):
        made = plan(6, cohorts=together)
        result = dropped(made, gone, Masked).sessions[PeerId("p0")].result
        assert result is not None
        groups.append(result.survivors)
    assert singled_out(groups) == (frozenset() if cohort == 2 else {"p1"})
