"""What a study claims, as data: a small language over the figures of its cells.

A check is one comparison (`A >= B`) or one statement about a trend (`increasing(psnr_best, by='model.width')`). Terms:
numbers, + - * /, and `best | worst | mean | median | spread(FIGURE, axis='value', attack='name')`, where FIGURE is a
field of a run's summary or of one of its attacks (dots reach inside: `floors.nearest`, and brackets where a name is no
word: `success['20']`), and the rest chooses the cells. `low` and `high` are the ends of the 95 % interval of the mean
over the chosen cells, by Student's t: with a `seed` axis, how far another seed might have moved it
(`low(gain_mean, attack='analytic') > 0`); several figures of one cell count as their mean, and of one cell there is
none. `apart(FIGURE, by='axis')` is how far the means at the values of an axis lie apart: the highest less the lowest.
Nothing else is a term: a check is read, never executed. Where a chosen cell lacks the figure the claim is not
run, and what is not a number never holds.
"""

import ast
import math
import operator
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from veilmesh.core import BadInput, LocalError
from veilmesh.sim.intervals import t_interval

__all__ = ["Claim", "Verdict", "judge"]

Cells = Sequence[Mapping[str, Any]]

_ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARE: dict[type[ast.cmpop], tuple[str, Callable[[float, float], bool]]] = {
    ast.GtE: (">=", operator.ge),
    ast.Gt: (">", operator.gt),
    ast.LtE: ("<=", operator.le),
    ast.Lt: ("<", operator.lt),
    ast.Eq: ("=", operator.eq),
}
_COLLECT: dict[str, Callable[[Sequence[float]], float]] = {
    "best": max,
    "worst": min,
    "mean": statistics.fmean,
    "median": statistics.median,
    "spread": lambda v: max(v) - min(v),
    "count": lambda v: float(len(v)),
}
_BOUNDS = ("low", "high")  # of an interval over cells
_APART = "apart"  # the range of the means along an axis
_ATTACKS = ("attack", "vantage", "title")  # what chooses among a cell's attacks, and no axis
_TRENDS: dict[str, Callable[[float, float], bool]] = {"increasing": operator.lt, "decreasing": operator.gt}


