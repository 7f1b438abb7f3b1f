"""The live display: what it shows of a run, how it counts runs, and that it draws only what fits."""

import io
from typing import Any

import pytest
from rich.console import Console

from veilmesh.cli.display import Display
from veilmesh.cli.standing import PeerStanding, RunStanding, clock, size


def shown(total: int = 1, done: int = 0, width: int = 80, terminal: bool = True) -> tuple[Display, io.StringIO]:
    """A display on a terminal that is a string; nothing is withheld for having been drawn a moment ago."""
    display, out = Display("digits, gossip", total, done), io.StringIO()
    display._console = Console(file=out, width=width, force_terminal=terminal, color_system=None)
    display._plain = not terminal
    return display, out


def note(peer: str, kind: str, sent: int = 0, **data: Any) -> dict[str, Any]:
    return {"kind": "note", "peer": peer, "note": kind, "data": data, "t": 0.0, "sent": sent, "received": sent}


def training(members: int, rounds: int, attacks: int = 0) -> dict[str, Any]:
    names = [f"peer:{i}" for i in range(members)]
    return {"kind": "training", "members": names, "rounds": rounds, "attacks": attacks}


def text(display: Display, width: int) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    now = display._since + 10
    console.print(display._bar(now), display._table(), *display._attacks(now))
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_everything_is_there_and_no_line_is_wider_than_the_terminal(width: int) -> None:
    display, _ = shown(total=6, done=1, width=width)
    display.tell("faces, swarm, defended", training(20, 100, attacks=2))
    display.tell("faces, swarm, defended", note("peer:0", "round", sent=12_345_678, round=49))
    display.tell("faces, swarm, defended", note("peer:0", "accuracy", accuracy=0.925, round=40, loss=0.1))
    display.tell("faces, swarm, defended", {"kind": "attacking", "attack": "cosine-inversion", "vantage": "peer:3"})
    lines = text(display, width).splitlines()
    assert all(len(line) <= width for line in lines)
    page = "\n".join(lines)
    for word in ("run 2 of 6", "left", "50/100", "92.5%", "12.3 MB", "+5 more", "attack: cosine-inversion from peer:3"):
        assert word in page


def test_of_runs_side_by_side_the_one_that_began_last_is_shown() -> None:
    display, _ = shown(total=2)
    display.tell("one", training(4, 100))
    display.tell("two", training(4, 100))
    display.tell("one", note("peer:0", "round", round=49))
    display.tell("one", {"kind": "attacking", "attack": "cosine-inversion", "vantage": "peer:3"})
    page = text(display, 100)
    assert "two" in page
    assert "50/100" not in page
    assert "cosine-inversion" not in page


def test_runs_and_attacks_move_the_bar_forward_only() -> None:
    display, _ = shown(total=2)
    seen = [0.0]

    def tell(event: dict[str, Any]) -> None:
        display.tell("x", event)
        seen.append(max(display._begun - 1, 0) + display._run.share())

    for _ in range(2):
        tell(training(2, 10, attacks=1))
        for round_ in range(10):
            for peer in ("peer:0", "peer:1"):
                tell(note(peer, "round", round=round_))
        tell({"kind": "attacking", "attack": "analytic", "vantage": "wire"})
        tell({"kind": "waiting"})
        tell({"kind": "attacked", "attack": "analytic from wire"})
    assert seen == sorted(seen)
    assert seen[-1] == 2


def test_a_client_of_a_star_is_as_far_as_it_has_trained() -> None:
    """It says of no round that it is over: only its server does."""
    display, _ = shown()
    display.tell("x", {"kind": "training", "members": ["peer:0", "server"], "rounds": 10})
    display.tell("x", note("server", "round", round=5))
    display.tell("x", note("peer:0", "trained", round=5, loss=1.0))
    assert display._run.least() == 5


def test_two_attacks_of_one_name_end_one_by_one() -> None:
    display, _ = shown()
    display.tell("x", training(2, 10, attacks=2))
    for _ in range(2):
        display.tell("x", {"kind": "attacking", "attack": "analytic", "vantage": "wire"})
    display.tell("x", {"kind": "attacked", "attack": "analytic from wire"})
    assert len(display._attacks(display._since)) == 1


def test_without_a_terminal_a_long_run_says_lines_and_no_control_characters() -> None:
    display, out = shown(terminal=False)
    with display:
        display.tell("x", training(2, 100))
        for round_ in range(100):
            for peer in ("peer:0", "peer:1"):
                display.tell("x", note(peer, "round", sent=1000 * round_, round=round_))
        display.tell("x", note("peer:1", "ended", how="killed by SIGKILL"))
    lines = out.getvalue().splitlines()
    assert "\x1b" not in out.getvalue()
    assert sum(line.startswith("  round ") for line in lines) == 9
    assert any("killed by SIGKILL" in line for line in lines)


def test_who_is_gone_does_not_hold_the_bar_back() -> None:
    peers = {"a": PeerStanding(round=50, state="training"), "b": PeerStanding(round=3, state="killed by SIGKILL")}
    assert RunStanding("x", rounds=100, peers=peers).share() == 0.5


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (59.4, "59 s"), (60, "1:00"), (3599.4, "59:59"), (3723, "1:02:03")]
)
def test_times(seconds: float, words: str) -> None:
    assert clock(seconds) == words


@pytest.mark.parametrize(("count", "words"), [(None, "-"), (999, "999 B"), (1000, "1.0 kB"), (2.5e9, "2.5 GB")])
def test_sizes(count: float | None, words: str) -> None:
    assert size(count) == words


def test_in_split_mode_who_stands_by_and_who_is_done_is_said_and_nobody_holds_the_bar_back() -> None:
    display, _ = shown(width=120)
    names = ["peer:0", "middle:1", "tail", "standby:1"]
    display.tell("x", {"kind": "training", "members": names, "rounds": 10})
    for name in names:
        display.tell("x", note(name, "round", round=4))
    assert display._run.least() == 5
    assert "standing by" in text(display, 120)
    for name in ("tail", "standby:1"):
        display.tell("x", note(name, "round", round=9))
    assert display._run.peers["tail"].state == "finished"
    assert display._run.peers["peer:0"].state == "training"  # it has yet to measure what came out


def test_alarms_are_said_once_and_counted_and_a_replacement_is_said() -> None:
    display, out = shown(terminal=False)
    display.tell("x", {"kind": "training", "members": ["peer:0", "tail", "standby:1"], "rounds": 10})
    for step in (31, 32):
        display.tell("x", note("peer:0", "alarm", step=step, why="gradients do not mind false labels"))
    display.tell("x", note("peer:0", "replaced", stage=1, gone="tail", by="standby:1"))
    display.tell("x", note("tail", "refused", stage=1, why="labels of other examples"))
    display.tell("x", note("tail", "ended", how="killed"))
    said = out.getvalue()
    assert said.count("sounded an alarm at step 31: gradients do not mind false labels") == 1
    assert "alarms: 2" in text(display, 120)
    assert "standby:1 plays stage 1 for peer:0, since tail is gone" in said
    assert "tail dropped a frame: labels of other examples" in said
    assert "tail ended: killed\n" in said  # whether the others go on is another question here
