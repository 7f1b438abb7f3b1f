"""How a mesh grows: hellos, newcomers, returns, and who is told of whom.

Theory of operation. A hello is this peer's announcement, said in clear to somebody who may not know it: to contacts
and to those that discovery found, until they are members; to members, with every sign of life, until they are heard.
So wherever only one of two knows the other, it says so until both do, and what is heard is never said twice.

A newcomer is told who we are, and a few members are told of it: those 1, 2, 4, ... places further in the circle of all,
who do the same if it is news to them, so that it goes round in few steps and few frames. Whatever is lost on the way
comes by asking: a joiner asks its contacts, whoever hears a lost member again asks it, and now and then each asks one
of the others. A question carries a digest of whom the asker knows; it is answered if that differs.

Only members that are heard are handed on. What is known of the dead therefore dies out, and they can be forgotten.
"""

import math
from bisect import bisect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from veilmesh.core import BadInput, LocalError, Refusal, RemoteError
from veilmesh.crypto.envelope import Card
from veilmesh.peer.limits import Kind, Limits
from veilmesh.peer.lobby import DIGEST_BYTES, Lobby, pages, unpack
from veilmesh.peer.machine import Note, PeerId
from veilmesh.peer.outbox import Outbox
from veilmesh.peer.presence import Presence
from veilmesh.peer.transports.base import Found

__all__ = ["Hands", "Reception"]


@dataclass(frozen=True, slots=True)
class Hands:
    """What a reception has done by its node.

    `carry_to` begins to carry to a peer; `introduce` tells the transport all addresses (raises BadInput: one is none);
    `knock` sends a frame to somebody who is no member; `refuse` counts what was wrong, and whose fault it was.
    """

    carry_to: Callable[[PeerId], None]
    introduce: Callable[[dict[PeerId, str]], None]
    knock: Callable[[PeerId, bytes], None]
    refuse: Callable[[RemoteError, PeerId | None], None]
    note: Callable[[Note], None]


