"""A mesh whose network breaks in two and heals: each half goes on alone, and they come together again.

Real processes over libp2p and TCP, in two network namespaces, with a link between them that drops every packet and
tells nobody: no connection is closed, as when somewhere on the way a router dies.
"""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from meshes import WAIT, rounds_done, veilmesh, wait_for
from wan import Side, Unavailable, Wan

HALF = 4
WHOLE = 2 * HALF
CUT_SECONDS = 30.0
HEAL_SECONDS = 30.0

OPTIONS = {
    "partition.name": "label-skew", "partition.classes_per_peer": 3, "rounds": 1_000_000, "evaluate_every": 20,
    "timing.silence": 3, "timing.round": 5, "timing.run": 1200,
}  # fmt: skip
SHARDS = (0, 0, 1, 1)
"""Of those who join: between them six of the ten classes, while the other half has all."""


@pytest.fixture
def wan() -> Iterator[Wan]:
    with contextlib.ExitStack() as stack:
        try:
            two = stack.enter_context(Wan(delay=0.01))
        except Unavailable as missing:
            pytest.skip(str(missing))
        yield two


@dataclass(frozen=True)
class Mesh:
    """Where the members write what they do: one folder of those who began, and one of each that joined."""

    began: Path
    joined: tuple[Path, ...]

    def rounds(self) -> dict[str, tuple[int, int]]:
        """Every member's last round, and the size of its group then; of one half by folder."""
        return {f"{f.name}/{peer}": last for f in (self.began, *self.joined) for peer, last in last_rounds(f).items()}

    def halves(self) -> tuple[list[int], list[int]]:
        """The last round of each member, here and there."""
        ours = [round_ for round_, _ in last_rounds(self.began).values()]
        return ours, [round_ for folder in self.joined for round_, _ in last_rounds(folder).values()]

    def agree_on(self, group: int) -> bool:
        """Whether everybody's last round was in a group of that size."""
        groups = [size for _, size in self.rounds().values()]
        return len(groups) == WHOLE and set(groups) == {group}

    def scores(self) -> dict[str, dict[int, tuple[float, float]]]:
        """What every member measured lately, by round: accuracy and loss."""
        found: dict[str, dict[int, tuple[float, float]]] = {}
        for folder in (self.began, *self.joined):
            for line in map(json.loads, tail(folder / "metrics.jsonl")):
                if line["accuracy"] is not None:
                    scores = found.setdefault(f"{folder.name}/{line['peer']}", {})
                    scores[line["round"]] = line["accuracy"], line["test_loss"]
        return found

    def accuracies(self) -> tuple[float, float]:
        """What a member of each half measured last."""
        last = {name: scores[max(scores)][0] for name, scores in self.scores().items()}
        return last["began/0"], last["joined-0/0"]

    def measured_by_all(self) -> tuple[int, list[tuple[float, float]]]:
        """The last round after which everybody took their score, and what came out."""
        scores = list(self.scores().values())
        common = set.intersection(*(set(found) for found in scores)) if len(scores) == WHOLE else {-1}
        round_ = max(common, default=-1)
        return round_, [found[round_] for found in scores] if round_ >= 0 else []


