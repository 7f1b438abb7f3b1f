"""One round of BREA in the hand: what is put together is the sum of whom multi-Krum chooses, whoever lies."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmesh.core import BadInput, LocalError, RemoteError
from veilmesh.crypto.field import PRIME, centred, pack, reduced, unpack
from veilmesh.crypto.polynomial_shares import decode
from veilmesh.swarm.aggregators.krum import krum_ranking
from veilmesh.swarm.strategies.brea_session import BreaSession
from veilmesh.swarm.strategies.brea_steps import (
    CHECKS,
    Body,
    Choice,
    Deal,
    Distances,
    Echo,
    LowDegree,
    Step,
    Sum,
    View,
    commitment,
    pairs,
    read,
    said,
)
from veilmesh.swarm.strategies.brea_terms import Terms, dequantised, finest, quantised, terms

K, LABEL, BASE = 20, b"run/0/", b"b" * 32
Tamper = Callable[[int, int, Body], Body | None]
"""What the member at the first place tells the one at the second instead; None: nothing."""


def honestly(sender: int, to: int, body: Body) -> Body | None:
    return body


class Round:
    """All members' sessions, and what they say to each other, step by step: nobody is ever late."""

    def __init__(self, values: np.ndarray, agreed: Terms, tamper: Tamper = honestly) -> None:
        self.agreed, self.tamper, self.values = agreed, tamper, values
        self.said: dict[tuple[Step, int, int], Body] = {}
        self.sessions = [self.session(place) for place in range(agreed.members)]

    def session(self, place: int) -> BreaSession:
        return BreaSession(self.agreed, place, bytes([place + 1]) * 32, LABEL, BASE, self.values[place])

    def run(self) -> "Round":
        self.deliver(Step.DEAL, [session.deal() for session in self.sessions])
        for step in Step:
            bodies = [s.advance() if s.step is step and not s.over else None for s in self.sessions]
            if step is not Step.SUM:
                self.deliver(Step(step + 1), [[body] * len(self.sessions) for body in bodies])
        assert all(session.over for session in self.sessions)
        return self

    def deliver(self, step: Step, bodies: list[list[bytes | None]]) -> None:
        for sender, by_receiver in enumerate(bodies):
            for to, raw in enumerate(by_receiver):
                if to != sender and raw is not None:
                    body = self.tamper(sender, to, read(step, raw, self.agreed))
                    if body is not None:
                        self.said[step, sender, to] = body
                        self.sessions[to].hear(step, sender, said(body))

    def outcome(self, *but: int) -> tuple[tuple[int, ...], np.ndarray]:
        """What all honest members come to; they must agree."""
        honest = [s for place, s in enumerate(self.sessions) if place not in but]
        assert {s.failed for s in honest} == {""}
        [chosen] = {s.chosen for s in honest}
        [total] = {s.total.tobytes() for s in honest if s.total is not None}
        return chosen, np.frombuffer(total, np.int64)

    def blamed(self, place: int = 0) -> set[tuple[str, int]]:
        return {(fault.kind, fault.who) for fault in self.sessions[place].faults}


