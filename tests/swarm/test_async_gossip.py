"""Asynchronous gossip: nobody waits, what is stale counts less, and lost differences are mended."""

import heapq
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmesh.core import Refusal
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import CODECS
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.peer.machine import PeerId, PeersChanged, Received, Send, Work, WorkDone
from veilmesh.swarm import messages
from veilmesh.swarm.topology import TOPOLOGIES, metropolis_hastings

BOTH = [{"to": "one"}, {"to": "all"}]
P0, P1 = PeerId("p0"), PeerId("p1")


def blob(value: float, count: int = 12) -> bytes:
    return table.encode(Dense(), np.full(count, value, np.float32), np.random.default_rng(0))


def delta(round_: int, since: int = 0, value: float = 0.1, **changes: object) -> bytes:
    parts = {"round": round_, "since": since, "samples": 10, "blob": blob(value), "heard": 0, "last": False, **changes}
    return messages.encode(messages.Delta(**parts))


def in_virtual_time(world, work: Mapping[str, float], latency: float = 0.01) -> dict[str, float]:
    """Run a world with so many seconds of work per task and peer (1 where not said); when each has stopped."""
    heap: list[tuple[float, int, object]] = []
    number, ended = 0, {}

    def schedule() -> None:
        nonlocal number
        for peer, what in world.pending:
            after = work.get(peer, 1.0) if isinstance(what, Work) else latency
            heapq.heappush(heap, (world.now + after, number, (peer, what)))
            number += 1
        world.pending = []

    world.start()
    schedule()
    while len(ended) < len(world.players):
        timers = [(at, p, n) for p, q in world.players.items() if not q.outcome for n, at in q.timers.items()]
        if timers and (not heap or min(timers)[0] < heap[0][0]):
            world.ring()
        else:
            at, _, pending = heapq.heappop(heap)
            world.now = at - 0.001  # which `step` adds
            world.pending = [pending]
            world.step()
        schedule()
        ended |= {p: world.now for p, q in world.players.items() if q.outcome and p not in ended}
    return ended


# --- nobody waits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", BOTH)
def test_a_straggler_ten_times_slower_slows_nobody_else_and_ends_with_them(lab, options: dict) -> None:
    built = {"strategy": "async-gossip", "options": options, "rounds": 50}
    even = in_virtual_time(lab.build(6, **built), {})
    world = lab.build(6, **built)
    uneven = in_virtual_time(world, {"p5": 10.0})
    evaluating = {p: 1.0 if p != "p5" else 10.0 for p in even}
    trained = {p: ended - evaluating[p] for p, ended in uneven.items()}
    assert trained == pytest.approx({p: ended - 1.0 for p, ended in even.items()}, abs=0.1)  # but for last words
    assert [p.outcome.rounds for p in world.players.values()][5] == 5
    assert all(50 <= p.outcome.rounds < 58 for p in list(world.players.values())[:5])
    assert {p.outcome.reason for p in world.players.values()} == {"finished"}


def test_the_synchronous_one_shows_the_price(lab) -> None:
    ended = in_virtual_time(lab.build(6, strategy="gossip", rounds=50), {"p5": 9.0})
    assert min(ended.values()) > 50 * 9


def test_a_step_is_begun_whatever_was_heard(lab) -> None:
    """Nobody's word is delivered, and everybody trains on, within bounds; only the end waits, for its patience."""
    world = lab.build(4, strategy="async-gossip", rounds=20)
    world.lost = lambda sender, to, message: True
    world.start().settle()
    assert [p.machine._steps for p in world.players.values()] == [40] * 4
    assert all(set(p.timers) == {"linger"} for p in world.players.values())
    world.finish()
    assert {p.outcome.reason for p in world.players.values()} == {"finished"}


@pytest.mark.parametrize(("latency", "age"), [(0.01, 0.0), (3.2, 2.5)])
def test_age_is_that_of_the_words_and_not_of_the_speaker(lab, latency: float, age: float) -> None:
    world = lab.build(4, strategy="async-gossip", rounds=40)
    in_virtual_time(world, {"p3": 5.0}, latency)
    noted = [data for data in world[0].noted("round") if data["group"] > 1][10:]
    assert np.median([data["staleness"] for data in noted]) == pytest.approx(age, abs=0.6)
    assert [data["round"] for data in world[0].noted("round")][:40] == list(range(40))


