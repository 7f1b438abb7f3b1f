"""The findings of `veilmesh doctor`."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from veilmesh.peer.brokers.embedded import has_embedded
from veilmesh.peer.brokers.mosquitto import find_mosquitto
from veilmesh.sim.doctor import PROGRAMS, Finding, examine

__all__: list[str] = []


@pytest.fixture(scope="module")
def findings() -> dict[str, Finding]:
    return {finding.name: finding for finding in examine()}


def test_every_finding_says_what_it_gives_and_how_to_get_it(findings: dict[str, Finding]) -> None:
    assert len(findings) == len(examine())
    assert all(finding.gives and finding.how for finding in findings.values())


def test_what_these_tests_run_on_is_found(findings: dict[str, Finding]) -> None:
    assert all(findings[name].present for name in ("python", "torch", "libp2p", "loopback ports"))
    assert findings["libp2p"].version == version("libp2p")
    assert findings["torch"].version == version("torch")


def test_it_says_which_brokers_are_there_and_what_the_embedded_one_cannot_do(findings: dict[str, Finding]) -> None:
    assert findings["mosquitto"].present == (find_mosquitto() is not None)
    assert findings["amqtt"].present == has_embedded()
    assert "not MQTT 5" in findings["amqtt"].gives


def test_a_program_that_is_not_there_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROGRAMS, "abacus", (("no-such-abacus", "nor-this-one"), "sums"))
    assert Finding("abacus", False, None, "sums", "make system, or install the package abacus") in examine()


def test_another_libp2p_than_the_hardening_is_made_for_counts_as_missing(tmp_path: Path) -> None:
    """Another release in front of the search path, as metadata: that is all that an examination reads."""
    other = tmp_path / "libp2p-9.9.9.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: libp2p\nVersion: 9.9.9\n")
    script = "from veilmesh.sim.doctor import examine; print([f for f in examine() if f.name == 'libp2p'])"
    asked = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {script}"]
    answer = subprocess.run(asked, capture_output=True, text=True, timeout=60).stdout
    assert "present=False, version='9.9.9'" in answer
    assert "pip install libp2p==0." in answer


def test_it_says_what_an_edge_device_can_be_held_to(findings: dict[str, Finding]) -> None:
    held = findings["edge device"]
    assert held.version is not None
    assert "link" in held.version  # needs nothing of the system
    assert held.present == ("cores" in held.version and "memory" in held.version)
