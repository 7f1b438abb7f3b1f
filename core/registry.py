"""Named things: one file with one registered class adds one attack, guard, strategy, transport, task or model.

A registered class is a frozen dataclass whose fields are its configuration. A registry scans the folder it was made
for when it is first asked, so that registering is never a second step somebody forgets; other packages add theirs
through an entry point group of the same name (`veilmesh.attacks`, `veilmesh.swarm.guards`, ...).
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from veilmesh.core.errors import BadInput, LocalError

__all__ = ["Registry", "first_complaint", "name_and_options", "unknown"]

T = TypeVar("T")
C = TypeVar("C", bound=type)


class Registry(Generic[T]):
    """All the things of one kind, by name.

    Args:
        kind: the field's word for one of them, singular ("attack"); used in every message.
        package: the package whose modules register them; also the entry point group.
        further: other packages whose modules register some too.
    """

    def __init__(self, kind: str, package: str, further: tuple[str, ...] = ()) -> None:
        self.kind = kind
        self.package = package
        self._further = further
        self._classes: dict[str, type[T]] = {}
        self._scanned = False

    def register(self, name: str) -> Callable[[C], C]:
        """Class decorator: enter a dataclass under `name`. Raises LocalError if the name is taken."""

        def enter(cls: C) -> C:
            if not dataclasses.is_dataclass(cls):
                raise LocalError(f"{self.kind} {name!r} must be a dataclass: its fields are its configuration")
            if name in self._classes and self._classes[name].__qualname__ != cls.__qualname__:
                raise LocalError(f"two {self.kind}s are registered as {name!r}")
            self._classes[name] = cast(type[T], cls)  # that it keeps T's promise is for the contract tests to say
            return cls

        return enter

    def names(self) -> list[str]:
        """Every registered name, sorted."""
        self._scan()
        return sorted(self._classes)

    def get(self, name: str) -> type[T]:
        """The class registered as `name`. Raises BadInput, naming the known ones."""
        self._scan()
        if name not in self._classes:
            raise BadInput(unknown(self.kind, name, self._classes))
        return self._classes[name]

    def build(self, name: str, options: Mapping[str, Any] | None = None) -> T:
        """An instance of `name` configured by `options`. Raises BadInput on unknown or ill-typed options."""
        cls = self.get(name)
        given = dict(options or {})
        fields = [f.name for f in dataclasses.fields(cls) if f.init]  # type: ignore[arg-type]  # register() checked it
        for option in given:
            if option not in fields:
                raise BadInput(unknown(f"option of {self.kind} {name!r}", option, fields))
        try:
            return TypeAdapter(cls).validate_python(given)
        except ValidationError as error:
            raise BadInput(f"{self.kind} {name!r}: {first_complaint(error)}.") from None

    def build_from(self, named: Mapping[str, Any]) -> T:
        """As `build`, of a table that holds the name and the options. Raises BadInput."""
        return self.build(*name_and_options(named))

    def describe(self, name: str) -> tuple[str, dict[str, object]]:
        """What it is, by its docstring's first lines, and the options with their defaults (`...`: one is required)."""
        cls = self.get(name)
        return _beginning(cls.__doc__ or ""), {f.name: _default(f) for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]  # as in build

    def _scan(self) -> None:
        if self._scanned:
            return
        for name in (self.package, *self._further):
            places = getattr(importlib.import_module(name), "__path__", ())  # a registry may also live in one file
            for module in pkgutil.iter_modules(places):
                importlib.import_module(f"{name}.{module.name}")
        for point in entry_points(group=self.package):
            point.load()
        self._scanned = True


def name_and_options(named: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and the options of a thing that one table describes."""
    return str(named["name"]), {key: value for key, value in named.items() if key != "name"}


def unknown(what: str, name: str, known: Mapping[str, object] | list[str]) -> str:
    """One sentence: this name is not known, did you mean that one, these are the known ones."""
    near = get_close_matches(name, list(known), n=1)
    hint = f" did you mean {near[0]!r}?" if near else ""
    return f"There is no {what} {name!r};{hint} known: {', '.join(sorted(known)) or 'none'}."


def first_complaint(error: ValidationError) -> str:
    """The first thing pydantic found wrong, as `place: what`, without its links and its count."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def _beginning(words: str) -> str:
    """The first lines of a docstring, until one of them ends a sentence or the paragraph ends."""
    taken: list[str] = []
    for line in (line.strip() for line in words.strip().splitlines()):
        if not line:
            break
        taken.append(line)
        if line.endswith("."):
            break
    return " ".join(taken)


def _default(field: "dataclasses.Field[Any]") -> object:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return ...
