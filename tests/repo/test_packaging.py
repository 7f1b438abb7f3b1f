"""The rooms are top-level folders and are imported as veilmesh.<room>: what is installed must be just that."""

import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

__all__: list[str] = []

HOOK = "import sys; from setuptools import build_meta; build_meta.build_editable(sys.argv[1])"


def run(*command: str | Path, cwd: Path, wanted: int = 0) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=clean, capture_output=True, text=True, timeout=300)
    assert done.returncode == wanted, f"{command} gave {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, root: Path, copy_rooms: Callable[[Path], None]) -> Path:
    """A copy of all that a build needs, and of what it must leave out."""
    folder = tmp_path_factory.mktemp("source")
    copy_rooms(folder)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (folder / name).write_bytes((root / name).read_bytes())
    (folder / "tests").mkdir()
    (folder / "tests" / "__init__.py").write_text("")
    return folder


def build(source: Path, out: Path, *options: str) -> None:
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, *options, source, cwd=out.parent)


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel") / "dist"
    build(source, out, "--wheel")
    return only(out, "*.whl")


@pytest.fixture(scope="module")
def from_sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from the unpacked source distribution."""
    out = tmp_path_factory.mktemp("sdist") / "dist"
    build(source, out)
    assert only(out, "*.tar.gz")
    return only(out, "*.whl")


@pytest.fixture(scope="module")
def editable(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The editable wheel, made as pip makes it: through the build backend's own hook."""
    out = tmp_path_factory.mktemp("editable")
    run(sys.executable, "-c", HOOK, out, cwd=source)
    return only(out, "*.whl")


def fresh_environment(folder: Path, wheel: Path) -> Path:
    """A new environment with `wheel` in it; returns its folder of programs.

    The dependencies are those of the environment that runs this test: a .pth line puts its site-packages behind the
    new environment's own. Nested .pth files are not read, so an editable veilmesh there stays out of sight; and nothing
    is downloaded. The wheel goes in before the line does, or pip would take the other veilmesh for an older one of its.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    programs = folder / "bin"
    asked = ["install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", wheel]
    run(sys.executable, "-m", "pip", "--python", programs / "python", *asked, cwd=folder)
    own = run(programs / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    there = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    (Path(own) / "dependencies.pth").write_text("\n".join(there) + "\n")
    return programs


def folders_with_code(root: Path, packages: list[str]) -> set[str]:
    """Every folder of Python files inside a room, as a dotted name; a room is a top folder with py.typed."""
    rooms = [entry.parent for entry in root.glob("*/py.typed")]
    holders = {file.parent for room in rooms for file in room.rglob("*.py")}
    return {".".join(["veilmesh", *folder.relative_to(root).parts]) for folder in holders}


def test_the_listed_packages_are_the_folders(root: Path, packages: list[str]) -> None:
    assert sorted(folders_with_code(root, packages)) == sorted(packages)


def test_every_package_has_its_init_and_its_type_marker(root: Path, packages: list[str]) -> None:
    folders = [root.joinpath(*name.split(".")[1:]) for name in packages]
    lacking = [str(folder / name) for folder in folders for name in ("__init__.py", "py.typed")]
    assert [name for name in lacking if not Path(name).is_file()] == []


def test_type_checkers_and_ruff_know_every_room(root: Path, packages: list[str], settings: dict[str, Any]) -> None:
    rooms = sorted({name.split(".")[1] for name in packages})
    links = root / "tests" / "types" / "veilmesh"
    assert sorted(link.name for link in links.iterdir()) == rooms
    assert all((links / room).resolve() == root / room for room in rooms)
    assert sorted(settings["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]) == rooms
    assert sorted(settings["tool"]["importlinter"]["root_packages"]) == [f"veilmesh.{room}" for room in rooms]


def test_a_torch_that_is_there_is_never_changed(settings: dict[str, Any]) -> None:
    project = settings["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    wanted = [line for line in [*project["dependencies"], *extras] if re.match(r"torch\b", line)]
    assert len(wanted) == 1
    assert re.fullmatch(r"torch>=2\.\d+", wanted[0]), "a lower bound only"
    clashing = re.compile(r"torch(vision|audio|text)", re.IGNORECASE)
    assert not [line for line in [*project["dependencies"], *extras] if clashing.match(line)]


def test_every_dependency_is_pinned_for_make(root: Path, settings: dict[str, Any]) -> None:
    def name(line: str) -> str:
        return re.split(r"[^A-Za-z0-9_.-]", line, maxsplit=1)[0].lower().replace("_", "-")

    lines = [line for line in (root / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", line)] == []
    project = settings["project"]
    asked = project["dependencies"] + [one for lines in project["optional-dependencies"].values() for one in lines]
    assert {name(one) for one in asked} - {name(line) for line in lines} == set()


def test_the_wheel_holds_the_rooms_and_nothing_else(wheel: Path, source: Path, packages: list[str]) -> None:
    names = [name for name in contents(wheel) if ".dist-info/" not in name]
    rooms = {name.split(".")[1] for name in packages}
    assert {name.split("/")[0] for name in names} == {"veilmesh"}
    assert {name.split("/")[1] for name in names} == rooms
    kept = (file for room in rooms for file in (source / room).rglob("*") if file.is_file() and file.suffix != ".md")
    assert sorted(names) == sorted(f"veilmesh/{file.relative_to(source)}" for file in kept)


def test_the_wheel_says_its_licence_and_its_command(wheel: Path) -> None:
    files = {name.split("/", 1)[1]: body for name, body in contents(wheel).items() if ".dist-info/" in name}
    assert b"Apache License" in files["licenses/LICENSE"]
    assert b"License-Expression: Apache-2.0" in files["METADATA"]
    assert b"veilmesh = veilmesh.cli.main:main" in files["entry_points.txt"]


def test_the_sdist_builds_the_same_wheel(wheel: Path, from_sdist: Path) -> None:
    assert contents(from_sdist) == contents(wheel)


@pytest.mark.parametrize("kind", ["wheel", pytest.param("editable", marks=pytest.mark.slow)])
def test_a_fresh_environment_runs_it(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, source: Path, packages: list[str]
) -> None:
    """The wheel built here installs, imports from where it was put, and its command works in an empty folder."""
    programs = fresh_environment(tmp_path / "environment", request.getfixturevalue(kind))
    empty = tmp_path / "empty"
    empty.mkdir()
    script = f"import importlib; [print(importlib.import_module(name).__file__) for name in {packages!r}]"
    files = run(programs / "python", "-c", script, cwd=empty).split()
    home = tmp_path / "environment" if kind == "wheel" else source
    assert len(files) == len(packages)
    assert [file for file in files if not Path(file).is_relative_to(home)] == []

    rooms = sorted({name.split(".")[1] for name in packages})
    bare = f"from importlib.util import find_spec; print([name for name in {rooms!r} if find_spec(name)])"
    assert run(programs / "python", "-c", bare, cwd=empty).strip() == "[]", "a room is importable under its bare name"

    assert "study" in run(programs / "veilmesh", "--help", cwd=empty)
    assert "digits" in run(programs / "veilmesh", "list", "tasks", cwd=empty)
    assert list(empty.iterdir()) == []