class _Missing(Exception):
    """A figure that no cell has, or that a cell should have and has not: the claim was not run."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What is claimed, by whom, and how it is checked."""

    says: str
    check: str
    source: str = ""

    def tree(self) -> ast.expr:
        """The check as a syntax tree. Raises BadInput if it is no check."""
        try:
            tree = ast.parse(self.check, mode="eval").body
        except (SyntaxError, ValueError) as error:
            why = getattr(error, "msg", str(error))
            raise BadInput(f"The check {self.check!r} of claim {self.says!r} cannot be read: {why}.") from None
        trend = isinstance(tree, ast.Call) and getattr(tree.func, "id", "") in _TRENDS
        if not trend and not (isinstance(tree, ast.Compare) and len(tree.ops) == 1):
            raise BadInput(
                f"The check {self.check!r} of claim {self.says!r} is neither one comparison nor "
                f"{' nor '.join(_TRENDS)}(figure, by='axis'); write it as one."
            )
        _read(tree)
        return tree

    def places(self) -> list[dict[str, Any]]:
        """How each of its terms chooses cells: {axis, `attack`, `vantage` or `title`: value}, and {`by`: axis}."""
        calls = (node for node in ast.walk(self.tree()) if isinstance(node, ast.Call))
        return [_where(call) for call in calls if call.keywords]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A claim, and what came out. `holds` is None where it was not run."""

    says: str
    source: str
    wanted: str
    got: str
    holds: bool | None


def judge(claim: Claim, cells: Cells) -> Verdict:
    """Check `claim` against finished cells ({"axes": ..., "summary": ...}). Raises BadInput on an unreadable check."""
    tree = claim.tree()
    try:
        wanted, got, holds = _trend(tree, cells) if isinstance(tree, ast.Call) else _comparison(tree, cells)
    except ZeroDivisionError:
        return Verdict(claim.says, claim.source, claim.check, "not run: divides by zero", None)
    except _Missing as missing:
        return Verdict(claim.says, claim.source, claim.check, f"not run: {missing}", None)
    return Verdict(claim.says, claim.source, wanted, got, holds)


def _read(tree: ast.expr) -> None:
    """Raises BadInput unless all of a check is of the language: it is said before anything is run for it."""
    if isinstance(tree, ast.Call):
        if len(tree.args) != 1 or "by" not in _where(tree):
            raise BadInput(f"{ast.unparse(tree)!r} needs one figure and by='axis'.")
        _path(tree.args[0])
        return
    assert isinstance(tree, ast.Compare)
    if type(tree.ops[0]) not in _COMPARE:
        raise BadInput(f"{ast.unparse(tree)!r} compares in a way that is not known; use >=, >, <=, < or ==.")
    _read_term(tree.left)
    _read_term(tree.comparators[0])


def _read_term(node: ast.expr) -> None:
    match node:
        case ast.Constant(value=int() | float()):
            return
        case ast.UnaryOp(ast.USub(), inner) | ast.Call(func=ast.Name(id="abs"), args=[inner], keywords=[]):
            _read_term(inner)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            _read_term(left)
            _read_term(right)
        case ast.Call(func=ast.Name(id=name), args=[figure]) if name in (*_COLLECT, *_BOUNDS):
            _where(node)
            _path(figure)
        case ast.Call(func=ast.Name(id=name), args=[figure]) if name == _APART:
            if "by" not in _where(node):
                raise BadInput(f"{ast.unparse(node)!r} needs one figure and by='axis'.")
            _path(figure)
        case _:
            known = ", ".join([*_COLLECT, *_BOUNDS, _APART])
            raise BadInput(f"{ast.unparse(node)!r} is not a term of a check; known: {known}, abs, numbers.")


def _comparison(tree: ast.expr, cells: Cells) -> tuple[str, str, bool]:
    assert isinstance(tree, ast.Compare)
    sign, compare = _COMPARE[type(tree.ops[0])]
    left, right = _value(tree.left, cells), _value(tree.comparators[0], cells)
    return f"{sign} {_figure(right)}", _figure(left), compare(left, right)


def _figure(value: float) -> str:
    """To four figures; what is left of equal sums is nothing."""
    return "0" if abs(value) < 1e-12 else f"{value:.4g}"


def _trend(tree: ast.Call, cells: Cells) -> tuple[str, str, bool]:
    assert isinstance(tree.func, ast.Name)
    name, axis = tree.func.id, _where(tree)["by"]
    series = _series(tree, cells)
    steps = zip(series, series[1:], strict=False)
    holds = all(_TRENDS[name](a[1], b[1]) for a, b in steps)
    return f"{name} with {axis}", ", ".join(f"{at}: {value:.4g}" for at, value in series), holds


def _series(call: ast.Call, cells: Cells) -> list[tuple[Any, float]]:
    """The mean of a figure at each value of the axis that it is asked for `by`, in order."""
    where = _where(call)
    axis = where.pop("by")
    points: dict[Any, list[float]] = {}
    for cell in _chosen(cells, where):
        if values := axis in cell["axes"] and _figures(cell, call.args[0], where):
            points.setdefault(_place(cell["axes"][axis]), []).extend(values)
    if len(points) < 2:
        raise _Missing(f"fewer than two values of {axis}")
    numbers = all(isinstance(at, int | float) for at in points)  # anything else goes in the study's own order
    return [(at, statistics.fmean(points[at])) for at in (sorted(points) if numbers else points)]


def _place(value: Any) -> Any:
    """A value of an axis, as one that can be a key: a table of options is not."""
    return str(value) if isinstance(value, Mapping | list) else value


def _value(node: ast.expr, cells: Cells) -> float:
    match node:
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, cells)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _ARITHMETIC[type(op)](_value(left, cells), _value(right, cells))
        case ast.Call(func=ast.Name(id=name), args=[figure]) if name in _COLLECT:
            return _collect(name, figure, _where(node), cells)
        case ast.Call(func=ast.Name(id=name), args=[figure]) if name in _BOUNDS:
            return _bound(name, figure, _where(node), cells)
        case ast.Call(func=ast.Name(id=name), args=[_]) if name == _APART:
            means = [mean for _, mean in _series(node, cells)]
            return math.nan if any(map(math.isnan, means)) else max(means) - min(means)
        case ast.Call(func=ast.Name(id="abs"), args=[inner], keywords=[]):
            return abs(_value(inner, cells))
    raise LocalError(f"{ast.unparse(node)!r} was read as a check, and is none")


def _collect(name: str, figure: ast.expr, where: Mapping[str, Any], cells: Cells) -> float:
    values = [v for cell in _chosen(cells, where) for v in _figures(cell, figure, where)]
    if not values:
        place = ", ".join(f"{k}={v}" for k, v in where.items())
        raise _Missing(f"no cell has {ast.unparse(figure)}{' where ' + place if place else ''}")
    if any(math.isnan(v) for v in values):
        return math.nan  # max and min would pass over it; so nothing that rests on it holds
    return _COLLECT[name](values)


def _bound(name: str, figure: ast.expr, where: Mapping[str, Any], cells: Cells) -> float:
    """An end of the interval of the mean over cells: what is of one cell is not independent, and counts once."""
    found = [_figures(cell, figure, where) for cell in _chosen(cells, where)]
    means = [statistics.fmean(values) for values in found if values]
    if not all(map(math.isfinite, means)):
        return math.nan
    interval = t_interval(means)
    if interval is None:
        raise _Missing(f"{name} of {ast.unparse(figure)} needs two cells or more, and there are {len(means)}")
    return interval[_BOUNDS.index(name)]


def _where(node: ast.expr) -> dict[str, Any]:
    assert isinstance(node, ast.Call)
    where: dict[str, Any] = {}
    try:
        for keyword in node.keywords:
            value = ast.literal_eval(keyword.value)  # constants only; executes nothing
            # **{"model.width": 8}, for axes whose name has a dot
            where |= dict(value) if keyword.arg is None else {keyword.arg: value}
    except (ValueError, TypeError):
        raise BadInput(f"{ast.unparse(node)!r} chooses cells by something that is not a plain value.") from None
    return where


def _chosen(cells: Cells, where: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    axes = {k: v for k, v in where.items() if k not in (*_ATTACKS, "by")}
    return [cell for cell in cells if all(cell["axes"].get(k) == v for k, v in axes.items())]


def _figures(cell: Mapping[str, Any], figure: ast.expr, where: Mapping[str, Any]) -> list[float]:
    """The values of a figure in one cell: its own, or that of each of its attacks that has such a figure.

    A figure that is there without a value (nobody finished, an attack saw nothing) is not passed over: a claim on what
    is left would say more than was found.
    """
    path = _path(figure)
    summary = cell["summary"]
    attacks = [a for a in summary.get("attacks", ()) if all(a.get(k) == where[k] for k in _ATTACKS if k in where)]
    places = attacks if "attack" in where or path[0] not in summary else [summary]
    return [_number(_inside(place, path), figure, cell) for place in places if path[0] in place]


def _number(value: Any, figure: ast.expr, cell: Mapping[str, Any]) -> float:
    if not isinstance(value, int | float):
        at = ", ".join(str(v) for v in cell["axes"].values()) or "the run"
        raise _Missing(f"{at} has no {ast.unparse(figure)}")
    return float(value)


def _path(figure: ast.expr) -> list[str]:
    match figure:
        case ast.Name(id=name):
            return [name]
        case ast.Attribute(value=place, attr=name) | ast.Subscript(value=place, slice=ast.Constant(value=str(name))):
            return [*_path(place), name]
    raise BadInput(f"{ast.unparse(figure)!r} is not a figure; write its name, with dots where it is inside another.")


def _inside(place: Any, path: Sequence[str]) -> Any:
    for step in path:
        place = place.get(step) if isinstance(place, Mapping) else None
    return place