# --- what it comes to ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", BOTH)
@pytest.mark.parametrize("codec", ["dense", "8-bit", "top-k"])
@pytest.mark.parametrize("latency", [0.01, 6.0])
def test_on_a_bowl_it_comes_near_the_mean_as_gossip_does(lab, options: dict, codec: str, latency: float) -> None:
    world = lab.build(
        8, strategy="async-gossip", options=options, rounds=150,
        codec=CODECS.build(codec, {"keep": 0.25} if codec == "top-k" else {}),
    )  # fmt: skip
    in_virtual_time(world, {f"p{i}": 1 + 0.02 * i for i in range(8)}, latency)
    targets = np.array([world[i].target for i in range(8)])
    alone = np.linalg.norm(targets - targets.mean(0), axis=1).mean()
    assert np.linalg.norm(np.mean(world.models(), axis=0) - targets.mean(0)) < 0.3 * alone


@pytest.mark.parametrize("latency", [0.01, 0.9, 4.5, 9.5])
@pytest.mark.parametrize("topology", ["complete", "ring"])
def test_old_words_do_not_drag_the_mean_back(lab, latency: float, topology: str) -> None:
    """The mean of the lines goes as far as all steps together, but for the first words, whose age is not known yet."""
    lost = [fell_behind(lab, rounds, latency, topology) for rounds in (60, 120)]
    assert lost[1] == pytest.approx(lost[0], abs=1e-2)
    assert 0 <= lost[0] + 1e-2 < 1 + latency / 2


def fell_behind(lab, rounds: int, latency: float, topology: str) -> float:
    """How many steps the mean of the lines falls behind, of `rounds` or more that all go the same way."""
    rows = metropolis_hastings(TOPOLOGIES.build(topology).graph(6, 0))
    world = lab.build(6, strategy="async-gossip", options={"tolerance": 100}, rounds=rounds, rows=rows)
    for player in world.players.values():
        player.work = partial(one_way, player.work)
    in_virtual_time(world, {}, latency)
    made = np.mean([p.outcome.rounds for p in world.players.values()])
    return float(made - np.mean([p.machine._lines[-1] for p in world.players.values()]) / 0.01)


def one_way(work: Callable[[object], object], task: object) -> object:
    done = work(task)
    return replace(done, update=np.full_like(done.update, 0.01)) if hasattr(done, "update") else done


def test_with_words_faster_than_a_step_it_comes_to_what_gossip_comes_to(lab) -> None:
    models = {}
    for strategy in ("gossip", "async-gossip"):
        world = lab.build(5, strategy=strategy, rounds=60)
        in_virtual_time(world, {})
        models[strategy] = world.models()
    np.testing.assert_allclose(models["async-gossip"], models["gossip"], atol=1e-5)


def test_in_the_end_everybody_has_everybodys_last_word(lab) -> None:
    world = lab.build(6, strategy="async-gossip", rounds=25)
    in_virtual_time(world, {f"p{i}": 1 + 0.02 * i for i in range(6)}, 2.5)
    models = world.models()
    np.testing.assert_allclose(models, [models[0]] * 6, atol=1e-5)


@settings(max_examples=examples(20))
@given(data=st.data(), options=st.sampled_from(BOTH), lose=st.booleans())
def test_whatever_the_order_and_the_losses_both_ends_of_a_link_agree_in_the_end(
    lab, data, options: dict, lose: bool
) -> None:
    """And a model is a convex combination of lines: it never leaves their range."""
    random = data.draw(st.randoms(use_true_random=False))
    world = lab.build(4, strategy="async-gossip", options=options, rounds=12, codec=CODECS.build("8-bit"))
    world.lost = lambda sender, to, message: lose and random.random() < 0.2
    world.start()
    for _ in range(10_000):
        if world.pending:
            world.step(random.randrange(len(world.pending)))
        elif all(p.outcome for p in world.players.values()):
            break
        else:
            world.ring()
        for player in world.players.values():
            machine = player.machine
            lines = [machine._lines[-1], *(copy for _, copy in machine._heard.values())]
            assert (machine._model() <= np.max(lines, axis=0) + 1e-6).all()
            assert (machine._model() >= np.min(lines, axis=0) - 1e-6).all()
    assert [p.outcome.reason for p in world.players.values()] == ["finished"] * 4
    for me, player in world.players.items():
        for other, (step, copy) in player.machine._heard.items():
            told = world.players[other].machine._told[me]
            if told[0] == step:
                assert told[1].tobytes() == copy.tobytes()


def test_the_discount_is_that_of_the_docstring(lab) -> None:
    machine = five_steps(lab, discount=1.0)
    lines = list(machine._lines)
    machine.handle(Received(P1, delta(1, value=1.0, heard=2)), 0.0)  # our third step is the middle of 2 and 5
    assert machine._fresh[P1][0] == 1.0
    np.testing.assert_allclose(machine._mixed_line(), lines[-1] + 0.5 / 2 * (1 - lines[-2]), atol=1e-6)
    np.testing.assert_allclose(machine._model(), (lines[-1] + 1) / 2, atol=1e-6)


