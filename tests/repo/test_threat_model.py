"""Every test and study that docs/threat-model.md stands on is there, and every mode has its line."""

import re
from pathlib import Path

from veilmesh.split.guards.base import SPLIT_GUARDS
from veilmesh.split.strategies.base import SPLITS
from veilmesh.swarm.sharing.base import SHARINGS
from veilmesh.swarm.strategies.base import STRATEGIES

__all__: list[str] = []

HIDING = {"secure-groups", "blind-proxy", "shared-key", "brea"}


def page(root: Path, name: str = "threat-model.md") -> str:
    return (root / "docs" / name).read_text(encoding="utf-8")


def test_every_test_it_names_exists(root: Path) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?::\s+(test_\w+))?`", page(root))
    assert len(named) > 40
    assert [file for file, _ in named if not (root / file).is_file()] == []
    missing = [(file, test) for file, test in named if test and f"def {test}(" not in (root / file).read_text()]
    assert missing == []


def test_tests_named_without_their_file_exist_somewhere(root: Path) -> None:
    bare = re.findall(r"`(test_\w+)`", page(root))
    every = "".join(file.read_text() for file in (root / "tests").rglob("test_*.py"))
    assert bare
    assert [test for test in bare if f"def {test}(" not in every] == []


def test_every_study_and_command_it_names_exists(root: Path) -> None:
    studies = re.findall(r"`(studies/[\w./-]+)`", page(root))
    assert studies
    assert [study for study in studies if not (root / study).is_file()] == []
    targets = re.findall(r"`make (\w+)`", page(root))
    assert [target for target in targets if f"\n{target}:" not in (root / "Makefile").read_text()] == []


def test_every_protocol_that_hides_models_has_a_line(root: Path) -> None:
    known = HIDING & set(STRATEGIES.names())
    assert [name for name in sorted(known) if f"`{name}`" not in page(root)] == []


def test_every_protocol_and_guard_of_split_mode_has_a_line(root: Path) -> None:
    text = page(root, "split.md")
    assert [name for name in (*SPLITS.names(), *SPLIT_GUARDS.names()) if f"`{name}`" not in text] == []


def test_every_sharing_scheme_has_a_row_and_its_studies_exist(root: Path) -> None:
    text = page(root, "systems.md")
    assert [name for name in SHARINGS.names() if name != "model" and f"`{name}`" not in text.replace('"', "`")] == []
    studies = set(re.findall(r"`([\w-]+\.toml)`", text))
    assert len(studies) > 8
    assert [study for study in sorted(studies) if not (root / "studies" / "seeds" / study).is_file()] == []


def test_what_the_page_on_split_mode_names_exists(root: Path) -> None:
    named = re.findall(r"(?:tests|studies)/[\w/-]+\.(?:py|toml)", page(root, "split.md"))
    assert named
    assert [file for file in named if not (root / file).is_file()] == []
