"""What the pages promise is there: names, files, make targets, commands and their options."""

import functools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

__all__: list[str] = []

PAGES = ["README.md", "CONTRIBUTING.md"]
COMMANDS = [*PAGES, "docs/split.md", "docs/edge.md", "docs/transports.md"]
MADE = ("runs/", ".venv", "dist/")  # what commands write: not in a fresh clone
PLAIN = {"COLUMNS": "250", "NO_COLOR": "1", "TERM": "dumb"}


def page(root: Path, name: str) -> str:
    return (root / name).read_text(encoding="utf-8")


def code(text: str) -> list[str]:
    """Every piece of code in a page: the lines of its blocks, prompts and comments taken off, and its inline spans."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", rest)
    return [piece for line in lines + spans if (piece := line.split("  #")[0].strip())]


def commands(root: Path, program: str) -> list[str]:
    """Every command of `program` that a page shows."""
    found = [piece for name in COMMANDS for piece in code(page(root, name)) if re.match(rf"{program}( |$)", piece)]
    return list(dict.fromkeys(found))


def test_the_reference_is_current(root: Path) -> None:
    """Every registered thing stands in docs/reference.md: a new one is `make reference` away from being documented."""
    asked = [sys.executable, str(root / "scripts" / "reference"), "--check"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_link_leads_somewhere(own_files: list[Path], root: Path) -> None:
    broken = []
    for file in own_files:
        if file.suffix == ".md":
            targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page(root, str(file.relative_to(root))))
            here = [target for target in targets if "://" not in target and not target.startswith("mailto:")]
            broken += [f"{file.relative_to(root)}: {target}" for target in here if not (file.parent / target).exists()]
    assert broken == []


@pytest.mark.parametrize("name", PAGES)
def test_every_path_in_a_page_exists(root: Path, name: str) -> None:
    """A code span that has a slash, or ends like a file of ours, is a path from the top of the repository."""
    ending = re.compile(r"[\w./-]+\.(py|md|toml|txt|png|html)|[\w.-]+(/[\w.-]+)*/?")
    spans = [piece for piece in code(page(root, name)) if ending.fullmatch(piece) and ("/" in piece or "." in piece)]
    paths = [
        piece for piece in spans if not piece.startswith(MADE) and not re.fullmatch(r"veilmesh(\.\w+)+|[\d.]+", piece)
    ]
    assert [path for path in paths if not (root / path).exists() and path not in {"report.html"}] == []


def test_every_make_target_in_a_page_exists(root: Path) -> None:
    makefile = (root / "Makefile").read_text()
    targets = {word for command in commands(root, "make") for word in command.split()[1:] if "=" not in word}
    assert {"demo", "test"} <= targets
    assert [
        target for target in targets if not re.search(rf"^{re.escape(target)}:", makefile, flags=re.MULTILINE)
    ] == []


@functools.cache
def help_of(*words: str) -> str:
    """The help of a (sub)command of veilmesh; fails if there is no such command."""
    script = "import sys; from veilmesh.cli.main import main; sys.argv[0] = 'veilmesh'; main()"
    asked = [sys.executable, "-c", script, *words, "--help"]
    done = subprocess.run(asked, env=os.environ | PLAIN, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"veilmesh {' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout


def subcommand(words: list[str]) -> list[str]:
    """The words of a command line that name the command, not its arguments: `study run FILE` -> study, run."""
    named: list[str] = []
    for word in words:
        text = help_of(*named)
        group = re.search(r"^\W*Usage:.* COMMAND", text, flags=re.MULTILINE)
        if not group or not re.search(rf"^\W*{re.escape(word)}\s", text, flags=re.MULTILINE):
            break
        named.append(word)
    return named


def test_every_veilmesh_command_in_a_page_exists(root: Path) -> None:
    """The command is there, and its help knows every option that the page gives it."""
    shown = [shlex.split(command)[1:] for command in commands(root, "veilmesh")]
    assert shown
    wrong = []
    for words in shown:
        named = subcommand(words)
        text = help_of(*named)
        if words and not named and not words[0].startswith("-"):
            wrong.append(f"there is no command {words[0]}")
        options = {word.split("=")[0] for word in words if word.startswith("-")} - {"--help"}
        wrong += [f"veilmesh {' '.join(named)} has no {option}" for option in options if f"{option} " not in text]
    assert wrong == []