def five_steps(lab, **options: object):
    """The machine of p0 of two, after five steps, told to p1, that nobody answered."""
    world = lab.build(2, strategy="async-gossip", options=options, rounds=30).start()
    while world[0].machine._steps < 5:
        world.step(next(i for i, (p, w) in enumerate(world.pending) if p == "p0" and isinstance(w, Work)))
    return world[0].machine


def test_steps_are_shorter_where_half_of_the_words_are_older_than_the_tolerance(lab) -> None:
    machine = five_steps(lab, tolerance=1.0)
    update = np.ones(12, np.float32)
    np.testing.assert_allclose(machine._shortened(update), update / 2)  # nothing was heard: five steps, an age of two
    machine.handle(Received(P1, delta(1, heard=3)), 0.0)
    np.testing.assert_allclose(machine._shortened(update), update)
    machine = five_steps(lab, tolerance=1.0)
    machine.handle(PeersChanged(frozenset()), 0.0)
    np.testing.assert_allclose(machine._shortened(update), update)  # nobody is there to be out of step with


@pytest.mark.parametrize("options", BOTH)
@pytest.mark.parametrize("latency", [2.0, 20.0, 60.0])
def test_however_long_words_take_nothing_diverges(lab, options: dict, latency: float) -> None:
    """Steps of a quarter of the way to the bottom, which diverge without the tolerance once words take ten of them."""
    world = lab.build(6, strategy="async-gossip", options={**options, "tolerance": 2}, rounds=300)
    in_virtual_time(world, {}, latency)
    targets = np.array([player.target for player in world.players.values()])
    assert np.linalg.norm(np.mean(world.models(), axis=0) - targets.mean(0)) < np.linalg.norm(targets.mean(0))


# --- the end ---------------------------------------------------------------------------------------------------------


def last(step: int = 1) -> bytes:
    return delta(step, last=True)


def names(effects: list[object]) -> list[str]:
    return [type(effect).__name__ for effect in effects]


def test_a_training_ends_once_half_of_those_who_are_there_have_ended(lab) -> None:
    machine = lab.build(5, strategy="async-gossip", rounds=30).start()[0].machine
    ids = [PeerId(f"p{i}") for i in range(5)]
    assert machine.handle(Received(ids[1], last()), 0.0) == []
    assert machine.handle(Received(ids[2], delta(30)), 0.0) == []  # it has made all steps: that is as good
    assert names(machine.handle(Received(ids[3], last()), 0.0)) == ["Send"] * 4 + ["SetTimer"]
    assert machine.handle(WorkDone("train-0", None), 0.0) == []  # it was training; that comes too late
    assert machine.handle(Received(ids[2], delta(31, 30, last=True)), 0.0) == []
    assert names(machine.handle(Received(ids[4], last()), 0.0)) == ["CancelTimer", "Work"]


class Silent:
    """A machine that never says anything."""

    def handle(self, event, now):
        return []


def test_a_minority_can_neither_end_a_training_nor_keep_it_from_ending(lab) -> None:
    world = lab.build(5, strategy="async-gossip", rounds=30).start()
    for liar in ("p3", "p4"):
        world.players[PeerId(liar)].machine = Silent()
        for honest in ("p0", "p1", "p2"):
            world.feed(PeerId(honest), Received(PeerId(liar), delta((1 << 31) - 1, last=liar == "p3")))
    _finish(world, 3)
    assert [world[i].outcome.reason for i in range(3)] == ["finished"] * 3
    assert all(world[i].outcome.rounds >= 29 for i in range(3))


def _finish(world, honest: int) -> None:
    for _ in range(1000):
        world.settle()
        if all(world[i].outcome for i in range(honest)):
            return
        world.ring()


def test_neighbours_that_die_do_not_end_a_training(lab) -> None:
    machine = lab.build(3, strategy="async-gossip", rounds=30).start()[0].machine
    assert machine.handle(PeersChanged(frozenset()), 0.0) == []
    machine = lab.build(3, strategy="async-gossip", rounds=30).start()[0].machine
    machine.handle(Received(P1, last()), 0.0)
    # One has ended and gone, the other died: of two that are left to count, half have ended.
    assert names(machine.handle(PeersChanged(frozenset()), 0.0)) == ["SetTimer", "CancelTimer", "Work"]


def test_the_end_waits_for_no_longer_than_the_patience(lab) -> None:
    world = lab.build(3, strategy="async-gossip", rounds=2).start()
    world.lost = lambda sender, to, message: sender == "p2"
    world.settle()
    assert world[2].outcome
    assert set(world[0].timers) == {"linger"}
    world.finish()
    assert world[0].outcome.reason == "finished"