def tail(path: Path) -> list[str]:
    """The last lines of a file, whole ones only."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (64 << 10)))
        return file.read().decode(errors="replace").split("\n")[1:-1]


def last_rounds(folder: Path) -> dict[int, tuple[int, int]]:
    found = [json.loads(line) for line in tail(folder / "events.jsonl") if '"kind": "round"' in line]
    return {event["peer"]: (event["round"], event["group"]) for event in found}


@contextlib.contextmanager
def whole_mesh(where: Path, wan: Wan, *options: str) -> Iterator[tuple[Mesh, list[Any]]]:
    """Half of it begins on one side, half of it joins from the other; it is whole when all train together."""
    mesh = Mesh(where / "began", tuple(where / f"joined-{i}" for i in range(HALF)))
    with contextlib.ExitStack() as stack:
        settings = [word for field, value in OPTIONS.items() for word in ("--set", f"{field}={value}")]
        told = ("--out", str(mesh.began), "--listen", wan.a.address, "--open", "--peers", str(HALF))
        processes = [stack.enter_context(veilmesh(where, "up", *told, *settings, *options, limit=wan.a.enter))]
        wait_for(lambda: rounds_done(mesh.began) > 5 and (mesh.began / "invite").exists(), "the first half")
        invite = (mesh.began / "invite").read_text().strip()
        for folder, shard in zip(mesh.joined, SHARDS, strict=True):
            arguments = ("join", invite, "--out", str(folder), "--shard", str(shard), "--listen", wan.b.address)
            processes.append(stack.enter_context(veilmesh(where, *arguments, limit=wan.b.enter)))
        wait_for(lambda: mesh.agree_on(WHOLE), "all to train together")
        yield mesh, processes


def left(processes: "list[subprocess.Popen[str]]") -> None:
    """Everybody is told to leave, those that began last."""
    for process in reversed(processes):
        process.send_signal(signal.SIGINT)
    for process in processes:
        output, _ = process.communicate(timeout=WAIT)
        assert process.returncode == 130, output


def cut_for_a_while(mesh: Mesh, wan: Wan) -> None:
    wan.cut()
    cut, before = time.monotonic(), mesh.halves()
    wait_for(lambda: mesh.agree_on(HALF), "each half to be a mesh")
    noticed, alone = time.monotonic() - cut, mesh.halves()
    time.sleep(max(0.0, cut + CUT_SECONDS - time.monotonic()))
    apart = mesh.halves()
    print(f"cut: noticed after {noticed:.1f} s; rounds {before} {alone} {apart}; accuracies {mesh.accuracies()}")
    assert mesh.agree_on(HALF)
    for began, ended in zip(alone, apart, strict=True):
        assert min(ended) > max(began)  # both go on


def heal(mesh: Mesh, wan: Wan) -> None:
    wan.heal()
    healed = time.monotonic()
    wait_for(lambda: mesh.agree_on(WHOLE), "all to train together again")
    took = time.monotonic() - healed
    print(f"heal: whole after {took:.1f} s; {mesh.rounds()}")
    assert took < HEAL_SECONDS


def assert_agreed(mesh: Mesh, after: int) -> None:
    """Equal models have equal scores; of different ones the loss differs at once."""
    wait_for(lambda: mesh.measured_by_all()[0] > after, "a score of everybody's")
    accuracies, losses = zip(*mesh.measured_by_all()[1], strict=True)
    spread = (max(losses) - min(losses)) / min(losses)
    print(f"agreed: accuracies {accuracies}, losses {losses}, spread {spread:.1e}")
    assert max(accuracies) - min(accuracies) <= 0.01
    assert spread < 1e-3


ECHO = """
import socket, sys
with socket.create_server((sys.argv[1], 7)) as server:
    while True:
        with server.accept()[0] as one:
            one.sendall(b"here")
"""
CALL = "import socket, sys; print(socket.create_connection((sys.argv[1], 7), timeout=2).recv(4))"


def python(side: Side, *arguments: str) -> "subprocess.Popen[bytes]":
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", *arguments], preexec_fn=side.enter, stdout=pipe, stderr=subprocess.STDOUT
    )


def test_a_link_that_is_cut_carries_nothing_and_whoever_is_inside_ends_with_it(wan: Wan) -> None:
    def calls() -> bool:
        output, _ = python(wan.a, CALL, wan.b.address).communicate(timeout=WAIT)
        return b"here" in output

    server = python(wan.b, ECHO, wan.b.address)
    wait_for(calls, "an answer from the other side")
    wan.cut()
    assert not calls()
    wan.heal()
    assert calls()
    assert wan.b.processes == [server.pid]
    wan.close()
    assert server.wait(WAIT) == -signal.SIGKILL


@pytest.mark.slow
def test_two_halves_go_on_alone_and_come_together_again(tmp_path: Path, wan: Wan) -> None:
    with whole_mesh(tmp_path, wan) as (mesh, processes):
        assert_agreed(mesh, max(map(max, mesh.halves())))
        cut_for_a_while(mesh, wan)
        heal(mesh, wan)
        time.sleep(10)
        print(f"10 s later: {mesh.rounds()}, accuracies {mesh.accuracies()}, packets {wan.shape()}")
        assert mesh.agree_on(WHOLE)
        assert_agreed(mesh, max(map(max, mesh.halves())))
        assert all(process.poll() is None for process in processes)
        left(processes)
    assert wan.a.processes == wan.b.processes == []
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (mesh.began, *mesh.joined)]
    assert [member["ended"] for summary in summaries for member in summary["peers"]] == ["left"] * WHOLE
