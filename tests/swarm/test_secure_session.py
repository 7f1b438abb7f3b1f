"""A sum by masks: exact for whoever stays, given up below the threshold, and nobody can read a summand."""

import random
from itertools import combinations

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_sums import KINDS, D, Room, dropped, plan, subsets

from veilmesh.core import LocalError, Refusal, RemoteError
from veilmesh.crypto.shares import combine
from veilmesh.peer.machine import PeerId
from veilmesh.swarm.secure_messages import (
    Agreed,
    Counted,
    Enrol,
    Masked,
    Roll,
    SumMessage,
    Total,
    Unmasked,
    Withdrawn,
)
from veilmesh.swarm.strategies.secure_plan import Maskers, Secrets, SumPlan
from veilmesh.swarm.strategies.secure_state import Phase

# --- sums ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("members", [2, 3, 4, 5, 8, 13])
@pytest.mark.parametrize("bits", [16, 32])
def test_the_sum_of_all_is_exact(members: int, bits: int) -> None:
    room = Room(plan(members, bits=bits)).begin().settle()
    room.check(room.plan.members)


@settings(deadline=None, max_examples=examples(20))
@given(members=st.integers(2, 7), length=st.integers(1, 30), copies=st.integers(1, 4), order=st.randoms())
def test_no_order_of_delivery_changes_the_sum(members: int, length: int, copies: int, order: random.Random) -> None:
    room = Room(plan(members, length, copies=copies)).begin()
    room.settle(order.randrange).check(room.plan.members)


def test_a_vector_that_comes_late_is_waited_for() -> None:
    room = Room(plan(4))
    for p, session in room.sessions.items():
        room.post(p, session.begin(room.plan.members))
    room.settle()
    assert {session.phase for session in room.sessions.values()} == {Phase.MASKING}
    assert not any(isinstance(message, Masked) for _, _, message in room.heard)
    for p, session in room.sessions.items():
        room.post(p, session.contribute(room.vectors[p]))
    room.settle().check(room.plan.members)


# --- losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("members", [4, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_any_that_may_drop_out_anywhere_leave_an_exact_sum(members: int, kind: type) -> None:
    made = plan(members)
    for gone in subsets(made.members, members - made.threshold):
        room = dropped(made, gone, kind)
        survive = kind in (Counted, Agreed, Unmasked, Total)  # they had said all of their vector
        room.check([p for p in made.members if survive or p not in gone])


@pytest.mark.parametrize("kind", KINDS)
def test_two_of_eight_may_drop_out_anywhere(kind: type) -> None:
    pairs = list(combinations(plan(8).members, 2))
    for gone in random.Random(kind.__name__).sample(pairs, 5):
        dropped(plan(8), gone, kind).check()


@pytest.mark.parametrize("members", [3, 4, 5, 8])
@pytest.mark.parametrize("kind", KINDS[:-1])
def test_beyond_that_the_sum_is_given_up_and_nobody_is_shown(members: int, kind: type) -> None:
    made = plan(members)
    too_many = members - made.threshold + 1
    for gone in random.Random(0).sample(list(combinations(made.members, too_many)), min(5, members)):
        room = dropped(made, gone, kind)
        assert all(room.sessions[p].phase is Phase.ABANDONED for p in room.alive)
        assert all(room.sessions[p].result is None for p in room.alive)
        room.check_hidden()
        if kind is not Unmasked:
            assert not any(isinstance(message, Unmasked) for _, _, message in room.heard)


@settings(deadline=None, max_examples=examples(40))
@given(data=st.data(), members=st.integers(4, 7), seed=st.integers(0, 2**32))
def test_whoever_ends_at_any_moment_leaves_one_exact_sum_or_none(data, members: int, seed: int) -> None:
    room, order = Room(plan(members)).begin(), random.Random(seed)
    gone = data.draw(st.lists(st.sampled_from(room.plan.members), max_size=2, unique=True))
    for p in gone:
        for _ in range(data.draw(st.integers(0, 150))):
            if room.pending:
                sender, to, message = room.pending.pop(order.randrange(len(room.pending)))
                if to not in room.dead:
                    room.heard.append((sender, to, message))
                    room.post(to, room.sessions[to].receive(sender, message))
        room.die(p)
        if data.draw(st.booleans()):
            room.pending = [item for item in room.pending if item[0] != p]
    room.settle(order.randrange)
    room.all_see().clock()
    done = [room.sessions[p] for p in room.alive if room.sessions[p].phase is Phase.DONE]
    assert all(room.sessions[p].over for p in room.alive)
    assert len({session.result.survivors for session in done}) <= 1
    for session in done:
        whole = np.ones(room.plan.length, bool)
        for start, stop in session.result.missing:
            whole[start:stop] = False
        assert (session.result.words == room.total(session.result.survivors))[whole].all()
    room.check_hidden()


