"""Virtual time: events in one repeatable order, timers that keep their word, and an end that is told."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from veilmesh.core import BadInput, LocalError, Refusal, RemoteError
from veilmesh.crypto.frame import frame_size
from veilmesh.peer.machine import (
    CancelTimer,
    Effect,
    Event,
    Note,
    PeerId,
    Received,
    Send,
    SetTimer,
    Started,
    Stop,
    TimerFired,
    Work,
    WorkDone,
    WorkFailed,
)
from veilmesh.peer.store import load_parameters
from veilmesh.peer.transcript import Record
from veilmesh.sim.cast import Cast
from veilmesh.sim.network import Player, VirtualNetwork
from veilmesh.sim.scenario import Scenario
from veilmesh.sim.virtual import run_in_virtual_time

A, B, C = (PeerId(name) for name in "abc")
On = Callable[[Event, float], list[Effect]]


@dataclass
class Toy:
    """A machine that is one function, and remembers what it was given and when."""

    on: On
    log: list[tuple[float, Event]] = field(default_factory=list)

    def handle(self, event: Event, now: float) -> list[Effect]:
        self.log.append((now, event))
        return self.on(event, now)


def silent(event: Event, now: float) -> list[Effect]:
    return []


def players(**machines: On) -> dict[PeerId, Player]:
    def execute(tasks: Sequence[object]) -> list[object]:
        if tasks[0] == "broken":
            raise LocalError("it broke")
        if tasks[0] == "bad":
            raise BadInput("Lower it.")
        return [("done", task) for task in tasks]

    ids = frozenset(PeerId(name) for name in machines)
    return {PeerId(n): Player(Toy(on), execute, ids - {PeerId(n)}) for n, on in machines.items()}


def events(player: Player) -> list[tuple[float, Event]]:
    assert isinstance(player.machine, Toy)
    return player.machine.log


def test_a_ping_is_answered_a_latency_later() -> None:
    def pinger(event: Event, now: float) -> list[Effect]:
        match event:
            case Started():
                return [Send(B, b"ping")]
            case Received(_, body):
                return [Stop((now, body))]
        return []

    def answerer(event: Event, now: float) -> list[Effect]:
        return [Send(A, event.body + b"!"), Stop()] if isinstance(event, Received) else []

    found = players(a=pinger, b=answerer)
    assert VirtualNetwork(found, latency=0.5).run(until=10) == 1.0
    assert found[A].result == (1.0, b"ping!")
    size = frame_size(4, with_hello=False)
    assert (found[A].sent, found[A].received, found[A].messages_sent, found[A].messages_received) == (
        size, size + 1, 1, 1,
    )  # fmt: skip


def test_everybody_starts_first_with_its_neighbours() -> None:
    found = players(a=lambda e, t: [Send(B, b"early")] if isinstance(e, Started) else [Stop()], b=silent)
    network = VirtualNetwork(found, latency=0.0)
    network.run(until=1)
    assert events(found[A])[0] == (0.0, Started(frozenset({B})))
    assert events(found[B]) == [(0.0, Started(frozenset({A}))), (0.0, Received(A, b"early"))]


def test_work_takes_its_time_and_failures_are_told() -> None:
    def on(event: Event, now: float) -> list[Effect]:
        match event:
            case Started():
                return [Work("one", 1), Work("two", "broken"), Work("three", "bad"), Work("four", 4)]
            case WorkDone("four"):
                return [Stop()]
        return []

    found = players(a=on)
    VirtualNetwork(found, work_time=2.0).run(until=10)
    assert events(found[A])[1:] == [
        (2.0, WorkDone("one", ("done", 1))),
        (2.0, WorkFailed("two", "it broke")),
        (2.0, WorkFailed("three", "Lower it.")),
        (2.0, WorkDone("four", ("done", 4))),
    ]


def test_timers_fire_in_their_time_can_be_moved_and_cancelled() -> None:
    def on(event: Event, now: float) -> list[Effect]:
        match event:
            case Started():
                return [
                    SetTimer("second", 2.0), SetTimer("moved", 0.5), SetTimer("first", 1.0), SetTimer("never", 1.5),
                    SetTimer("moved", 3.0), CancelTimer("never"), CancelTimer("unknown"), SetTimer("end", 4.0),
                ]  # fmt: skip
            case TimerFired("end"):
                return [Stop()]
        return []

    found = players(a=on)
    assert VirtualNetwork(found).run(until=10) == 4.0
    assert [(t, e.name) for t, e in events(found[A])[1:]] == [(1, "first"), (2, "second"), (3, "moved"), (4, "end")]


def test_a_timer_cancelled_at_the_moment_it_is_due_does_not_fire() -> None:
    def on(event: Event, now: float) -> list[Effect]:
        match event:
            case Started():
                return [SetTimer("one", 1.0), SetTimer("other", 1.0)]
            case TimerFired("one"):
                return [CancelTimer("other"), SetTimer("end", 2.0)]
        return [Stop()]

    found = players(a=on)
    VirtualNetwork(found).run(until=10)
    assert [e.name for _, e in events(found[A])[1:]] == ["one", "end"]


def test_the_run_ends_when_everybody_has_stopped_whatever_timers_are_left() -> None:
    def on(event: Event, now: float) -> list[Effect]:
        return [SetTimer("far", 1000.0), SetTimer("gone", 2000.0), CancelTimer("gone"), Stop()]

    found = players(a=on, b=on)
    assert VirtualNetwork(found).run(until=5) == 0.0


def test_the_deadline_names_who_had_not_stopped() -> None:
    def restless(event: Event, now: float) -> list[Effect]:
        return [SetTimer("again", now + 1)]

    found = players(a=lambda e, t: [Stop()], b=restless, c=restless)
    with pytest.raises(LocalError, match=r"at 7 virtual seconds, b, c had not stopped"):
        VirtualNetwork(found).run(until=7)


def test_a_machine_that_has_stopped_gets_nothing_more() -> None:
    found = players(a=lambda e, t: [Send(B, b"late"), Stop()], b=lambda e, t: [Work("w", 1), Stop("first")])
    VirtualNetwork(found).run(until=10)
    assert [type(e) for _, e in events(found[B])] == [Started]
    assert found[B].result == "first"


def test_what_a_machine_refuses_is_counted_and_harms_nobody() -> None:
    def picky(event: Event, now: float) -> list[Effect]:
        if isinstance(event, Received) and event.body == b"bad":
            raise RemoteError(Refusal.MISMATCH, "no")
        return [Stop("fine")] if isinstance(event, Received) else []

    found = players(a=lambda e, t: [Send(B, b"bad"), Send(B, b"bad"), Send(B, b"good"), Stop()], b=picky)
    VirtualNetwork(found).run(until=10)
    assert found[B].refusals == {"mismatch": 2}
    assert found[B].result == "fine"


def test_our_own_mistakes_are_not_swallowed() -> None:
    with pytest.raises(LocalError, match="not a neighbour"):
        VirtualNetwork(players(a=lambda e, t: [Send(PeerId("z"), b"")])).run(until=1)


def test_the_tap_sees_what_is_said_and_what_arrives() -> None:
    records: list[Record] = []
    found = players(a=lambda e, t: [Send(B, b"body"), Stop()], b=lambda e, t: [])
    VirtualNetwork(found, latency=0.25, tap=records.append).run(until=1)
    assert [(r.now, r.at, r.sender, r.to, r.body) for r in records] == [
        (0.0, A, A, B, b"body"),
        (0.25, B, A, B, b"body"),
    ]
    assert [r.size for r in records] == [0, frame_size(4, with_hello=False)]


def test_the_order_of_events_is_the_same_every_time() -> None:
    def chatty(me: PeerId) -> On:
        """Passes everything on to everybody, many things at once at the same moment."""

        def on(event: Event, now: float) -> list[Effect]:
            body = event.body if isinstance(event, Received) else b""
            note = Note("got", {"body": body, "of": type(event).__name__})
            if not isinstance(event, Started | Received) or len(body) == 4:
                return [note, SetTimer("end", 1.0)] if not isinstance(event, TimerFired) else [note, Stop()]
            return [note, Work("w", body), *(Send(p, body + me.encode()) for p in (A, B, C) if p != me)]

        return on

    def once() -> list[tuple[PeerId, float, object]]:
        notes: list[tuple[PeerId, float, object]] = []
        found = players(a=chatty(A), b=chatty(B), c=chatty(C))
        VirtualNetwork(found, note=lambda peer, note, now: notes.append((peer, now, dict(note.data)))).run(until=5)
        return notes

    first = once()
    assert first == once()
    assert len(first) > 100
    assert [now for _, now, _ in first] == sorted(now for _, now, _ in first)


# --- a scenario ----------------------------------------------------------------------------------------------------


def run(folder: Path, **changes: object) -> dict[str, object]:
    scenario = {
        "world": "virtual", "peers": 3, "rounds": 3, "task": "digits", "model": {"name": "mlp", "hidden": [8]},
        "transcript": {"keep": "all"}, **changes,
    }  # fmt: skip
    return run_in_virtual_time(Cast.prepare(Scenario.parse(scenario)), folder, lambda index, note, t, traffic: None)


@pytest.mark.parametrize("strategy", ["gossip", "fedavg"])
def test_a_scenario_run_twice_leaves_the_same_behind(tmp_path: Path, strategy: str) -> None:
    options = {"strategy": strategy, "codec": "8-bit", "guards": ["noise"]}
    first, second = (run(tmp_path / name, **options) for name in "ab")
    timed = ("seconds", "seconds_per_round", "cpu_seconds")
    assert {k: v for k, v in first.items() if k not in timed} == {k: v for k, v in second.items() if k not in timed}
    assert first["finished"] == 3 + (strategy == "fedavg")
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert files
    for file in files:
        a, b = tmp_path / "a" / file, tmp_path / "b" / file
        if file.suffix == ".safetensors":  # whose metadata come in any order
            assert load_parameters(a).tobytes() == load_parameters(b).tobytes(), file
        elif file.name != "summary.json":
            assert a.read_bytes() == b.read_bytes(), file


def test_another_seed_leaves_another_model(tmp_path: Path) -> None:
    models = []
    for seed in (1, 2):
        run(tmp_path / str(seed), seed=seed)
        models.append(load_parameters(tmp_path / str(seed) / "checkpoints" / "peer-0.safetensors"))
    assert models[0].tobytes() != models[1].tobytes()


def test_a_deadline_below_the_longest_timer_is_enough_for_a_run_that_ends(tmp_path: Path) -> None:
    """Timers reach far beyond the end of a run; only what still runs is late."""
    summary = run(tmp_path / "run", strategy="fedavg", timing={"run": 5, "round": 20})
    assert summary["finished"] == 4


def test_a_training_that_diverges_ends_its_peer_with_the_reason(tmp_path: Path) -> None:
    summary = run(tmp_path / "run", rounds=30, training={"learning_rate": 1e30})
    assert summary["finished"] == 0
    assert all("diverged" in peer["ended"] for peer in summary["peers"])
