"""The contracts of pyproject.toml hold, and each of them would notice if it did not."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

__all__: list[str] = []

ASK = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(cache_dir=None))"


def lint(folder: Path) -> tuple[int, str]:
    """import-linter's exit status and words, run in `folder` on the veilmesh that is there."""
    script = f"import sys; sys.path.insert(0, {str(folder)!r}); {ASK}"
    wide = os.environ | {"COLUMNS": "300", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], cwd=folder, env=wide, capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def copied(tmp_path: Path, root: Path, copy_rooms: Callable[[Path], None]) -> Path:
    """The rooms in a folder that is named veilmesh, which shadows the installed one."""
    copy_rooms(tmp_path / "veilmesh")
    shutil.copy(root / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contracts_hold(copied: Path) -> None:
    status, words = lint(copied)
    assert status == 0, words


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("attacks/planted.py", "import veilmesh.sim", "Rooms only look down"),
        ("crypto/planted.py", "import veilmesh.tasks", "Rooms only look down"),
        ("peer/planted.py", "import veilmesh.swarm", "Rooms only look down"),
        ("swarm/planted.py", "import socket", "are pure"),
        ("attacks/inversion/planted.py", "import time", "are pure"),
        ("attacks/planted.py", "import veilmesh.crypto.identity", "never touches a key"),
        ("attacks/inversion/planted.py", "from veilmesh.peer.node import Node", "never touches a key"),
        ("attacks/inversion/planted.py", "from veilmesh.tasks.data.base import SOURCES", "never touches a key"),
        ("attacks/inversion/planted.py", "from veilmesh.sim.cast import Cast", "Rooms only look down"),
    ],
)
def test_a_planted_violation_is_caught(copied: Path, file: str, line: str, contract: str) -> None:
    """A check that cannot fail says nothing: one forbidden line, and the contract that forbids it is broken."""
    (copied / "veilmesh" / file).write_text(f"{line}  # noqa: F401  # planted by the test\n")
    status, words = lint(copied)
    assert status == 1, words
    assert any(contract in said and "BROKEN" in said for said in words.splitlines()), words
