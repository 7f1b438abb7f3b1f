"""A mesh that grows, shrinks, is cut and heals: real nodes and envelopes over memory, toy machines."""

from collections.abc import Awaitable, Callable, Iterable
from itertools import count

import anyio
import pytest
from anyio.abc import TaskGroup
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from veilmesh.core import BadInput, Refusal
from veilmesh.crypto import Card, Identity, Mailroom
from veilmesh.peer.door import Door
from veilmesh.peer.lobby import Lobby
from veilmesh.peer.machine import Effect, Event, Note, PeerId, PeersChanged, Received, Send, Started, WorkDone
from veilmesh.peer.node import Kind, Limits, Node
from veilmesh.peer.transports.base import Found
from veilmesh.peer.transports.libp2p import Libp2pTransport
from veilmesh.peer.transports.memory import Exchange, MemoryTransport
from veilmesh.peer.worker import InlineWorker

RUN, SECRET = bytes(16), bytes(range(32))
OPEN = Door(RUN, SECRET, None)
DEADLINE = 60.0  # of a test with a scene that hangs
QUICK = Limits(start=30.0, heartbeat=0.05, patience=1.5, grace=0.3, linger=0.1, settle=0.0, forget=1000.0)
SERIALS = count(1)


class Life:
    """One process of a peer: it takes part until it is told to leave, or is killed. It is its own machine."""

    def __init__(
        self,
        number: int,
        exchange: Exchange,
        door: Door = OPEN,
        contacts: Iterable["Life"] = (),
        limits: Limits = QUICK,
        cap: int = 64,
    ) -> None:
        self.identity = Identity.from_seed(bytes([number + 1]) * 32)
        self.name = self.identity.peer
        self.exchange = exchange
        self.transport: MemoryTransport | Libp2pTransport = MemoryTransport(self.name, exchange)
        key = X25519PrivateKey.generate()
        self.mailroom = Mailroom(self.identity, key, RUN, kinds=frozenset(Kind))
        public = key.public_key().public_bytes_raw()
        self.card = Card.issue(self.identity, public, RUN, self.transport.address, next(SERIALS))
        self.door, self.limits, self.cap = door, limits, cap
        self.contacts = {c.name: c.transport.address for c in contacts}
        self.founders: list[Life] = []
        self.lobby: Lobby
        self.node: Node
        self.notes: list[Note] = []
        self.events: list[Event] = []
        self.sends: list[Effect] = []
        self.scope: anyio.CancelScope
        self.result: object = "not ended"

    def handle(self, event: Event, now: float) -> list[Effect]:
        self.events.append(event)
        said, self.sends = self.sends, []
        return said

    @property
    def present(self) -> frozenset[PeerId] | None:
        return self.changes[-1] if self.changes else None

    @property
    def changes(self) -> list[frozenset[PeerId]]:
        return [e.present for e in self.events if isinstance(e, Started | PeersChanged)]

    @property
    def heard(self) -> list[bytes]:
        return [e.body for e in self.events if isinstance(e, Received)]

    def noted(self, kind: str) -> list[Note]:
        return [note for note in self.notes if note.kind == kind]

    def prepare(self) -> None:
        """The transport is open."""

    async def run(self) -> None:
        with anyio.CancelScope() as self.scope:
            async with self.transport.open() as inbox:
                self.prepare()
                self.lobby = Lobby(self.mailroom, self.door, self.card, [f.card for f in self.founders], self.cap)
                self.node = Node(
                    machine=self,
                    mailroom=self.mailroom,
                    transport=self.transport,
                    worker=InlineWorker(list),
                    neighbours=frozenset(f.name for f in self.founders),
                    note=lambda note, now: self.notes.append(note),
                    limits=self.limits,
                    lobby=self.lobby,
                    contacts=self.contacts,
                )
                self.result = await self.node.run(inbox)

    def kill(self) -> None:
        self.scope.cancel()

    async def say(self, to: "Life", body: bytes) -> None:
        """The machine speaks with its next event, which is one of ours: a work that nobody asked for is done."""
        self.sends.append(Send(to.name, body))
        self.node._events.send_nowait(WorkDone("nothing", None))


def found(*lives: Life) -> None:
    for one in lives:
        one.founders = [other for other in lives if other is not one]


def complete(*lives: Life) -> bool:
    return all(one.present == frozenset(o.name for o in lives) - {one.name} for one in lives)


def play(scene: Callable[[TaskGroup], Awaitable[None]]) -> None:
    async def patiently() -> None:
        with anyio.fail_after(DEADLINE):
            async with anyio.create_task_group() as tasks:
                await scene(tasks)
                tasks.cancel_scope.cancel()

    anyio.run(patiently, backend="trio")