def updates(members: int, agreed: Terms, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(-agreed.levels // 4, agreed.levels // 4 + 1, (members, agreed.length))


def eight(colluding: int = 1, f: int = 2, length: int = K) -> Terms:
    return terms(8, colluding, f, None, False).measured(length, None)


# --- what it comes to ------------------------------------------------------------------------------------------------


@settings(max_examples=examples(13))
@given(members=st.integers(3, 10), colluding=st.integers(1, 2), length=st.integers(1, 40), seed=st.integers(0, 99))
def test_the_sum_is_exactly_that_of_the_chosen(members: int, colluding: int, length: int, seed: int) -> None:
    try:
        agreed = terms(members, colluding, None, None, False).measured(length, None)
    except BadInput:
        assert members < 2 * colluding + 1
        return
    values = updates(members, agreed, seed)
    chosen, total = Round(values, agreed).run().outcome()
    assert len(chosen) == members - agreed.liars
    np.testing.assert_array_equal(total, values[list(chosen)].sum(axis=0))


def test_distances_are_those_of_the_updates_and_the_choice_is_multi_krums() -> None:
    agreed = eight()
    values = updates(8, agreed)
    values[3] = agreed.levels  # as far out as can be, and the largest distances that there are
    values[6] = -agreed.levels
    game = Round(values, agreed).run()
    bodies = [game.said[Step.DISTANCES, sender, (sender + 1) % 8] for sender in range(8)]
    shares = np.array([body.values for body in bodies if isinstance(body, Distances)])
    plain = ((values[:, None] - values[None]) ** 2).sum(axis=2)
    for column, (i, j) in enumerate(pairs(8)):
        polynomial = decode(range(1, 9), [int(v) for v in shares[:, column]], 2, 0)
        assert polynomial is not None
        assert polynomial[0] == plain[i, j]
    assert plain.max() < PRIME
    assert game.outcome()[0] == tuple(sorted(krum_ranking(plain.astype(np.float64), np.zeros(8), 2)[:6]))
    assert not {3, 6} & set(game.outcome()[0])


def test_shares_and_tests_of_one_member_are_nothing_but_noise() -> None:
    """What member 0 is told before the sum, for two very different updates of member 1: the same law."""
    agreed = eight(length=16_000)
    for fill in (0, agreed.levels):
        values = np.full((8, agreed.length), fill, np.int64)
        game = Round(values, agreed).run()
        deal = game.said[Step.DEAL, 1, 0]
        assert isinstance(deal, Deal)
        share = unpack(deal.share, agreed.length + CHECKS)
        counts = np.bincount((share[:-CHECKS] >> np.uint64(27)).astype(int), minlength=16)
        assert ((counts - 1000.0) ** 2 / 1000).sum() < 60  # 15 degrees of freedom: once in 10^6
    tests = game.said[Step.TEST, 2, 0]
    assert isinstance(tests, LowDegree)
    assert len({row[0] for row in tests.values}) == 8  # eight equal updates, and their tests differ


# --- liars -----------------------------------------------------------------------------------------------------------


def reshared(deal: Deal, dealer: int, holder: int, share: bytes) -> tuple[Deal, bytes]:
    """A deal with another share, and what has to be promised for it."""
    return deal._replace(share=share), commitment(LABEL, dealer, holder, deal.salt, share)


def bent(share: bytes) -> bytes:
    """A share with one coordinate off by one."""
    x = unpack(share, len(share) // 4)
    x[3] = (x[3] + np.uint64(1)) % np.uint64(PRIME)
    return pack(x)


def test_a_share_that_is_not_what_was_promised_names_its_dealer_at_once() -> None:
    def tamper(sender: int, to: int, body: Body) -> Body | None:
        return body._replace(share=bent(body.share)) if isinstance(body, Deal) and (sender, to) == (5, 2) else body

    agreed = eight()
    values = updates(8, agreed)
    game = Round(values, agreed, tamper).run()
    assert ("broken-commitment", 5) in game.blamed(2)
    chosen, total = game.outcome(5)
    np.testing.assert_array_equal(total, values[list(chosen)].sum(axis=0))


class CrookedDealer:
    """Member 5 promises, and deals, shares to `victims` that lie on no polynomial of degree T."""

    def __init__(self, values: np.ndarray, agreed: Terms, victims: tuple[int, ...]) -> None:
        session = BreaSession(agreed, 5, bytes([6]) * 32, LABEL, BASE, values[5])
        deals = [read(Step.DEAL, raw, agreed) for raw in session.deal()]
        self.deals = [deal for deal in deals if isinstance(deal, Deal)]
        promised = list(self.deals[0].commitments)
        for victim in victims:
            self.deals[victim], promised[victim] = reshared(
                self.deals[victim], 5, victim, bent(self.deals[victim].share)
            )
        self.deals = [deal._replace(commitments=tuple(promised)) for deal in self.deals]

    def __call__(self, sender: int, to: int, body: Body) -> Body | None:
        if sender == 5 and isinstance(body, Deal):
            return self.deals[to]
        if sender == 5 and isinstance(body, Echo):  # it holds its own deal as the others do
            digests = list(body.digests)
            digests[5] = self.deals[0].digest
            return body._replace(digests=tuple(digests))
        return body


@pytest.mark.parametrize("victims", [(2,), (1, 2), (0, 1, 2, 3)])
def test_one_tampered_share_names_its_dealer_whose_update_is_left_out(victims: tuple[int, ...]) -> None:
    agreed = eight()
    values = updates(8, agreed)
    game = Round(values, agreed, CrookedDealer(values, agreed, victims)).run()
    chosen, total = game.outcome(5)
    assert 5 not in chosen
    np.testing.assert_array_equal(total, values[list(chosen)].sum(axis=0))
    for place in (0, 3, 7):
        assert game.blamed(place) == {("wrong-share" if len(victims) < 3 else "no-sharing", 5)}


def test_a_holder_that_slanders_a_dealer_is_named_itself() -> None:
    def tamper(sender: int, to: int, body: Body) -> Body | None:
        if sender == 4 and isinstance(body, LowDegree):
            rows = [*body.values]
            rows[1] = tuple((v + 1) % PRIME for v in rows[1])
            return body._replace(values=tuple(rows))
        return body

    agreed = eight()
    values = updates(8, agreed)
    game = Round(values, agreed, tamper).run()
    chosen, total = game.outcome(4)
    np.testing.assert_array_equal(total, values[list(chosen)].sum(axis=0))
    assert 4 not in chosen
    assert game.blamed(0) == {("no-proof", 4)}


@pytest.mark.parametrize("liars", [(4,), (4, 7)])
def test_wrong_distances_and_sums_are_corrected_and_named(liars: tuple[int, ...]) -> None:
    def tamper(sender: int, to: int, body: Body) -> Body | None:
        if sender in liars and isinstance(body, Distances):
            return body._replace(values=tuple((v + 17 * sender) % PRIME for v in body.values))
        return body

    def later(sender: int, to: int, body: Body) -> Body | None:
        return body._replace(share=bent(body.share)) if sender in liars and isinstance(body, Sum) else body

    agreed = eight()
    values = updates(8, agreed)
    for lie, kind in ((tamper, "wrong-distance"), (later, "wrong-sum")):
        game = Round(values, agreed, lie).run()
        chosen, total = game.outcome(*liars)
        np.testing.assert_array_equal(total, values[list(chosen)].sum(axis=0))
        assert game.blamed(0) == {(kind, liar) for liar in liars}


def test_a_bad_update_that_is_well_dealt_is_not_chosen() -> None:
    agreed = eight()
    values = updates(8, agreed)
    for liar in (2, 6):
        values[liar] = np.clip(-5 * values[liar], -agreed.levels, agreed.levels)
    chosen, total = Round(values, agreed).run().outcome()
    assert chosen == (0, 1, 3, 4, 5, 7)
    np.testing.assert_array_equal(total, values[list(chosen)].sum(axis=0))


def isotropic() -> np.ndarray:
    """Three numbers, huge, whose squares add up to 0 modulo p."""
    a = 123_456_789
    for b in range(1, 1000):
        square = -(a * a + b * b) % PRIME
        c = pow(square, (PRIME + 1) // 4, PRIME)
        if c * c % PRIME == square:
            return np.array([a, b, c])
    raise AssertionError


def test_a_far_vector_that_seems_near_modulo_p_spoils_the_round_and_not_the_model() -> None:
    """On coordinates that nobody else uses, distances do not see it: its square is 0. The sum's range does."""
    agreed = eight()
    values = updates(8, agreed)
    values[:, :3] = 0
    liar = Round(values, agreed).run().outcome()[0][0]  # whom multi-Krum trusts
    game = Round(values, agreed)
    far = values[liar].copy()
    far[:3] = centred(isotropic().astype(np.uint64))
    game.sessions[liar]._values = far
    game.run()
    assert {s.failed for s in game.sessions} == {"the sum is not within the levels of those that were chosen"}
    assert all(s.total is None for s in game.sessions)


def test_nonces_that_are_kept_back_or_told_to_some_do_not_stop_a_round() -> None:
    for told in ((), (0, 1)):

        def tamper(sender: int, to: int, body: Body, told: tuple[int, ...] = told) -> Body | None:
            return None if sender == 5 and isinstance(body, Echo) and to not in told else body

        agreed = eight()
        values = updates(8, agreed)
        chosen, total = Round(values, agreed, tamper).run().outcome(5)
        np.testing.assert_array_equal(total, values[list(chosen)].sum(axis=0))


def test_a_member_that_votes_one_way_here_and_another_there_opens_no_second_sum() -> None:
    def tamper(sender: int, to: int, body: Body) -> Body | None:
        if sender in (5, 6) and isinstance(body, Choice) and to < 4:
            return Choice((0, 1, 2))
        return body

    agreed = eight()
    game = Round(updates(8, agreed), agreed, tamper).run()
    sums = {body.chosen for (step, sender, _), body in game.said.items() if isinstance(body, Sum) and sender < 5}
    assert len(sums) == 1


def test_who_deals_after_the_nonces_are_out_is_not_heard() -> None:
    agreed = eight()
    game = Round(updates(8, agreed), agreed)
    late = game.sessions[3].deal()
    first = game.sessions[0]
    first.deal()
    first.advance()
    first.hear(Step.DEAL, 3, late[0])
    assert first.missing({3}) == {3}
    assert 3 not in first._heard[Step.DEAL]


# --- members that are gone -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", list(Step))
def test_a_member_that_is_gone_from_some_step_on(step: Step) -> None:
    def tamper(sender: int, to: int, body: Body) -> Body | None:
        kinds = (Deal, Echo, View, LowDegree, Distances, Choice, Sum)
        return None if sender == 3 and kinds.index(type(body)) >= step else body

    agreed = eight(f=1)
    values = updates(8, agreed)
    game = Round(values, agreed, tamper).run()
    chosen, total = game.outcome(3)
    np.testing.assert_array_equal(total, values[list(chosen)].sum(axis=0))
    assert not game.blamed(0)


def test_with_too_few_left_nothing_is_put_together() -> None:
    def tamper(sender: int, to: int, body: Body) -> Body | None:
        return None if sender > 3 or to > 3 else body

    agreed = eight()
    game = Round(updates(8, agreed), agreed, tamper).run()
    assert all(s.failed and s.total is None for s in game.sessions)


def test_one_that_missed_the_deals_takes_the_sum_from_the_others() -> None:
    def tamper(sender: int, to: int, body: Body) -> Body | None:
        return None if to == 2 and isinstance(body, Deal | View) else body

    agreed = eight(f=1)
    values = updates(8, agreed)
    chosen, total = Round(values, agreed, tamper).run().outcome()
    np.testing.assert_array_equal(total, values[list(chosen)].sum(axis=0))


# --- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "t", "f", "m", "proven", "complaint"),
    [
        (8, 2, 2, None, False, "decoded with 9 peers"),
        (2, 1, None, None, False, "decoded with 3 peers"),
        (8, 1, 3, None, False, "decoded with 9|outvoted among 10"),
        (6, 1, 1, 6, False, "at most 5 updates"),
        (8, 1, 2, 2, False, "hides none"),
        (8, 1, 2, None, True, "hides none"),
        (9, 1, 1, 5, True, "at most 4"),
        (65, 1, 1, None, False, "would cost"),
    ],
)
def test_terms_that_cannot_be_kept_are_refused(
    n: int, t: int, f: int | None, m: int | None, proven: bool, complaint: str
) -> None:
    with pytest.raises(BadInput, match=complaint):
        terms(n, t, f, m, proven)


@given(members=st.integers(3, 64))
def test_terms_by_default_can_be_kept_with_one_gone(members: int) -> None:
    agreed = terms(members, None, None, None, False)
    f, t, gone = agreed.liars, agreed.colluding, int(agreed.liars > 0)
    assert members >= 2 * f + 2 * t + 1 + gone
    assert members - f - gone >= agreed.quorum
    assert 2 * agreed.quorum - members > f
    assert terms(members, t, f, agreed.chosen, False) == agreed
    assert members < 10 or min(f, t) >= 2


def test_krums_proof_allows_for_few() -> None:
    assert terms(8, 1, 1, None, True).chosen == 3
    assert terms(8, 1, 1, None, False).chosen == 7
    assert terms(13, 2, 2, None, True).chosen == 6


@given(length=st.integers(1, 10**8))
def test_no_distance_can_reach_p(length: int) -> None:
    levels = finest(length)
    assert length * (2 * levels) ** 2 < PRIME <= length * (2 * levels + 2) ** 2
    with pytest.raises(BadInput, match="exceed the field"):
        eight(length=length).measured(length, levels + 1)


def test_more_coordinates_than_the_field_can_hold_are_refused() -> None:
    with pytest.raises(BadInput, match="share fewer"):
        eight().measured(10**9, None)


def test_an_update_beyond_the_levels_is_our_own_mistake() -> None:
    agreed = eight()
    with pytest.raises(LocalError):
        BreaSession(agreed, 0, bytes(32), LABEL, BASE, np.full(K, agreed.levels + 1))


def test_levels_and_back() -> None:
    x = np.array([0.3, -0.1, 0.05, 9.0, 0.0], np.float32)
    np.testing.assert_allclose(dequantised(quantised(x, 0.5, 1000), 1, 0.5, 1000), np.clip(x, -0.5, 0.5), atol=2.6e-4)


BODIES: dict[Step, Any] = {
    Step.ECHO: Echo((b"",) * 8, bytes(16)),
    Step.VIEW: View((b"d" * 32,) * 8, (b"",) * 8),
    Step.TEST: LowDegree(bytes(32), ((1, 2),) * 8),
    Step.DISTANCES: Distances(bytes(32), (-1,) * 28, ()),
    Step.CHOICE: Choice((1, 2)),
    Step.SUM: Sum((1, 2), pack(np.zeros(K, np.uint64))),
}


@settings(max_examples=examples(150))
@given(step=st.sampled_from(list(Step)), raw=st.binary(max_size=80), data=st.data())
def test_bytes_are_a_body_or_malformed(step: Step, raw: bytes, data: st.DataObject) -> None:
    if step in BODIES and data.draw(st.booleans()):
        whole = bytearray(said(BODIES[step]))
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
        raw = bytes(whole)
    session = BreaSession(eight(), 0, bytes(32), LABEL, BASE, np.zeros(K, np.int64))
    try:
        session.hear(step, 1, raw)
    except RemoteError:
        assert session._heard[step] == {}


@pytest.mark.parametrize(
    ("step", "body"),
    [
        (Step.ECHO, Echo((b"",) * 7, bytes(16))),
        (Step.ECHO, Echo((b"x",) * 8, bytes(16))),
        (Step.VIEW, View((b"",) * 8, (b"x",) * 8)),
        (Step.TEST, LowDegree(bytes(32), ((1,),) * 8)),
        (Step.TEST, LowDegree(bytes(32), ((1, PRIME),) * 8)),
        (Step.DISTANCES, Distances(bytes(32), (0,) * 27, ())),
        (Step.DISTANCES, Distances(bytes(32), (-2,) * 28, ())),
        (Step.CHOICE, Choice((2, 1))),
        (Step.CHOICE, Choice((1, 8))),
        (Step.SUM, Sum((1, 2), bytes(4 * K + 4))),
    ],
)
def test_what_is_out_of_shape_is_refused(step: Step, body: Body) -> None:
    with pytest.raises(RemoteError):
        read(step, said(body), eight())


def test_reduced_is_what_sums_of_shares_need() -> None:
    assert int(reduced(np.array([2 * (PRIME - 1)], np.uint64))[0]) == PRIME - 2
