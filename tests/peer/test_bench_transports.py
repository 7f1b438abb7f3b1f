"""The benchmark of transports measures, judges, and says why a row is left out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def marks(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(BENCH))
    import transports_marks

    return transports_marks


def measured(only: str, *more: str) -> str:
    asked = ["--only", only, "--repeat", "1", "--rounds", "0", "--megabytes", "1", "--per-pass", "2", *more]
    command = [sys.executable, str(BENCH / "bench_transports.py"), *asked]
    plain = {**os.environ, "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=plain)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_row_is_measured_and_what_was_not_is_said() -> None:
    output = measured("raw TCP")
    [row] = [line.split() for line in output.splitlines() if line.strip().startswith("raw TCP")]
    speed, best, _, trip = map(float, row[2:])
    assert 0 < speed <= best
    assert trip >= 0
    assert "not measured" in output


def test_a_row_that_cannot_be_measured_says_why(tmp_path: Path) -> None:
    nothing = tmp_path / "python"
    nothing.write_text("#!/bin/sh\necho 'no such thing here' >&2\nexit 3\n")
    nothing.chmod(0o755)
    assert "no such thing here" in measured("hivemind", "--hivemind", str(nothing))


def test_marks_are_ratios_of_the_same_pass(marks: object) -> None:
    from transports_marks import Found, Mark, share
    from transports_running import Measured

    def passes(*speeds: float) -> Found:
        return Found({10.0: [Measured(speed, None, None) for speed in speeds]})

    found = {"ours": passes(80, 10, 70), "bare": passes(100, 10, 100)}
    assert share(found, "ours", "bare", 10.0) == 0.8
    assert share(found, "ours", "absent", 10.0) is None
    assert Mark("speed", 0.8, 0.7).cells[-1] == "yes"
    assert Mark("speed", 0.6, 0.7).cells[-1] == "NO"
    assert Mark("round", 1.6, 2.0, at_most=True).cells[-1] == "yes"
    assert Mark("round", None, 2.0, at_most=True).cells[-1] == "not measured"