async def until(met: Callable[[], bool]) -> None:
    while not met():  # noqa: ASYNC110  # what is waited for sets no event
        await anyio.sleep(0.01)


def unharmed(*lives: Life) -> bool:
    return all(not one.node.tally.refusals for one in lives)


# --- coming ----------------------------------------------------------------------------------------------------------


def test_a_newcomer_that_knows_one_contact_ends_up_knowing_all_and_all_know_it() -> None:
    exchange = Exchange()
    a, b, c = (Life(n, exchange) for n in range(3))
    found(a, b, c)
    new = Life(3, exchange, contacts=[b])

    async def scene(tasks: TaskGroup) -> None:
        for one in (a, b, c):
            tasks.start_soon(one.run)
        await until(lambda: complete(a, b, c))
        tasks.start_soon(new.run)
        await until(lambda: complete(a, b, c, new))
        await c.say(new, b"welcome")
        await new.say(c, b"thanks")
        await until(lambda: b"welcome" in new.heard and b"thanks" in c.heard)

    play(scene)
    assert unharmed(a, b, c, new)
    assert isinstance(new.events[0], Started)
    assert b.name in new.events[0].present
    assert all(one.noted("let-in")[0].data["who"] == new.name for one in (a, b, c))


def test_a_mesh_grows_from_one() -> None:
    exchange = Exchange()
    lives = [Life(0, exchange)]

    async def scene(tasks: TaskGroup) -> None:
        tasks.start_soon(lives[0].run)
        await until(lambda: lives[0].present == frozenset())
        for n in range(1, 7):  # each knows only the one before it
            lives.append(Life(n, exchange, contacts=[lives[-1]]))
            tasks.start_soon(lives[-1].run)
        await until(lambda: complete(*lives))

    play(scene)


def test_many_come_at_once_by_one_contact() -> None:
    exchange = Exchange()
    first = Life(0, exchange, limits=Limits(heartbeat=0.2, patience=20.0, settle=0.0))
    others = [Life(n, exchange, contacts=[first], limits=first.limits) for n in range(1, 13)]

    async def scene(tasks: TaskGroup) -> None:
        for one in (*others, first):
            tasks.start_soon(one.run)
        await until(lambda: complete(first, *others))

    play(scene)
    assert all(one.transport.traffic.dropped_frames == 0 for one in others)


def test_hellos_end() -> None:
    """Once everybody knows everybody, nobody announces anything any more."""
    exchange = Exchange()
    a, b = Life(0, exchange), Life(1, exchange)
    b.contacts = {a.name: a.transport.address}
    in_clear: list[bytes] = []

    async def scene(tasks: TaskGroup) -> None:
        for one in (a, b):
            tasks.start_soon(one.run)
        await until(lambda: complete(a, b))
        await anyio.sleep(0.1)
        for one in (a, b):
            take = one.transport.take

            def listen(frame: bytes, sender: PeerId | None = None, take: Callable[..., None] = take) -> None:
                if frame.startswith(b"VA"):
                    in_clear.append(frame)
                take(frame, sender)

            one.transport.take = listen  # type: ignore[method-assign]  # a tap
        await anyio.sleep(0.5)

    play(scene)
    assert in_clear == []


def test_a_joiner_whose_contacts_do_not_answer_says_which() -> None:
    exchange = Exchange()
    nobody = Life(1, exchange)
    alone = Life(0, exchange, contacts=[nobody], limits=Limits(start=0.3, heartbeat=0.05))

    async def scene(tasks: TaskGroup) -> None:
        with pytest.raises(BadInput, match=r"lets this peer in.*raise timing\.start") as caught:
            await alone.run()
        assert nobody.name in str(caught.value)

    play(scene)
    assert alone.events == []


def test_discovery_is_enough_and_strangers_it_names_are_bounded() -> None:
    exchange = Exchange()
    a, b = Life(0, exchange), Life(1, exchange)

    async def scene(tasks: TaskGroup) -> None:
        for one in (a, b):
            tasks.start_soon(one.run)
        await until(lambda: (a.present, b.present) == (frozenset(), frozenset()))
        for n in range(500):
            a.transport._inbox._put(Found(Identity.from_seed(n.to_bytes(32, "big")).peer, f"memory:{n}"))
        a.transport._inbox._put(Found(a.name, a.transport.address))
        a.transport._inbox._put(Found(b.name, b.transport.address))
        await until(lambda: complete(a, b))

    play(scene)
    assert len(a.transport._addresses) <= QUICK.strangers + 1
    assert unharmed(a, b)