@settings(deadline=None, max_examples=examples(30))
@given(seed=st.integers(0, 2**32), share=st.sampled_from([0.02, 0.1, 0.3]), members=st.integers(2, 7))
def test_lost_and_repeated_messages_never_make_a_wrong_sum(seed: int, share: float, members: int) -> None:
    room, order = Room(plan(members)), random.Random(seed)
    room.lost = lambda sender, to, message: order.random() < share
    room.begin().settle(order.randrange)
    for sender, to, message in room.heard[::3]:  # twice
        room.post(to, room.sessions[to].receive(sender, message))
    room.settle(order.randrange).clock()
    for p in room.alive:
        session = room.sessions[p]
        assert session.over
        if session.result is not None:
            whole = np.ones(room.plan.length, bool)
            for start, stop in session.result.missing:
                whole[start:stop] = False
            assert (session.result.words == room.total(session.result.survivors))[whole].all()
    room.check_hidden()


@pytest.mark.parametrize("kind", KINDS)
def test_one_lost_frame_of_any_kind_is_mended_by_saying_it_again(kind: type) -> None:
    room, lost = Room(plan(4)), []

    def once(sender: PeerId, to: PeerId, message: SumMessage) -> bool:
        if (sender, to) == ("p1", "p2") and isinstance(message, kind) and not lost:
            lost.append(message)
            return True
        return False

    room.lost = once
    room.begin().settle()
    assert lost
    for p in room.alive:
        room.post(p, room.sessions[p].again())
    room.settle().check(room.plan.members)


def test_a_silent_member_is_left_out_when_time_is_up() -> None:
    room = Room(plan(4))
    room.lost = lambda sender, to, message: sender == "p2" and not isinstance(message, Enrol | Roll)
    room.begin().settle()
    assert {session.missing for p, session in room.sessions.items() if p != "p2"} == {("p2",)}
    room.post(PeerId("p0"), room.sessions[PeerId("p0")].expire())
    room.settle()  # the others hear from p0 that it does not count p2, and wait no longer
    for p in ("p0", "p1", "p3"):
        room.post(PeerId(p), room.sessions[PeerId(p)].expire())
    room.settle()
    for p in ("p0", "p1", "p3"):
        assert room.sessions[PeerId(p)].result.survivors == ("p0", "p1", "p3")
    room.check_hidden()


def test_too_few_vectors_are_never_summed_though_everybody_is_there() -> None:
    """Their sum would say more of each than one over `threshold` members does."""
    room = Room(plan(4))
    room.lost = lambda sender, to, message: sender in ("p1", "p2") and isinstance(message, Masked)
    room.begin().settle().clock()
    assert all(session.phase is Phase.ABANDONED for session in room.sessions.values())
    assert not any(isinstance(message, Agreed | Unmasked) for _, _, message in room.heard)


def test_parts_that_come_after_the_agreement_change_nothing_and_stay_hidden() -> None:
    room, late = Room(plan(4)), []

    def hold_back(sender: PeerId, to: PeerId, message: SumMessage) -> bool:
        if sender == "p2" and not isinstance(message, Enrol | Roll):
            late.append((sender, to, message))
            return True
        return False

    room.lost = hold_back
    room.begin().settle().clock()
    room.lost = lambda sender, to, message: False
    room.pending = late
    room.settle()
    result = room.sessions[PeerId("p0")].result
    assert result is not None
    assert result.survivors == ("p0", "p1", "p3")
    assert (result.words == room.total(result.survivors)).all()
    assert room.sessions[PeerId("p0")].revealed[PeerId("p2")] == "key"
    room.check_hidden()


def test_with_one_copy_an_owner_that_ends_takes_its_part_with_it() -> None:
    room = dropped(plan(4, copies=1), (PeerId("p1"),), Total)
    for p in room.alive:
        assert not room.sessions[p].over
        room.post(p, room.sessions[p].give_up())
        result = room.sessions[p].result
        assert result is not None
        assert result.missing == ((2, 5),)
        kept = np.delete(np.arange(D), np.arange(2, 5))
        assert (result.words == room.total(room.plan.members))[kept].all()


