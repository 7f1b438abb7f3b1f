"""One round of BREA, as one member sees it: what to say, what was said, and what follows. Sans-IO, without a clock.

    deals = session.deal()                       one body for every other member
    session.hear(step, sender, body)             at any time, in any order
    session.missing(alive)                       who has not spoken in the present step
    body = session.advance()                     the step is over: what to tell everybody in the next; None: nothing

DEAL       shares of the update and of two blinds, and hashes of everybody's share: a dealer cannot change them later
ECHO       which deals I hold; my part of the coin, which my deal committed me to (Blum 1983)
VIEW       which deals a quorum holds, and the parts of the coin; what a quorum of views says is the round's
TEST       random combinations of the shares I hold, drawn by the coin; they lie on a polynomial of degree T
DISTANCES  my shares of the squared distances, of degree 2T; and, in dispute, the share that I was dealt
CHOICE     the dealers that multi-Krum chooses, by the distances alone
SUM        my share of the sum of those that a quorum chose: of no other sum, ever, in this round

The test stands in for Feldman's commitments: those would be k (T + 1) group exponentiations a sharing, minutes where
this takes milliseconds, and in a group as small as this field they would bind nobody. A dealer whose sharing is not of
degree T passes with a chance of 2^-62, as its shares are dealt, and told of, before anybody can know the coin.

Whoever hears too little to go on says nothing more, and takes the sum from those who did. If there is none, `failed`
says why, and the round has changed nothing.
"""

from collections.abc import Collection
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from veilmesh.core import LocalError
from veilmesh.crypto.field import Elements, centred, elements, pack, random_elements, reduced, unpack
from veilmesh.crypto.polynomial_shares import radius, recover, share_vector
from veilmesh.swarm.strategies.brea_steps import (
    CHECKS,
    Body,
    Choice,
    Deal,
    Distances,
    Echo,
    LowDegree,
    Opening,
    Step,
    Sum,
    View,
    commitment,
    derived,
    read,
    said,
)
from veilmesh.swarm.strategies.brea_terms import Terms
from veilmesh.swarm.strategies.brea_verdicts import (
    Fault,
    Tested,
    agreed,
    checked,
    choose,
    distance_matrix,
    distance_shares,
    judge,
    most_said,
    tested,
)

__all__ = ["BreaSession"]

B = TypeVar("B", Deal, Echo, View, LowDegree, Distances, Choice, Sum)