# --- the door --------------------------------------------------------------------------------------------------------


def test_one_without_the_secret_stays_outside_and_harms_nobody() -> None:
    exchange = Exchange()
    a, b = Life(0, exchange), Life(1, exchange)
    found(a, b)
    mallory = Life(2, exchange, Door(RUN, SECRET[::-1], None), [a], Limits(start=0.6, heartbeat=0.05))

    async def scene(tasks: TaskGroup) -> None:
        for one in (a, b):
            tasks.start_soon(one.run)
        await until(lambda: complete(a, b))
        with pytest.raises(BadInput):
            await mallory.run()
        await a.say(b, b"still here")
        await until(lambda: b"still here" in b.heard)

    play(scene)
    assert set(a.node.tally.refusals) == {Refusal.STRANGER}
    assert a.noted("refused")[0].data["why"] == Refusal.STRANGER
    assert a.changes == [frozenset({b.name})]
    assert unharmed(b)
    assert mallory.name not in a.lobby.members


def test_only_those_on_the_list_come_in() -> None:
    exchange = Exchange()
    names = [Life(n, exchange).name for n in (0, 1)]
    listed = Door(RUN, None, frozenset(names))
    a, b = Life(0, exchange, listed), Life(1, exchange, listed)
    b.contacts = {a.name: a.transport.address}
    outsider = Life(2, exchange, Door(RUN, None, frozenset([*names, Life(2, exchange).name])), [a])

    async def scene(tasks: TaskGroup) -> None:
        for one in (a, b, outsider):
            tasks.start_soon(one.run)
        await until(lambda: complete(a, b) and bool(a.noted("refused")))

    play(scene)
    assert outsider.name not in a.lobby.members | b.lobby.members
    assert outsider.events == []


def test_a_full_mesh_turns_newcomers_away() -> None:
    exchange = Exchange()
    a = Life(0, exchange, cap=1)
    b, c = Life(1, exchange, contacts=[a]), Life(2, exchange, contacts=[a])

    async def scene(tasks: TaskGroup) -> None:
        for one in (a, b):
            tasks.start_soon(one.run)
        await until(lambda: complete(a, b))
        tasks.start_soon(c.run)
        await until(lambda: a.lobby.turned_away > 2)
        assert complete(a, b)

    play(scene)


def test_an_address_that_is_none_is_its_owners_fault() -> None:
    exchange = Exchange()
    a, b = Life(0, exchange), Life(1, exchange)
    b.contacts = {a.name: a.transport.address}
    introduce = a.transport.introduce

    def strict(addresses: dict[PeerId, str]) -> None:
        if "nonsense" in addresses.values():
            raise BadInput("'nonsense' is no address.")
        introduce(addresses)

    a.transport.introduce = strict  # type: ignore[method-assign]  # memory takes any address; libp2p does not
    liar = Identity.from_seed(bytes([9]) * 32)
    lie = Card.issue(liar, X25519PrivateKey.generate().public_key().public_bytes_raw(), RUN, "nonsense", 1)

    async def scene(tasks: TaskGroup) -> None:
        tasks.start_soon(a.run)
        await until(lambda: a.present == frozenset())
        a.transport.take(OPEN.announce(lie).to_bytes())
        await until(lambda: bool(a.node.tally.refusals))
        tasks.start_soon(b.run)
        await until(lambda: complete(a, b))

    play(scene)
    assert a.node.tally.refusals == {Refusal.MALFORMED: 1}


# --- going, and coming back ------------------------------------------------------------------------------------------


def test_leaving_is_noticed_at_once_and_ends_without_waiting_for_the_others() -> None:
    exchange = Exchange()
    patient = Limits(heartbeat=0.05, patience=1000.0, grace=1000.0, flush=1000.0, linger=1000.0, settle=0.0)
    a, b, c = (Life(n, exchange, limits=patient) for n in range(3))
    found(a, b, c)

    async def scene(tasks: TaskGroup) -> None:
        for one in (a, b, c):
            tasks.start_soon(one.run)
        await until(lambda: complete(a, b, c))
        await c.say(a, b"last words")
        await anyio.sleep(0.05)
        c.node.leave()
        await until(lambda: c.result is None and complete(a, b))

    play(scene)
    assert a.heard[-1] == b"last words"


def test_one_that_is_told_to_leave_while_it_waits_for_others_leaves() -> None:
    exchange = Exchange()
    early = Life(0, exchange, contacts=[Life(1, exchange)], limits=Limits(linger=0.1, settle=0.0))

    async def scene(tasks: TaskGroup) -> None:
        tasks.start_soon(early.run)
        await anyio.sleep(0.05)
        early.node.leave()
        await until(lambda: early.result is None)

    play(scene)
    assert early.events == []