# --- losses, lies ----------------------------------------------------------------------------------------------------


def test_a_lost_difference_is_mended_by_a_copy(lab) -> None:
    world = lab.build(2, strategy="async-gossip", rounds=10)
    world.lost = lambda a, b, m: (a, b) == ("p0", "p1") and isinstance(m, messages.Delta) and m.round == 3
    world.start().settle()
    assert ("p1", "p0", messages.Ask(3)) in world.said
    assert {(a, b) for a, b, m in world.said if isinstance(m, messages.Copy)} == {("p0", "p1")}
    assert not any(p.refused for p in world.players.values())
    step, copy = world[1].machine._heard[P0]
    assert (step, copy.tobytes()) == (world[0].machine._told[P1][0], world[0].machine._told[P1][1].tobytes())


def test_messages_that_do_not_fit_are_refused_and_change_nothing(lab, refused: Callable[..., Refusal]) -> None:
    world = lab.build(3, strategy="async-gossip", rounds=100).start()
    machine = world[0].machine
    machine.handle(Received(P1, delta(5)), 0.0)
    cases = {
        "a stranger's": (PeerId("p9"), delta(6, 5), Refusal.MISMATCH),
        "its own": (P0, delta(6, 5), Refusal.MISMATCH),
        "one that builds on an old one": (P1, delta(6, 4), Refusal.MISMATCH),
        "an update": (P1, messages.encode(messages.Update(6, 1, blob(1.0))), Refusal.MISMATCH),
        "a copy of nothing": (P1, messages.encode(messages.Copy(0, blob(1.0))), Refusal.MISMATCH),
        "a huge copy": (P1, messages.encode(messages.Copy(6, blob(1e7))), Refusal.MISMATCH),
        "huge": (P1, delta(6, 5, 1e7), Refusal.MISMATCH),
        "another dimension": (P1, delta(6, 5, blob=blob(1.0, 13)), Refusal.MISMATCH),
        "NaN": (P1, delta(6, 5, blob=blob(1.0)[:-4] + b"\x00\x00\xc0\x7f"), Refusal.MALFORMED),
        "no blob": (P1, delta(6, 5, blob=b""), Refusal.MALFORMED),
        "one that heard what was never said": (P1, delta(6, 5, heard=1), Refusal.MISMATCH),
        "one that heard before the beginning": (P1, delta(6, 5, heard=-1), Refusal.MALFORMED),
        "a difference to the future": (P1, delta(6, 6), Refusal.MALFORMED),
        "no message": (P1, b"\xc1", Refusal.MALFORMED),
    }
    for what, (sender, body, why) in cases.items():
        assert refused(machine, Received(sender, body)) == why, what
    before = lab.snapshot(machine)
    for overtaken in (delta(5), delta(4), messages.encode(messages.Copy(5, blob(1.0)))):
        assert machine.handle(Received(P1, overtaken), 0.0) == []
        assert lab.snapshot(machine) == before


def test_differences_in_range_that_add_up_are_refused_and_harm_nobody(lab, refused: Callable[..., Refusal]) -> None:
    machine = lab.build(2, strategy="async-gossip", rounds=100).start()[0].machine
    machine.handle(Received(P1, delta(1, 0, 9e5)), 0.0)
    assert refused(machine, Received(P1, delta(2, 1, 9e5))) == Refusal.MISMATCH


def test_a_copy_is_given_once_a_step(lab) -> None:
    world = lab.build(2, strategy="async-gossip", rounds=10).start()
    ask = Received(P1, messages.encode(messages.Ask(0)))
    assert world[0].machine.handle(ask, 0.0) == []
    world.step()
    [answer] = world[0].machine.handle(ask, 0.0)
    assert isinstance(answer, Send)
    assert world[0].machine.handle(ask, 0.0) == []


@settings(max_examples=examples(75))
@given(body=st.binary(max_size=80), sender=st.sampled_from(["p1", "p2", "p7"]))
def test_arbitrary_bytes_never_break_a_machine(lab, body: bytes, sender: str) -> None:
    world = lab.build(3, strategy="async-gossip").start()
    world.feed(P0, Received(PeerId(sender), body))
    world.settle()


def test_a_neighbour_that_floods_counts_once_between_two_steps(lab) -> None:
    machine = lab.build(3, strategy="async-gossip", rounds=1000).start()[0].machine
    for step in range(1, 1000):
        machine.handle(Received(P1, delta(step, step - 1, 1e-3)), 0.0)
    np.testing.assert_allclose(machine._model(), 0.999 / 3, atol=1e-4)  # its latest, with its weight