# --- lies ------------------------------------------------------------------------------------------------------------


def test_one_that_announces_two_keys_is_left_out() -> None:
    room = Room(plan(4))
    other = Secrets.draw(room.plan, b"another" * 5).card

    def twice(sender: PeerId, to: PeerId, message: SumMessage) -> SumMessage:
        if sender == "p1" and to == "p3" and isinstance(message, Enrol):
            return Enrol(message.round, message.number, other, message.seed_share, message.key_share)
        return message

    room.altered = twice
    room.begin().settle().clock()
    for p in ("p0", "p2", "p3"):
        result = room.sessions[PeerId(p)].result
        assert result is not None
        assert result.survivors == ("p0", "p2", "p3")
        assert (result.words == room.total(result.survivors)).all()
    room.check_hidden([PeerId("p1")])


@pytest.mark.parametrize("kind", [Counted, Agreed])
@pytest.mark.parametrize("members", [4, 7, 8])
def test_one_that_names_two_sets_of_survivors_opens_nothing(kind: type, members: int) -> None:
    room = Room(plan(members))

    def split(sender: PeerId, to: PeerId, message: SumMessage) -> SumMessage:
        if sender == "p1" and isinstance(message, kind) and int(to[1:]) % 2:
            return kind(message.round, message.number, message.label, tuple(m for m in message.members if m != 2))
        return message

    room.altered = split
    room.begin().settle().clock()
    for session in room.sessions.values():
        assert session.over
        if session.result is not None:
            assert (session.result.words == room.total(session.result.survivors)).all()
    kinds = {kind for p, session in room.sessions.items() if p != "p1" for kind in [session.revealed.get(PeerId("p2"))]}
    assert len(kinds - {None}) <= 1
    room.check_hidden([PeerId("p1")])


@settings(deadline=None, max_examples=examples(50))
@given(members=st.integers(4, 8), seed=st.integers(0, 2**32), data=st.data())
def test_liars_below_a_third_never_hold_both_secrets_of_anybody(members: int, seed: int, data) -> None:
    """They say what they like to whom they like about members, cards, shares and seeds; the network is theirs too."""
    order, room = random.Random(seed), Room(plan(members))
    liars = room.plan.members[: members - room.plan.threshold]

    def lie(sender: PeerId, to: PeerId, message: SumMessage) -> SumMessage:
        if sender not in liars or order.random() < 0.5:
            return message
        match message:
            case Counted(round_, number, label, named) | Agreed(round_, number, label, named):
                fewer = tuple(m for m in named if order.random() < 0.8)
                return type(message)(round_, number, label, fewer)
            case Roll(round_, number, cards):
                return Roll(round_, number, tuple(card if order.random() < 0.9 else b"" for card in cards))
            case Unmasked(round_, number, label, _, shares):
                return Unmasked(round_, number, label, bytes(32), tuple(share and bytes(32) for share in shares))
        return message

    room.altered = lie
    room.lost = lambda sender, to, message: order.random() < data.draw(st.sampled_from([0.0, 0.02]))
    room.begin().settle(order.randrange).clock()
    honest = [p for p in room.plan.members if p not in liars]
    for place, victim in enumerate(room.plan.members):
        if victim in honest:
            kinds = {room.sessions[p].revealed.get(victim) for p in honest} - {None}
            assert len(kinds) <= 1, place
    sums = {room.sessions[p].result.survivors for p in honest if room.sessions[p].result}
    assert len(sums) <= 1
    room.check_hidden(liars)


def test_a_wrong_share_is_found_out_where_there_are_more_than_enough() -> None:
    room = Room(plan(8))

    def wrong(sender: PeerId, to: PeerId, message: SumMessage) -> SumMessage:
        if sender == "p0" and isinstance(message, Unmasked):
            return Unmasked(message.round, message.number, message.label, message.seed,
                            tuple(share and b"x" * 32 for share in message.shares))  # fmt: skip
        return message

    room.altered = wrong
    gone = PeerId("p5")
    room.lost = lambda sender, to, message: sender == gone and isinstance(message, Counted | Agreed | Unmasked | Total)
    room.begin().settle()
    room.die(gone)
    room.all_see().check(room.plan.members)