@pytest.mark.parametrize("how", ["killed", "killed unnoticed", "left"])
def test_a_peer_comes_back_with_its_old_identity(how: str) -> None:
    exchange = Exchange()
    a, b, old = (Life(n, exchange) for n in range(3))
    found(a, b, old)
    new = Life(2, exchange, contacts=[b])
    if how == "killed unnoticed":
        slow = Limits(heartbeat=0.05, patience=1000.0, grace=1000.0, linger=0.1, settle=0.0)
        a.limits = b.limits = slow

    async def scene(tasks: TaskGroup) -> None:
        for one in (a, b, old):
            tasks.start_soon(one.run)
        await until(lambda: complete(a, b, old))
        if how == "left":
            old.node.leave()
            await until(lambda: old.result is None)
        else:
            old.kill()
            await until(lambda: exchange.find(old.transport.address, a.name) is None)
        if how != "killed unnoticed":
            await until(lambda: complete(a, b))
        tasks.start_soon(new.run)
        await until(lambda: complete(a, b, new))
        await new.say(a, b"it is me again")
        await a.say(new, b"so I see")
        await until(lambda: b"it is me again" in a.heard and b"so I see" in new.heard)

    play(scene)
    everybody, without = frozenset({b.name, new.name}), frozenset({b.name})
    assert a.changes[-3:] == [everybody, without, everybody]
    assert [note.data["who"] for note in a.noted("let-in-again")] == [new.name]


def test_an_old_announcement_said_again_brings_nobody_back() -> None:
    exchange = Exchange()
    a, b, old = (Life(n, exchange) for n in range(3))
    found(a, b, old)
    new = Life(2, exchange, contacts=[b])

    async def scene(tasks: TaskGroup) -> None:
        for one in (a, b, old):
            tasks.start_soon(one.run)
        await until(lambda: complete(a, b, old))
        replayed = old.lobby.hello()
        old.node.leave()
        await until(lambda: old.result is None and complete(a, b))
        before = len(a.changes)
        a.transport.take(replayed)
        await anyio.sleep(0.2)
        assert len(a.changes) == before  # a goodbye is not undone by the same card
        tasks.start_soon(new.run)
        await until(lambda: complete(a, b, new))
        a.transport.take(replayed)
        await a.say(new, b"still you")
        await until(lambda: b"still you" in new.heard)

    play(scene)
    assert a.mailroom.card(new.name) == new.card


def test_those_that_are_silent_for_long_are_forgotten_and_may_come_back() -> None:
    exchange = Exchange()
    brief = Limits(heartbeat=0.03, patience=0.3, grace=0.1, linger=0.1, settle=0.0, forget=2.0)
    a = Life(0, exchange, limits=brief)
    passing = [Life(n, exchange, contacts=[a], limits=brief) for n in range(1, 5)]

    async def scene(tasks: TaskGroup) -> None:
        tasks.start_soon(a.run)
        for one in passing:
            tasks.start_soon(one.run)
        await until(lambda: complete(a, *passing))
        for one in passing:
            one.kill()
        await until(lambda: len(a.noted("forgotten")) == len(passing))
        assert a.lobby.members == a.node._presence.members.everybody == frozenset()
        assert not a.node._outbox._lines
        assert not a.node._reception._book
        await a.say(passing[0], b"are you there")  # the machine may not know yet
        again = Life(1, exchange, contacts=[a], limits=brief)
        tasks.start_soon(again.run)
        await until(lambda: complete(a, again))

    play(scene)


def test_one_that_was_forgotten_too_early_comes_back_with_the_same_card() -> None:
    exchange = Exchange()
    brief = Limits(heartbeat=0.03, patience=0.2, grace=0.1, linger=0.1, settle=0.0, forget=2.0)
    slow = Limits(heartbeat=0.03, patience=0.2, grace=0.1, linger=0.1, settle=0.0)
    a, b = Life(0, exchange, limits=brief), Life(1, exchange, limits=slow)
    found(a, b)

    async def scene(tasks: TaskGroup) -> None:
        for one in (a, b):
            tasks.start_soon(one.run)
        await until(lambda: complete(a, b))
        exchange.cut([a.name], [b.name])
        await until(lambda: bool(a.noted("forgotten")))
        exchange.heal()
        await until(lambda: complete(a, b))
        await a.say(b, b"hello")
        await until(lambda: b"hello" in b.heard)

    play(scene)