class BreaSession:
    """One member's part in one round.

    Args:
        terms: the round's, alike for everybody.
        me: this member's place.
        key: 32 secret bytes, for this round only; shares, nonce and salts follow from it.
        label: bytes that name the run and the round, alike for everybody.
        base: the digest (32 bytes) of the model that updates start from; deals of another one are not taken.
        values: (k,) this member's update, in whole numbers within the terms' levels.
    """

    def __init__(self, terms: Terms, me: int, key: bytes, label: bytes, base: bytes, values: NDArray[np.int64]) -> None:
        if values.shape != (terms.length,) or (np.abs(values) > terms.levels).any():
            raise LocalError(f"an update that is not of {terms.length} coordinates within {terms.levels} levels")
        self._terms, self._me, self._key, self._label, self._base, self._values = terms, me, key, label, base, values
        self.step = Step.DEAL
        self.over = False
        self.failed = ""  # why there is no sum
        self.total: NDArray[np.int64] | None = None  # (k,) the sum of the chosen updates
        self.chosen: tuple[int, ...] = ()
        self.faults: list[Fault] = []
        self._heard: dict[Step, dict[int, Body]] = {step: {} for step in Step}
        self._held: dict[int, Elements] = {}  # by dealer: the share that I was dealt, where it fits its commitment
        self._digests: tuple[bytes, ...] = ()
        self._coin = b""
        self._tests: dict[int, Tested] = {}
        self._guilty: set[int] = set()

    # --- what is said ------------------------------------------------------------------------------------------

    def deal(self) -> list[bytes]:
        """What to say to everybody, by place; one's own deal is heard at once."""
        n, dealt = self._terms.members, np.concatenate([elements(self._values), self._blinds()])
        shares = share_vector(dealt, n, self._terms.colluding, derived(self._key, "shares"))
        packed = [pack(share) for share in shares]
        salts = [derived(self._key, "salt", place, size=16) for place in range(n)]
        promised = tuple(commitment(self._label, self._me, j, salts[j], packed[j]) for j in range(n))
        coin = self._promise(self._me, self._nonce())
        deals = [Deal(packed[j], salts[j], promised, coin, self._base) for j in range(n)]
        self._heard[Step.DEAL][self._me] = deals[self._me]
        return [said(deal) for deal in deals]

    def hear(self, step: Step, sender: int, raw: bytes) -> None:
        """Take in what a member says. Raises RemoteError for what is no such body; the first of a kind counts."""
        body = read(step, raw, self._terms)
        if step is not Step.DEAL or self.step is Step.DEAL:  # who deals after our nonce is out may know the coin
            self._heard[step].setdefault(sender, body)

    def missing(self, alive: Collection[int]) -> set[int]:
        """Of those, who has not spoken in this step."""
        return set(alive) - self._heard[self.step].keys() - {self._me}

    def ahead(self) -> int:
        """How many have spoken in a later step."""
        return len({sender for step in Step if step > self.step for sender in self._heard[step]} - {self._me})

    def holds_none_of(self) -> int:
        """How many start from another model than this member."""
        deals = self._heard[Step.DEAL].values()
        return sum(isinstance(deal, Deal) and deal.base != self._base for deal in deals)

    def advance(self) -> bytes | None:
        """End the present step with what was heard; what to tell everybody in the next one."""
        body = self._next()
        if body is None:
            return None
        self.step = Step(self.step + 1)
        self._heard[self.step][self._me] = body
        return said(body)

    def _next(self) -> Body | None:
        match self.step:
            case Step.DEAL:
                return self._echo()
            case Step.ECHO:
                return self._view()
            case Step.VIEW:
                return self._test() if self._agree() else None
            case Step.TEST:
                return self._measure() if self._examine() else None
            case Step.DISTANCES:
                return self._choose()
            case Step.CHOICE:
                return self._add_up()
            case Step.SUM:
                self._conclude()
                return None

    def _give_up(self, reason: str) -> None:
        """Say nothing more, and wait for what the others come to."""
        self.failed, self.step = reason, Step.SUM

    # --- the steps ---------------------------------------------------------------------------------------------

    def _echo(self) -> Echo:
        for dealer, deal in self._of(Step.DEAL, Deal).items():
            promised = commitment(self._label, dealer, self._me, deal.salt, deal.share)
            if promised != deal.commitments[self._me]:
                self.faults.append(Fault("broken-commitment", dealer, self._me))
            elif deal.base == self._base:
                self._held[dealer] = unpack(deal.share, self._terms.length + CHECKS)
        return Echo(self._by_place({i: deal.digest for i, deal in self._mine().items()}), self._nonce())

    def _view(self) -> View:
        echoes = self._of(Step.ECHO, Echo)
        known = {i: echo.nonce for i, echo in echoes.items() if self._is_promised(i, echo.nonce)}
        held = agreed([echo.digests for echo in echoes.values()], self._terms.quorum, self._terms.members)
        return View(held, self._by_place(known))

    def _agree(self) -> bool:
        views, terms = self._of(Step.VIEW, View).values(), self._terms
        self._digests = agreed([view.digests for view in views], terms.quorum, terms.members)
        nonces = agreed([view.nonces for view in views], terms.quorum, terms.members)
        if sum(map(bool, nonces)) <= terms.liars:
            self._give_up("too few agree about who has dealt")
            return False
        lot = b"".join(bytes([len(part)]) + part for part in (*self._digests, *nonces))
        self._coin = derived(b"", "coin", self._label.hex(), lot.hex())
        return True

    def _test(self) -> LowDegree:
        held, random = self._agreed_shares(), self._combinations()
        values = checked(held, random)
        return LowDegree(self._coin, tuple(values.get(i, ()) for i in self._places))

    def _examine(self) -> bool:
        tests = {i: test for i, test in self._of(Step.TEST, LowDegree).items() if test.view == self._coin}
        if len(tests) < self._terms.quorum:
            self._give_up("too few see the same view")
            return False
        for dealer in self._dealers():
            found = tested(dealer, tests, self._terms)
            if isinstance(found, Tested):
                self._tests[dealer] = found
            elif found:  # else too few speak of it: who it is that fails is not known
                self._blame(found)
        return True

    def _measure(self) -> Distances:
        held = self._agreed_shares()
        deals = self._of(Step.DEAL, Deal)
        disputed = [i for i, test in sorted(self._tests.items()) if self._me in test.misfit and i in held]
        openings = tuple(Opening(i, deals[i].share, deals[i].salt) for i in disputed)
        shares = distance_shares({i: share[:-CHECKS] for i, share in held.items()}, self._terms.members)
        return Distances(self._coin, shares, openings)

    def _choose(self) -> Choice | None:
        heard = {i: d for i, d in self._of(Step.DISTANCES, Distances).items() if d.view == self._coin}
        for dealer, test in sorted(self._tests.items()):
            for holder in sorted(test.misfit):
                self._blame(self._judged(dealer, holder, test, heard.get(holder)))
        dealers = [i for i in sorted(self._tests) if i not in self._guilty]
        listened = {i: d for i, d in heard.items() if i not in self._guilty}
        if radius(len(listened), 2 * self._terms.colluding, self._terms.liars - len(self._guilty)) < 0:
            self._give_up("too few shares of the distances")
            return None
        before = set(self._guilty)
        squared = distance_matrix(dealers, self._tests, listened, self._guilty, self._terms)
        for liar in sorted(self._guilty - before):
            self.faults.append(Fault("wrong-distance", liar, -1))
        kept = [row for row, i in enumerate(dealers) if i not in self._guilty]
        squared = squared[np.ix_(kept, kept)]
        return Choice(choose([dealers[row] for row in kept], squared, self._guilty, self._terms, self._coin))

    def _judged(self, dealer: int, holder: int, test: Tested, shown: Distances | None) -> Fault:
        openings = {o.dealer: o for o in shown.openings} if shown else {}
        deal = self._mine().get(dealer)
        if deal is None or deal.digest != self._digests[dealer]:  # then we cannot tell which of them it is
            return Fault("not-dealt", dealer, self._me)
        promised = deal.commitments[holder]
        return judge(dealer, holder, openings.get(dealer), promised, test, self._combinations(), self._label)

    def _add_up(self) -> Sum | None:
        choices = [choice.chosen for i, choice in self._of(Step.CHOICE, Choice).items() if i not in self._guilty]
        chosen = most_said(choices, self._terms.quorum)
        if not chosen:
            self._give_up("too few choose the same updates")
            return None
        held = self._agreed_shares()
        if any(i not in held for i in chosen):
            return Sum(chosen, b"")
        total = np.zeros(self._terms.length, np.uint64)
        for i in chosen:
            total = reduced(total + held[i][:-CHECKS])
        return Sum(chosen, pack(total))

    def _conclude(self) -> None:
        self.over = True
        sums = {i: s for i, s in sorted(self._of(Step.SUM, Sum).items()) if i not in self._guilty}
        chosen = most_said([s.chosen for s in sums.values()], self._terms.quorum)
        if not chosen:
            self.failed = self.failed or "too few add up the same updates"
            return
        shares = {i: unpack(s.share, self._terms.length) for i, s in sums.items() if s.chosen == chosen and s.share}
        errors = radius(len(shares), self._terms.colluding, max(0, self._terms.liars - len(self._guilty)))
        points, key = [i + 1 for i in shares], derived(self._key, "combination")
        stacked = np.stack(list(shares.values())) if shares else np.zeros((0, self._terms.length), np.uint64)
        found = recover(points, stacked, self._terms.colluding, errors, key)
        if found is None:
            self.failed = "the shares of the sum do not fit together"
            return
        for point in found.wrong:
            self._blame(Fault("wrong-sum", point - 1, -1))
        self._take(chosen, centred(found.secret))

    def _take(self, chosen: tuple[int, ...], total: NDArray[np.int64]) -> None:
        """Distances are modulo p: one far out may seem near (some vectors other than 0 have a square of 0). Its sum
        with others would not be within their levels; then nobody's is taken."""
        if (np.abs(total) > len(chosen) * self._terms.levels).any():
            self.failed = "the sum is not within the levels of those that were chosen"
            return
        self.failed, self.total, self.chosen = "", total, chosen

    # --- small things ------------------------------------------------------------------------------------------

    @property
    def _places(self) -> range:
        return range(self._terms.members)

    def _of(self, step: Step, kind: type[B]) -> dict[int, B]:
        return {sender: body for sender, body in sorted(self._heard[step].items()) if isinstance(body, kind)}

    def _mine(self) -> dict[int, Deal]:
        """The deals that fit."""
        return {i: deal for i, deal in self._of(Step.DEAL, Deal).items() if i in self._held}

    def _dealers(self) -> list[int]:
        return [i for i, digest in enumerate(self._digests) if digest]

    def _agreed_shares(self) -> dict[int, Elements]:
        """By dealer of the round: my share, if it is of the deal that a quorum holds."""
        return {i: self._held[i] for i, deal in self._mine().items() if deal.digest == self._digests[i]}

    def _by_place(self, words: dict[int, bytes]) -> tuple[bytes, ...]:
        return tuple(words.get(place, b"") for place in self._places)

    def _blame(self, fault: Fault) -> None:
        self.faults.append(fault)
        self._guilty.add(fault.who)

    def _blinds(self) -> Elements:
        return random_elements(derived(self._key, "blinds"), CHECKS)

    def _combinations(self) -> Elements:
        """What the test multiplies shares with, (CHECKS, k): everybody's, by the coin."""
        return random_elements(self._coin, CHECKS * self._terms.length).reshape(CHECKS, -1)

    def _nonce(self) -> bytes:
        return derived(self._key, "nonce", size=16)

    def _promise(self, dealer: int, nonce: bytes) -> bytes:
        return derived(b"", "nonce", self._label.hex(), dealer, nonce.hex())

    def _is_promised(self, dealer: int, nonce: bytes) -> bool:
        deal = self._mine().get(dealer)
        return deal is not None and deal.coin == self._promise(dealer, nonce)
