"""The command line as a user meets it: what they see, and what a mistake costs them."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from veilmesh.cli.main import main

WAIT = 120


@dataclass
class Said:
    """What a command said, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """The console script's own function in this process: importing torch once is enough for fifty mistakes."""

    def run(*arguments: str) -> Said:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["veilmesh", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capfd.readouterr()
        code = ended.value.code
        return Said(code if isinstance(code, int) else 0, said.out, said.err)

    return run


def veilmesh(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "veilmesh.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT, cwd=cwd, check=False)


def complaint(result: "Said | subprocess.CompletedProcess[str]") -> str:
    """The one sentence that a mistake gets; asserts that it is one, and the only thing said on stderr."""
    assert result.returncode == 2, result.stdout + result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("veilmesh: ")
    assert lines[0].endswith((".", "'", ")"))
    assert "Traceback" not in result.stdout + result.stderr
    return lines[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run with a malicious peer, in virtual time."""
    folder = tmp_path_factory.mktemp("finished")
    options = ["world=virtual", "training.batch=1", "task.name=faces", "peers=3", "rounds=3"]
    flags = [part for option in options for part in ("--set", option)]
    result = veilmesh("up", "--malicious", "peer:1", "--out", "run", *flags, cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "run"


def test_help_names_every_command(inside: Callable[..., Said]) -> None:
    said = inside("--help").stdout
    for command in ("up", "study", "attack", "view", "replay", "report", "list", "doctor"):
        assert f" {command} " in said
        assert inside(command, "--help").returncode == 0


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("list tas", ["tasks"]), ("up --task fa", ["faces"]), ("up --topology ri", ["ring"]),
        ("up --strategy u-sh", ["u-shaped"]), ("up --set training.b", ["training.batch="]),
        ("attack run --attack cos", ["cosine-inversion"]),
    ],
)  # fmt: skip
def test_completion_offers_what_there_is(tmp_path: Path, line: str, offered: list[str]) -> None:
    words = f"veilmesh {line}"
    where = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "PATH": ""}
    shown = subprocess.run(
        [str(Path(sys.executable).with_name("veilmesh"))],
        env={"_VEILMESH_COMPLETE": "complete_bash", **where},
        capture_output=True,
        text=True,
        timeout=WAIT,
        cwd=tmp_path,
        check=False,
    )
    assert shown.stdout.split() == offered, shown.stderr


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        ("attacks", "cosine-inversion"), ("tasks", "faces"), ("strategies", "gossip"), ("codecs", "top-k"),
        ("guards", "noise"), ("transports", "libp2p"), ("topologies", "small-world"), ("models", "convnet"),
        ("partitions", "dirichlet"), ("splits", "u-shaped"), ("split-guards", "nopeek"), ("hijacks", "fsha"),
    ],
)  # fmt: skip
def test_list_shows_what_is_registered(inside: Callable[..., Said], kind: str, known: str) -> None:
    assert known in inside("list", kind).stdout


def test_doctor_says_what_is_there_and_what_is_missing(inside: Callable[..., Said]) -> None:
    result = inside("doctor")
    assert result.returncode == 0
    assert "torch" in result.stdout
    assert "libp2p" in result.stdout


def test_a_finished_run_can_be_attacked_and_reported(finished: Path) -> None:
    result = veilmesh(
        "attack", str(finished), "--vantage", "peer:1", "--attack", "cosine-inversion", "--set", "iterations=5",
        cwd=finished.parent,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    [row] = json.loads((finished / "summary.json").read_text())["attacks"]
    assert row["options"] == {"iterations": 5}
    assert row["pictures"] == 2
    assert all((finished / guess["truth"]).exists() for guess in row["guesses"])
    assert veilmesh("report", str(finished), cwd=finished.parent).returncode == 0
    assert "cosine-inversion" in (finished / "report.html").read_text()


def test_a_view_is_written_and_attacked_with_nothing_else_at_hand(
    finished: Path, inside: Callable[..., Said], tmp_path: Path
) -> None:
    """In another process, the pictures are those of the attack on the run itself."""
    asked = ["--attack", "cosine-inversion", "--set", "iterations=5"]
    assert inside("attack", str(finished), "--vantage", "peer:1", *asked).returncode == 0
    [row] = [
        a for a in json.loads((finished / "summary.json").read_text())["attacks"] if a["options"]["iterations"] == 5
    ]
    written = inside("view", str(finished), "--vantage", "peer:1", "--out", "seen.view")
    assert written.returncode == 0, written.stderr
    replayed = veilmesh("replay", "seen.view", *asked, "--out", "guessed", cwd=tmp_path)
    assert replayed.returncode == 0, replayed.stderr
    assert "guessed 2 pictures of 2 batches" in replayed.stdout
    said = json.loads((tmp_path / "guessed" / "guesses.json").read_text())["guesses"]
    assert not any("psnr" in guess for guess in said)
    ours = sorted((tmp_path / "guessed" / name).read_bytes() for guess in said for name in guess["files"])
    assert ours == sorted((finished / guess["guess"]).read_bytes() for guess in row["guesses"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["view", "RUN", "--vantage", "peer:0", "--out", "x"], "was not kept"),
        (["view", "nowhere", "--vantage", "peer:1", "--out", "x"], "nowhere"),
        (["replay", "nowhere", "--attack", "analytic"], "cannot be read"),
        (["replay", "RUN/summary.json", "--attack", "analytic"], "no stored view"),
        (["attack", "RUN", "--vantage", "peer:1", "--attack", "analytic", "--device", "cuda"], "leave --device cuda"),
    ],
)
def test_what_cannot_be_viewed_or_replayed_is_a_sentence(
    finished: Path, inside: Callable[..., Said], arguments: list[str], words: str
) -> None:
    assert words in complaint(inside(*[part.replace("RUN", str(finished)) for part in arguments]))


def test_a_view_that_was_not_kept_cannot_be_attacked(finished: Path) -> None:
    """The transcript holds peer 1's view only: a row that says that peer 0 learned nothing would be false."""
    before = (finished / "summary.json").read_bytes()
    result = veilmesh("attack", str(finished), "--vantage", "peer:0", "--attack", "analytic", cwd=finished.parent)
    assert "--malicious peer:0" in complaint(result)
    assert (finished / "summary.json").read_bytes() == before


@pytest.mark.slow
def test_a_run_written_over_another_keeps_nothing_of_it(tmp_path: Path) -> None:
    """Peers of simulated runs have the same names: the transcript of the run before would be taken for this one's."""
    options = ["--out", "run", "--set", "world=virtual", "--set", "rounds=1", "--peers", "3"]
    assert veilmesh("up", "--malicious", "peer:1", *options, cwd=tmp_path).returncode == 0
    assert veilmesh("up", "--malicious", "peer:2", *options, cwd=tmp_path).returncode == 0
    assert [path.name for path in (tmp_path / "run" / "transcript").iterdir()] == ["peer-2.records"]


def test_what_came_out_is_said_with_where_bytes_were_counted(finished: Path) -> None:
    options = ["--set", "world=virtual", "--set", "rounds=1", "--peers", "2", "--malicious", "peer:0"]
    said = veilmesh("up", *options, "--out", "other", cwd=finished.parent).stdout.replace("\n", " ")
    assert "2 of 2 members finished 1 rounds" in said
    assert "(simulated)" in said
    assert "next: veilmesh attack other --vantage peer:0" in said


def test_a_version_can_be_asked_for(inside: Callable[..., Said]) -> None:
    assert inside("--version").stdout.startswith("veilmesh ")


def test_list_without_a_kind_names_the_kinds(inside: Callable[..., Said]) -> None:
    said = inside("list")
    assert said.returncode == 0
    assert "veilmesh list attacks" in said.stdout
    assert "cosine-inversion" in said.stdout


@pytest.mark.parametrize(
    ("arguments", "about"),
    [
        (["up", "--task", "digit"], "'digits'"),
        (["up", "--strategy", "gosip"], "'gossip'"),
        (["up", "--peers", "0"], "peers"),
        (["up", "--peers", "1"], "2 peers"),
        (["up", "--set", "codec.nam=dense"], "codec"),
        (["up", "--set", "rounds"], "name=value"),
        (["up", "--set", "traning.batch=3"], "'training'"),
        (["up", "--malicious", "peer:9"], "peer:9"),
        (["up", "--malicious", "server"], "server"),
        (["up", "--scenario", "nowhere.toml"], "nowhere.toml"),
        (["up", "--topology", "k-regular", "--set", "topology.k=3"], "3-regular"),
        (["up", "--task", "mnist", "--data", "nowhere"], "nowhere"),
        (["up", "--task", "camvid"], "--data"),
        (["up", "--malicious", "3"], "peer:N"),
        (["up", "--out", __file__], "is a file"),
        (["up", "--listen", "nowhere.invalid"], "nowhere.invalid"),
        (["study", "run", "nowhere.toml"], "nowhere.toml"),
        (["attack", "nowhere", "--vantage", "peer:1", "--attack", "analytic"], "nowhere"),
        (["report", "nowhere"], "nowhere"),
        (["list", "attack"], "'attacks'"),
    ],
)
def test_a_mistake_gets_one_sentence_and_exit_code_2(
    inside: Callable[..., Said], tmp_path: Path, arguments: list[str], about: str
) -> None:
    assert about in complaint(inside(*arguments))
    assert not list(tmp_path.rglob("summary.json"))


def test_a_mistake_leaves_a_process_with_exit_code_2(tmp_path: Path) -> None:
    assert "'digits'" in complaint(veilmesh("up", "--task", "digit", cwd=tmp_path))


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = complaint(veilmesh("up", "--peers", "2", "--rounds", "1", "--port", str(port), cwd=tmp_path))
    assert f"port {port} " in said or f"port {port + 1} " in said  # the next one may be somebody else's


BROKEN = {
    "cut off": '[study]\ntitle = "x',
    "no title": "[scenario]\npeers = 3",
    "unknown table": '[study]\ntitle = "x"\n[scenarios]\npeers = 3',
    "a check that cannot be read": '[study]\ntitle = "x"\n[[claims]]\nsays = "y"\ncheck = "best(psnr"',
    "a check that is code": '[study]\ntitle = "x"\n[[claims]]\nsays = "y"\ncheck = "__import__(\'os\')"',
    "an axis nobody knows": '[study]\ntitle = "x"\n[axes]\n"model.widht" = [1, 2]\n"pears" = [1]',
    "an attack nobody knows": '[study]\ntitle = "x"\n[scenario]\nworld = "virtual"\nrounds = 1\nadversary = '
    '{ vantage = "peer:0" }\n[[attacks]]\nname = "analytical"',
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_study_gets_one_sentence(inside: Callable[..., Said], tmp_path: Path, kind: str) -> None:
    (tmp_path / "broken.toml").write_text(BROKEN[kind])
    complaint(inside("study", "run", "broken.toml", "--out", "out"))


def test_a_cut_off_data_file_gets_one_sentence(inside: Callable[..., Said], tmp_path: Path) -> None:

    pq.write_table(pa.table({"image": [b"x" * 100] * 50, "label": [0] * 50}), tmp_path / "whole.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "whole.parquet").read_bytes()[:-40])
    said = complaint(inside("up", "--task", "parquet", "--data", "cut.parquet"))
    assert "cut.parquet" in said


STUDY = """
[study]
title = "Two sizes of a very small mesh"
[scenario]
world = "virtual"
rounds = 2
adversary = { vantage = "peer:0" }
training = { batch = 1 }
[axes]
peers = [2, 3]
[[attacks]]
name = "analytic"
targets = 1
[[claims]]
says = "every peer finishes"
check = "worst(finished) >= 2"
[[claims]]
says = "more peers, more of them finish"
check = "increasing(finished, by='peers')"
[[claims]]
says = "what nobody measured"
check = "best(nothing) > 1"
"""


def test_a_study_judges_its_claims_and_is_not_run_twice(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(STUDY)
    first = veilmesh("study", "run", "small.toml", "--out", "out", cwd=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stdout.strip().splitlines()[-1] == "claims: 2 hold, 0 fail, 1 not run"
    assert "2 runs" in first.stdout
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [set(c) for c in summary["claims"]] == [{"says", "source", "wanted", "got", "holds"}] * 3
    assert [c["holds"] for c in summary["claims"]] == [True, True, None]
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "cells").rglob("run.json")}
    assert len(stamps) == 2
    again = veilmesh("study", "run", "small.toml", "--out", "out", cwd=tmp_path)
    assert again.returncode == 0
    assert "2 of 2 were run before" in again.stdout
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "cells").rglob("run.json")}


@pytest.mark.slow
def test_a_study_can_be_run_with_other_fields_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(STUDY)
    result = veilmesh("study", "run", "small.toml", "--set", "task.name=faces", "--set", "rounds=1", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "changed: task.name = faces, rounds = 1" in result.stdout
    [summary] = (json.loads(file.read_text()) for file in tmp_path.glob("runs/*/summary.json"))
    assert summary["study"]["changed"] == {"task.name": "faces", "rounds": 1}
    refused = veilmesh("study", "run", "small.toml", "--set", "peers=4", cwd=tmp_path)
    assert refused.returncode != 0
    assert "axis 'peers'" in refused.stderr


def test_a_claim_that_fails_is_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(STUDY.replace("worst(finished) >= 2", "worst(finished) >= 3"))
    result = veilmesh("study", "run", str(tmp_path), "--out", "out", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stdout.strip().splitlines()[-1] == "claims: 1 hold, 1 fail, 1 not run"