def test_an_authentic_word_of_one_that_was_forgotten_is_enough() -> None:
    exchange = Exchange()
    brief = Limits(heartbeat=0.03, patience=0.2, grace=0.1, linger=0.1, settle=0.0, forget=2.0)
    a, b = Life(0, exchange, limits=brief), Life(1, exchange)
    found(a, b)

    async def scene(tasks: TaskGroup) -> None:
        for one in (a, b):
            tasks.start_soon(one.run)
        await until(lambda: complete(a, b))
        b.kill()
        await until(lambda: bool(a.noted("forgotten")))
        a.transport.take(b.mailroom.seal(a.name, Kind.DATA, b"late"))
        await until(lambda: b"late" in a.heard)
        assert [note.data["who"] for note in a.noted("let-in")] == [b.name]

    play(scene)
    came = a.events.index(Received(b.name, b"late"))
    assert a.events[came - 1] == PeersChanged(frozenset({b.name}))


# --- cut and healed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grows", [True, False], ids=["growing", "fixed"])
def test_a_mesh_that_was_cut_heals(grows: bool) -> None:
    exchange = Exchange()
    lives = [Life(n, exchange) for n in range(4)]
    found(*lives)
    left, right = lives[:2], lives[2:]

    async def fixed(one: Life) -> None:
        others = [o for o in lives if o is not one]
        for other in others:
            one.mailroom.admit(other.card)
        one.transport.introduce({o.name: o.transport.address for o in others})
        async with one.transport.open() as inbox:
            one.node = Node(
                machine=one, mailroom=one.mailroom, transport=one.transport, worker=InlineWorker(list),
                neighbours=frozenset(o.name for o in others), note=lambda note, now: one.notes.append(note),
                limits=one.limits,
            )  # fmt: skip
            await one.node.run(inbox)

    async def scene(tasks: TaskGroup) -> None:
        for one in lives:
            tasks.start_soon(*((one.run,) if grows else (fixed, one)))
        await until(lambda: complete(*lives))
        exchange.cut([o.name for o in left], [o.name for o in right])
        await until(lambda: complete(*left) and complete(*right))
        exchange.heal()
        await until(lambda: complete(*lives))

    play(scene)
    assert unharmed(*lives)


def test_newcomers_of_either_side_find_each_other_when_a_cut_heals() -> None:
    exchange = Exchange()
    a, b = Life(0, exchange), Life(1, exchange)
    found(a, b)
    near_a, near_b = Life(2, exchange, contacts=[a]), Life(3, exchange, contacts=[b])

    async def scene(tasks: TaskGroup) -> None:
        for one in (a, b):
            tasks.start_soon(one.run)
        await until(lambda: complete(a, b))
        exchange.cut([a.name, near_a.name], [b.name, near_b.name])
        for one in (near_a, near_b):
            tasks.start_soon(one.run)
        await until(lambda: complete(a, near_a) and complete(b, near_b))
        exchange.heal()
        await until(lambda: complete(a, b, near_a, near_b))

    play(scene)


# --- over sockets ----------------------------------------------------------------------------------------------------


class Socketed(Life):
    """The same over libp2p: where it listens is known once it does."""

    def __init__(self, number: int, contacts: Iterable[Life] = ()) -> None:
        super().__init__(number, Exchange(), limits=Limits(heartbeat=0.2, patience=10.0, grace=0.5, linger=0.5))
        self.transport = Libp2pTransport(self.identity)
        self.met = list(contacts)

    def prepare(self) -> None:
        sealing = self.card.sealing
        self.card = Card.issue(self.identity, sealing, RUN, self.transport.address, next(SERIALS))
        self.contacts = {c.name: c.transport.address for c in self.met}


def test_a_mesh_grows_loses_one_and_takes_it_back_over_libp2p() -> None:
    a = Socketed(0)
    b = Socketed(1, [a])
    c, d, again = Socketed(2, [b]), Socketed(3, [b]), Socketed(2, [a])

    async def scene(tasks: TaskGroup) -> None:
        for one in (a, b):
            tasks.start_soon(one.run)
            await until(lambda one=one: one.present is not None)
        for one in (c, d):
            tasks.start_soon(one.run)
        await until(lambda: complete(a, b, c, d))
        await d.say(c, bytes(3_000_000))
        await until(lambda: c.heard == [bytes(3_000_000)])
        c.kill()
        await until(lambda: complete(a, b, d))
        tasks.start_soon(again.run)
        await until(lambda: complete(a, b, again, d))
        d.node.leave()
        await until(lambda: d.result is None and complete(a, b, again))

    play(scene)
    assert unharmed(a, b, d, again)
