"""A second implementation: js-libp2p, with cards, sessions and frames written anew, is a member of a gossip."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import Vector
from veilmesh.crypto.envelope import Card
from veilmesh.crypto.identity import Identity, public_key
from veilmesh.peer.machine import Note
from veilmesh.peer.transcript import Record
from veilmesh.peer.transports.base import TRANSPORTS, Traffic
from veilmesh.peer.worker import InlineWorker
from veilmesh.sim.cast import Cast
from veilmesh.sim.member import MemberReport, Surroundings, take_part
from veilmesh.sim.scenario import Scenario
from veilmesh.swarm import messages

__all__: list[str] = []

pytestmark = pytest.mark.slow

SOURCES = Path(__file__).parent / "js"
INSTALL_SECONDS, WAIT = 240, 60
ME = Identity.from_seed(bytes([7]) * 32)
ROUNDS = 20  # beyond an epoch of 16 frames
SCENARIO = {
    "peers": 2, "rounds": ROUNDS, "evaluate_every": ROUNDS, "training": {"batch": 4, "learning_rate": 0.1},
}  # fmt: skip
GREETS = ["identify", "ping"]


@pytest.fixture(scope="module")
def program(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The program beside the packages it needs, which are fetched once and kept in pytest's cache."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    wanted = (SOURCES / "package.json").read_bytes()
    kept = getattr(request.config, "cache", None)  # none where its plugin is left out
    home = Path(kept.mkdir("js-libp2p")) if kept else Path(tempfile.mkdtemp())
    packages = home / hashlib.sha256(wanted).hexdigest()[:16]
    if not packages.exists():
        fetch(wanted, packages)
    place = Path(tempfile.mkdtemp(dir=packages))
    for source in SOURCES.glob("*.mjs"):
        shutil.copy(source, place)
    yield place / "peer.mjs"
    shutil.rmtree(place, ignore_errors=True)


def fetch(wanted: bytes, packages: Path) -> None:
    """Install into a folder that gets its name once all is there."""
    draft = Path(tempfile.mkdtemp(dir=packages.parent))
    (draft / "package.json").write_bytes(wanted)
    command = [
        "npm",
        "install",
        "--no-audit",
        "--no-fund",
        "--no-package-lock",
        "--ignore-scripts",
        "--fetch-retries=1",
    ]
    try:
        done = subprocess.run(command, cwd=draft, capture_output=True, text=True, timeout=INSTALL_SECONDS)
        if done.returncode:
            why = next((line for line in done.stderr.splitlines() if line.startswith("npm error")), done.stderr[:200])
            pytest.skip(f"js-libp2p cannot be had: {why}")
        draft.rename(packages)
    except subprocess.TimeoutExpired:
        pytest.skip("js-libp2p cannot be had by npm in time")
    except OSError:
        assert packages.exists()  # another process was faster
    finally:
        shutil.rmtree(draft, ignore_errors=True)


class Js:
    """The other peer: a line in, lines out."""

    def __init__(self, process: Process) -> None:
        assert process.stdout
        self.process = process
        self._lines = BufferedByteReceiveStream(process.stdout)

    async def tell(self, what: Mapping[str, str | bool]) -> None:
        assert self.process.stdin
        await self.process.stdin.send(json.dumps(what).encode() + b"\n")

    async def says(self, name: str) -> Any:
        """The next line, which must have `name`."""
        line = json.loads(await self._lines.receive_until(b"\n", 1 << 20))
        assert name in line, line
        return line


@asynccontextmanager
async def running(program: Path) -> AsyncIterator[Js]:
    process = await anyio.open_process(["node", str(program)], stderr=sys.stderr)
    try:
        yield Js(process)
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
        with anyio.CancelScope(shield=True):
            await process.wait()


class Evening:
    """A gossip of two, one of them here; what came of it."""

    def __init__(self, *serve: str) -> None:
        transport = {"name": "libp2p", "serve": list(serve)}
        self.cast = Cast.prepare(Scenario.parse({**SCENARIO, "transport": transport}))
        self.greets = bool(serve)
        self.records: list[Record] = []
        self.notes: list[Note] = []
        self.greeting: dict[str, Any] = {}
        self.rounds: list[dict[str, Any]] = []
        self.report: MemberReport | None = None

    async def spend(self, program: Path) -> None:
        run, transport = os.urandom(16), self.cast.scenario.transport.build(TRANSPORTS).make(ME)
        async with running(program) as js:

            async def announce(card: Card, protections: Mapping[str, str]) -> list[Card]:
                await js.tell({"address": card.address, "card": card.to_bytes().hex(), "greets": self.greets})
                for name in (*(("identified", "ping") if self.greets else ()), "card"):
                    self.greeting |= await js.says(name)
                other = Card.from_bytes(bytes.fromhex(self.greeting["card"]))
                other.verify()
                return [card, other]

            def note(what: Note, now: float, traffic: Traffic) -> None:
                self.notes.append(what)

            async def nothing(*kept: object) -> None: ...

            around = Surroundings(
                run=run, identity=ME, transport=transport, worker=InlineWorker(self.cast.executor(0)),
                announce=announce, note=note, tap=self.records.append, clock=time.monotonic, keep=nothing,
            )  # fmt: skip
            self.report = await take_part(self.cast, 0, around)
            self.rounds = [await js.says("round") for _ in range(ROUNDS)]
            self.greeting |= await js.says("goodbye")

    def updates(self, received: bool) -> list[bytes]:
        """The blobs of what this peer received, or said."""
        bodies = [messages.decode(r.body) for r in self.records if r.body and (r.frame is not None) is received]
        assert all(isinstance(body, messages.Update) for body in bodies)
        return [body.blob for body in bodies if isinstance(body, messages.Update)]


def spent(program: Path, *serve: str) -> Evening:
    evening = Evening(*serve)

    async def scene() -> None:
        with anyio.fail_after(WAIT):
            await evening.spend(program)

    anyio.run(scene, backend="trio")
    return evening


@pytest.fixture(scope="module")
def evening(program: Path) -> Evening:
    return spent(program, *GREETS)


def test_identify_and_ping_are_answered(evening: Evening) -> None:
    said = evening.greeting["identified"]
    assert said["peer"] == ME.peer
    assert bytes.fromhex(said["key"]) == ME.public
    assert said["agent"].startswith("veilmesh/")
    assert {"/veilmesh/frames/1", "/ipfs/id/1.0.0", "/ipfs/ping/1.0.0"} <= set(said["protocols"])
    assert all(address.startswith("/ip4/127.0.0.1/tcp/") for address in said["addresses"])
    assert said["addresses"]
    assert evening.greeting["ping"] >= 0
    assert public_key(evening.greeting["peer"]) == bytes.fromhex(evening.greeting["identity"])


def assert_both_heard_everything(evening: Evening) -> None:
    heard, said = ([hashlib.sha256(blob).hexdigest() for blob in evening.updates(received=r)] for r in (False, True))
    assert [round_["heard"] for round_ in evening.rounds] == heard
    assert [round_["said"] for round_ in evening.rounds] == said
    assert [round_["round"] for round_ in evening.rounds] == list(range(ROUNDS))
    assert all(round_["joint"] for round_ in evening.rounds)  # messages wait for the joint key
    assert evening.greeting["goodbye"] is True
    groups = [note.data["group"] for note in evening.notes if note.kind == "round"]
    assert groups == [2] * ROUNDS


def test_each_takes_what_the_other_says_to_the_bit(evening: Evening) -> None:
    assert_both_heard_everything(evening)


def test_a_peer_that_answers_neither_takes_part_as_well(program: Path) -> None:
    assert_both_heard_everything(spent(program))


def test_the_model_is_the_mean_of_both(evening: Evening) -> None:
    size = evening.cast.initial.size

    def copy(received: bool) -> Vector:
        return evening.cast.initial + sum(table.decode(b, size).values for b in evening.updates(received=received))

    assert evening.report
    assert evening.report.outcome
    assert evening.report.outcome.rounds == ROUNDS
    np.testing.assert_allclose(
        evening.report.outcome.parameters, (copy(received=True) + copy(received=False)) / 2, atol=1e-5
    )


def test_what_was_altered_on_the_way_was_refused_and_no_more(evening: Evening) -> None:
    assert evening.report
    assert evening.report.refusals == {"bad-signature": 1}
    assert evening.report.dropped == 0