class Reception:
    """One peer's way of letting others in.

    Args:
        me: this peer.
        lobby: whom it lets in.
        contacts: addresses of peers that should be there, from an invite.
        presence: who is here.
        outbox: carries to members.
        hands: what only the node can do.
    """

    def __init__(
        self,
        me: PeerId,
        lobby: Lobby,
        contacts: Mapping[PeerId, str],
        presence: Presence,
        outbox: Outbox,
        limits: Limits,
        hands: Hands,
    ) -> None:
        self._me = me
        self._lobby = lobby
        self._contacts = {peer: address for peer, address in contacts.items() if peer != me}
        self._presence = presence
        self._outbox = outbox
        self._limits = limits
        self._hands = hands
        self._book: dict[PeerId, str] = {}  # addresses
        self._sealing: dict[PeerId, bytes] = {}  # of members: which process they are
        self._strangers: dict[PeerId, float] = {}  # that discovery found: when we said hello
        self._answered: dict[PeerId, float] = {}  # members that asked: when
        self._lost: set[PeerId] = set()  # members that fell silent, and are asked when they are heard again
        self._news: set[PeerId] = set()  # let in, and not handed on yet
        self._next_question = self._next_knock = self._next_news = -math.inf
        self._last_asked = PeerId("")

    def begin(self, now: float) -> None:
        """Know the way to everybody we begin with. Raises BadInput: the address of a founder or contact is none."""
        if unknown := self._presence.members.everybody - self._lobby.members:
            raise LocalError(f"the lobby was not given the cards of {', '.join(sorted(unknown))}")
        cards = [card for peer in self._lobby.members if (card := self._lobby.card(peer))]
        self._sealing = {card.peer: card.sealing for card in cards}
        self._book = self._contacts | {card.peer: card.address for card in cards if card.address}
        self._hands.introduce(dict(self._book))
        for card in cards:
            if card.peer not in self._presence.members:
                self._presence.expect(card.peer, now)

    # --- who comes -----------------------------------------------------------------------------------------------

    def announced(self, announcements: Iterable[bytes], by: PeerId | None, now: float) -> None:
        """Announcements came: in a frame of their own (`by` nobody knows whom), or told by a member."""
        fresh: dict[PeerId, str] = {}
        for raw in announcements:
            try:
                card = self._lobby.take(raw)
            except RemoteError as error:
                self._hands.refuse(error, by)
                continue
            if card:
                self._let_in(card, now)
                fresh[card.peer] = card.address
        self._introduce(fresh, by)
        if now >= self._next_news:
            self._hand_on(now)

    def still_there(self, peer: PeerId, now: float) -> None:
        """An authentic frame of somebody who is no member: one that was forgotten too early."""
        if card := self._lobby.recall(peer):
            self._let_in(card, now)
            self._introduce({peer: card.address}, peer)

    def found(self, what: Found, now: float) -> None:
        """Discovery found somebody, perhaps: hello, if it is not here already and has not been greeted lately."""
        if what.peer == self._me or what.peer in self._presence.members.present:
            return
        if what.peer in self._strangers and now < self._strangers[what.peer] + self._limits.patience:
            return
        self._strangers.pop(what.peer, None)
        while len(self._strangers) >= self._limits.strangers:
            self._lose_sight(next(iter(self._strangers)))
        self._strangers[what.peer] = now
        self._introduce({what.peer: what.address}, what.peer)
        if what.peer in self._book:
            self._hands.knock(what.peer, self._lobby.hello())

    def heard(self, peer: PeerId, now: float) -> None:
        """A member is heard for the first time, or again: it may know others that we do not."""
        card = self._lobby.card(peer)
        if card and card.address and self._book.get(peer) != card.address:  # its own word, against what was found
            self._introduce({peer: card.address}, peer)
        if peer in self._contacts or peer in self._lost:
            self._lost.discard(peer)
            self._ask(peer)

    def fell_silent(self, peers: Iterable[PeerId]) -> None:
        """These members are not heard any more."""
        self._lost.update(peers)

    def _let_in(self, card: Card, now: float) -> None:
        peer = card.peer
        if peer not in self._presence.members:
            self._presence.expect(peer, now)
            self._hands.carry_to(peer)
            self._hands.note(Note("let-in", {"who": str(peer)}))
        elif self._sealing[peer] != card.sealing or peer not in self._presence.members.present:
            self._outbox.stop(peer)  # what waits was meant for the process that is no more
            self._hands.carry_to(peer)
            self._presence.renewed(peer, now)
            self._hands.note(Note("let-in-again", {"who": str(peer)}))
        self._sealing[peer] = card.sealing
        self._strangers.pop(peer, None)
        self._presence.tell(peer)
        self._news.add(peer)

    def _introduce(self, fresh: dict[PeerId, str], by: PeerId | None) -> None:
        """Addresses that others named may be nonsense: then their peers are members that cannot be reached."""
        fresh = {peer: address for peer, address in fresh.items() if address}
        if not fresh:
            return
        try:
            self._hands.introduce(self._book | fresh)
        except BadInput as error:
            if len(fresh) == 1:
                self._hands.refuse(RemoteError(Refusal.MALFORMED, str(error)), by)
                return
            for peer, address in fresh.items():
                self._introduce({peer: address}, by)
        else:
            self._book |= fresh

    # --- who is told of whom -------------------------------------------------------------------------------------

    def asked(self, by: PeerId, digest: bytes, now: float) -> None:
        """A member asks whom we know. Raises RemoteError(MALFORMED)."""
        if len(digest) != DIGEST_BYTES:
            raise RemoteError(Refusal.MALFORMED, "a question without a digest")
        present = self._presence.members.present
        lately = by in self._answered and now < self._answered[by] + self._limits.heartbeat
        if not lately and digest != self._lobby.digest(present):
            self._answered[by] = now
            self._tell_of(by, present)

    def told(self, by: PeerId, page: bytes, now: float) -> None:
        """A member tells us of others. Raises RemoteError, if that cannot be read."""
        self.announced(unpack(page), by, now)

    def _hand_on(self, now: float) -> None:
        """A newcomer at once, and those that come right after it together: a crowd must not multiply itself."""
        if not self._news:
            return
        self._next_news = now + self._limits.heartbeat
        for other in self._further(self._presence.members.present):
            self._tell_of(other, self._news)
        self._news.clear()

    def _ask(self, peer: PeerId) -> None:
        self._outbox.hasten(peer, Kind.ASKING, self._lobby.digest(self._presence.members.present))

    def _tell_of(self, to: PeerId, peers: Iterable[PeerId]) -> None:
        for page in pages(self._lobby.known(peers)):
            self._outbox.post(to, Kind.ROSTER, page)

    def _further(self, others: frozenset[PeerId]) -> list[PeerId]:
        """Those 1, 2, 4, ... places after us in the circle of all, by id."""
        circle = sorted(others)
        start = bisect(circle, self._me)
        return [circle[(start + (1 << step) - 1) % len(circle)] for step in range(len(circle).bit_length())]

    # --- as time passes ------------------------------------------------------------------------------------------

    def beat(self, now: float) -> None:
        """Once per heartbeat."""
        for peer in self._presence.members.silent_since(now - self._limits.forget * self._limits.patience):
            self._forget(peer)
        self._hand_on(now)
        if now >= self._next_knock or not self._presence.up.is_set():
            self._knock_contacts(now)
        if now >= self._next_question and (present := sorted(self._presence.members.present)):
            self._next_question = now + self._limits.patience
            self._last_asked = present[bisect(present, self._last_asked) % len(present)]
            self._ask(self._last_asked)

    def _knock_contacts(self, now: float) -> None:
        """Until one answers, and again when all are gone."""
        self._next_knock = now + self._limits.patience
        if self._presence.members.present.isdisjoint(self._contacts):
            for peer in self._contacts:
                if peer not in self._presence.members:  # members are called anyway
                    self._hands.knock(peer, self._lobby.hello())

    def _forget(self, peer: PeerId) -> None:
        self._presence.forgotten(peer)
        self._outbox.stop(peer)
        self._lobby.forget(peer)
        self._sealing.pop(peer, None)
        self._answered.pop(peer, None)
        self._lost.discard(peer)
        self._news.discard(peer)
        self._lose_sight(peer)
        self._hands.note(Note("forgotten", {"who": str(peer)}))

    def _lose_sight(self, peer: PeerId) -> None:
        """Its address goes, unless somebody else told us; the transport hears of it with the next change."""
        self._strangers.pop(peer, None)
        if peer in self._contacts:
            self._book[peer] = self._contacts[peer]
        elif peer not in self._presence.members:
            self._book.pop(peer, None)