def test_what_no_member_says_is_refused_and_changes_nothing(lab) -> None:
    room = Room(plan(4)).begin()
    session, honest = room.sessions[PeerId("p0")], PeerId("p1")
    card = Secrets.draw(room.plan, b"s" * 32).card
    cases: list[tuple[str, SumMessage]] = [
        ("p9", Withdrawn(3, 0)),
        ("p0", Withdrawn(3, 0)),
        (honest, Withdrawn(4, 0)),
        (honest, Withdrawn(3, 1)),
        (honest, Enrol(3, 0, bytes(64), b"s" * 32, b"s" * 32)),
        (honest, Roll(3, 0, (card,) * 5)),
        (honest, Counted(3, 0, b"l" * 32, (0, 4))),
        (honest, Masked(3, 0, b"l" * 32, 4, bytes(4))),
        (honest, Masked(3, 0, b"l" * 32, 0, bytes(400))),
        (honest, Masked(3, 0, b"l" * 32, 0, bytes(3))),
        (honest, Unmasked(3, 0, b"l" * 32, b"", (b"",) * 3)),
        (honest, Total(3, 0, b"l" * 32, 0, bytes(400))),
    ]
    for sender, message in cases:
        before = lab.snapshot(session)
        with pytest.raises(RemoteError) as caught:
            session.receive(PeerId(sender), message)
        assert caught.value.refusal in (Refusal.MISMATCH, Refusal.MALFORMED)
        assert lab.snapshot(session) == before, message
    for part in (0, 1):
        session.receive(honest, Masked(3, 0, b"l" * 32, part, bytes(4)))
    with pytest.raises(RemoteError):  # so many parts nobody has to hold
        session.receive(honest, Masked(3, 0, b"l" * 32, 2, bytes(4)))


# --- what shows ------------------------------------------------------------------------------------------------------


def test_masked_parts_look_uniform_whatever_is_behind_them() -> None:
    room = Room(plan(4, length=40_000))
    room.vectors = {p: np.full(40_000, 5, np.uint32) for p in room.plan.members}
    room.begin().settle().check(room.plan.members)
    shown = b"".join(m.words for _, to, m in room.heard if isinstance(m, Masked) and to == "p0")
    words = np.frombuffer(shown, np.uint32)
    assert abs(words.mean() / 2**31 - 1) < 0.02
    assert abs(words.std() * np.sqrt(12) / 2**32 - 1) < 0.02
    counts = np.bincount(np.frombuffer(shown, np.uint8), minlength=256)
    expected = len(shown) / 256
    assert abs(((counts - expected) ** 2 / expected).sum() - 255) < 8 * np.sqrt(510)
    assert len(np.unique(words)) > 0.999 * words.size


def test_two_sums_share_no_secret_and_what_was_told_of_one_opens_no_other() -> None:
    cards = {Secrets.draw(plan(4, number=n), b"s" * 32).card for n in range(3)}
    assert len(cards) == 3
    assert len({Secrets.draw(plan(n), b"s" * 32).card for n in (4, 5)}) == 2
    made = plan(4)
    secrets = [Secrets.draw(made, bytes([i]) * 32) for i in range(4)]
    maskers = [Maskers(made, {i: secrets[i].card for i in who}) for who in ((0, 1, 2), (0, 1, 2, 3))]
    assert maskers[0].label != maskers[1].label
    zero = np.zeros(D, np.uint32)
    one, other = (m.masked(zero, 0, secrets[0])[0][:2] for m in maskers)
    assert not (one == other).any()


def test_the_shares_in_an_enrolment_are_of_what_the_card_says() -> None:
    made = plan(5)
    secrets = Secrets.draw(made, b"s" * 32)
    enrols = secrets.enrolments(made, b"s" * 32)
    maskers = Maskers(made, {0: secrets.card})
    assert maskers.is_seed(0, combine([(i + 1, e.seed_share) for i, e in enumerate(enrols)], made.threshold))
    assert maskers.is_key(0, combine([(i + 1, e.key_share) for i, e in enumerate(enrols)], made.threshold))


@pytest.mark.parametrize("changes", [{"threshold": 2}, {"threshold": 5}, {"length": 0}, {"copies": 0}, {"bits": 8}])
def test_a_plan_that_hides_nothing_is_our_own_mistake(changes: dict[str, int]) -> None:
    good = {"members": plan(4).members, "round": 0, "number": 0, "threshold": 3, "length": 4, "bits": 32, "copies": 1}
    with pytest.raises(LocalError):
        SumPlan(**{**good, "context": b"", **changes})
