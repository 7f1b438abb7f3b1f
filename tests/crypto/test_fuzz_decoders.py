"""The fuzz harness runs over every decoder, finds nothing, and would find something."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from veilmesh.core import Refusal, RemoteError
from veilmesh.crypto.codecs.table import WIRE_IDS

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "fuzz_decoders.py"


@pytest.fixture(scope="module")
def harness() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_decoders", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_thousand_mutations_end_in_a_value_or_a_refusal() -> None:
    asked = [sys.executable, str(SCRIPT), "--total", "2000", "--seed", "1"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2,000 mutations, 0 failures" in done.stdout
    for name in [
        "frame,",
        "card",
        "message,",
        "frames on a stream",
        "invite",
        *(c.__name__ for c in WIRE_IDS.values()),
    ]:
        assert name in done.stdout


def test_every_type_of_message_has_a_valid_example(harness: ModuleType) -> None:
    from typing import get_args

    from veilmesh.swarm import messages

    for kind in get_args(messages.Message):
        said = harness.example(kind)
        assert messages.decode(messages.encode(said)) == said


def test_the_same_seed_makes_the_same_mutations(harness: ModuleType) -> None:
    seen: list[list[bytes]] = []
    for seed in (5, 5, 6):
        seen.append([])
        harness.fuzz(harness.Decoder("any", [bytes(range(40)), b"other"], seen[-1].append), 50, seed)
    assert seen[0] == seen[1] != seen[2]


def test_a_crash_and_a_forgery_are_found(harness: ModuleType) -> None:
    def careless(raw: bytes) -> int:
        if len(raw) < 3:
            raise RemoteError(Refusal.TRUNCATED)
        return 1 // (raw[2] - 255)

    found = harness.fuzz(harness.Decoder("careless", [bytes(8)], careless), 2000, 0)
    assert found.failures
    assert found.failures[0].startswith("ZeroDivisionError")
    assert found.tried == 2000
    assert found.accepted + found.refused + len(found.failures) == 2000
    forged = harness.fuzz(harness.Decoder("open", [bytes(8)], len, sealed=True), 100, 0)
    assert any("forged" in failure for failure in forged.failures)


def test_bytes_of_nobody_do_not_reach_a_homomorphic_reader(harness: ModuleType) -> None:
    pytest.importorskip("tenseal")
    watch = harness.Watched()
    reader = watch.around(lambda raw: raw)
    with pytest.raises(harness.LocalError, match="unauthenticated"):
        reader(b"from the wire")
    watch.authentic = True
    assert reader(b"from an opened frame")
    done = [d for d in harness.decoders() if d.name == "ciphertext in a frame"]
    assert done
    assert not harness.fuzz(done[0], 100, 0).failures
