"""What must not stand in a file of this repository, checked where no linter looks."""

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

__all__: list[str] = []

LARGEST = 1 << 20  # bytes of one tracked file
PICTURES = {".png", ".jpg", ".gif", ".ico", ".npz", ".parquet"}

# Written in pieces, so that this file does not hold what it looks for.
FOLDERS = re.compile(r"(?<![\w.~$}])/(?:" + "|".join(["home", "Users", "root", "work"]) + r")/\w")
ADDRESS = re.compile(r"(?:https?|ftp|git\+\w+)" + r"://")
INSTALLERS = re.compile(r"(^|/)(constraints|requirements|Makefile|MANIFEST|\.ci/|scripts/)|lock")


@pytest.fixture(scope="module")
def texts(own_files: list[Path], root: Path) -> dict[str, str]:
    """Every text file of ours by its path in the repository."""
    files = [file for file in own_files if file.suffix not in PICTURES]
    return {str(file.relative_to(root)): file.read_text(encoding="utf-8") for file in files}


def places(texts: dict[str, str], pattern: re.Pattern[str]) -> list[str]:
    """`file:line` of every line in which `pattern` is found."""
    lines = ((name, number, line) for name, text in texts.items() for number, line in enumerate(text.split("\n"), 1))
    return [f"{name}:{number}: {line.strip()[:120]}" for name, number, line in lines if pattern.search(line)]


@functools.cache
def parsed(text: str) -> ast.Module:
    """Of a file that several tests look at."""
    return ast.parse(text)


@functools.cache
def nodes(text: str) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(parsed(text)))


def test_no_file_is_large(own_files: list[Path], root: Path) -> None:
    assert [str(file.relative_to(root)) for file in own_files if file.stat().st_size > LARGEST] == []


def test_no_path_of_anybodys_machine(texts: dict[str, str], root: Path) -> None:
    assert places(texts, FOLDERS) == []
    if len(root.parts) > 2:
        assert places(texts, re.compile(re.escape(str(root)) + r"\b")) == []


def test_what_installs_names_no_address(texts: dict[str, str]) -> None:
    """Which index packages come from is the machine's business, never the repository's."""
    installers = {name: text for name, text in texts.items() if INSTALLERS.search(name)}
    assert {"constraints.txt", "Makefile", "scripts/install"} <= set(installers)
    assert places(installers, ADDRESS) == []
    assert places(installers, re.compile(r"--(extra-)?index-url|--find-links|--trusted-host")) == []


@functools.cache
def comments(text: str) -> dict[int, str]:
    """The comment of each line that has one."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}


def reasoned(said: dict[int, str], line: int, marker: str = "") -> bool:
    """Whether the comment of a line says more than its marker, or the line above is one."""
    rest = re.sub(marker, "", said.get(line, "")) if marker else said.get(line, "")
    return bool(re.search(r"\w", rest)) or (line - 1 in said and not re.search(r"type: ignore|noqa", said[line - 1]))


MARKERS = [
    r"#\s*type:\s*ignore(\[[^\]]*\])?",
    r"#\s*noqa(:\s*[A-Z]+[0-9]+(,\s*[A-Z]+[0-9]+)*)?",
    r"#\s*pragma:\s*no cover",
]


def python(texts: dict[str, str]) -> Iterator[tuple[str, str]]:
    yield from ((name, text) for name, text in texts.items() if name.endswith(".py") or name == "scripts/reference")


@pytest.mark.parametrize("marker", MARKERS, ids=["type-ignore", "noqa", "no-cover"])
def test_every_silenced_check_has_its_reason_beside_it(texts: dict[str, str], marker: str) -> None:
    bare = []
    for name, text in python(texts):
        said = comments(text)
        hits = [line for line, comment in said.items() if re.search(marker, comment)]
        bare += [f"{name}:{line}" for line in hits if not reasoned(said, line, marker)]
    assert bare == []


def broad(handler: ast.ExceptHandler) -> bool:
    """Whether a handler catches everything, and does not pass it on."""
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    named = [kind.id if isinstance(kind, ast.Name) else None for kind in kinds]
    everything = handler.type is None or any(name in {"Exception", "BaseException"} for name in named)
    return everything and not any(isinstance(part, ast.Raise) and part.exc is None for part in ast.walk(handler))


def test_every_broad_except_has_its_reason_beside_it(texts: dict[str, str]) -> None:
    bare = []
    for name, text in python(texts):
        said = comments(text)
        handlers = [node for node in nodes(text) if isinstance(node, ast.ExceptHandler) and broad(node)]
        bare += [f"{name}:{each.lineno}" for each in handlers if not reasoned(said, each.lineno, MARKERS[1])]
    assert bare == []


def skips(tree: ast.Module) -> Iterator[int]:
    """Lines of skip and xfail marks that say no reason: bare, or called without one."""
    attributes = {node for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    marks = {node for node in attributes if re.fullmatch(r"pytest\.mark\.(skip|skipif|xfail)", ast.unparse(node))}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.func in marks]
    yield from (call.lineno for call in calls if "reason" not in {keyword.arg for keyword in call.keywords})
    yield from (mark.lineno for mark in marks - {call.func for call in calls})


def test_every_skipped_test_says_why(texts: dict[str, str]) -> None:
    assert [f"{name}:{line}" for name, text in python(texts) for line in skips(parsed(text))] == []


def imported(node: ast.AST) -> set[str]:
    """The top-level packages that an import statement names."""
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
    return {name.split(".")[0] for name in names}


def test_nothing_is_unpickled_without_a_reason(texts: dict[str, str]) -> None:
    """Bytes become objects through msgspec, safetensors and our own codecs: those cannot run what they read."""
    picklers = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    found = []
    for name, text in ((name, text) for name, text in python(texts) if not name.startswith("tests/")):
        said = comments(text)
        lines = [node.lineno for node in nodes(text) if imported(node) & picklers]
        found += [f"{name}:{line}" for line in lines if not reasoned(said, line)]
    assert found == []
