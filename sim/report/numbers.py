"""Figures as people read them: the same words in the page and in the terminal. Nothing to show is an en dash."""

import json
from collections.abc import Mapping

__all__ = [
    "NOTHING", "amount", "decibels", "described", "duration", "gain", "interval", "percent", "share", "shares",
    "similarity", "times",
]  # fmt: skip

NOTHING = "–"
_UNITS = ("B", "kB", "MB", "GB", "TB")
_SPACE = "\N{NARROW NO-BREAK SPACE}"
_MINUS = "\N{MINUS SIGN}"


def decibels(value: float | None) -> str:
    """A PSNR, to a tenth of a decibel, without its unit."""
    return NOTHING if value is None else f"{value:.1f}".replace("-", _MINUS)


def gain(value: float | None) -> str:
    """A difference of two PSNRs, always with its sign."""
    return NOTHING if value is None else f"{value:+.1f}".replace("-", _MINUS)


def interval(low: float | None, high: float | None, *, signed: bool = False) -> str:
    """The ends of an interval of decibels; empty where there is none."""
    if low is None or high is None:
        return ""
    form = gain if signed else decibels
    return f"{form(low)} to {form(high)}"


def similarity(value: float | None) -> str:
    """An SSIM, to two places."""
    return NOTHING if value is None else f"{value:.2f}".replace("-", _MINUS)


def percent(value: float | None) -> str:
    """An accuracy in [0, 1] as a percentage, to a tenth."""
    return NOTHING if value is None else f"{100 * value:.1f}{_SPACE}%"


def share(value: float | None) -> str:
    """A share in [0, 1] as a whole percentage."""
    return NOTHING if value is None else f"{100 * value:.0f}{_SPACE}%"


def shares(values: Mapping[str, float]) -> str:
    """Several shares in one cell, as whole percentages: 80 / 60 / 40 %."""
    if not values:
        return NOTHING
    return f"{' / '.join(f'{100 * value:.0f}' for value in values.values())}{_SPACE}%"


def amount(value: float | None) -> str:
    """A number of bytes in decimal units (1 kB is 1000 B), to three figures."""
    if value is None:
        return NOTHING
    power = 0
    while abs(value) >= 999.5 and power < len(_UNITS) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g}{_SPACE}{_UNITS[power]}"


def duration(value: float | None) -> str:
    """Seconds, and minutes from two of them on."""
    if value is None:
        return NOTHING
    if value < 120:
        return f"{value:.1f}{_SPACE}s" if value < 10 else f"{value:.0f}{_SPACE}s"
    return f"{value // 60:.0f}{_SPACE}min {value % 60:.0f}{_SPACE}s"


def times(value: float | None) -> str:
    """A ratio, to three figures, and never as a power of ten."""
    if value is None:
        return NOTHING
    return f"{value:.0f}{_SPACE}×" if value >= 99.95 else f"{value:.3g}{_SPACE}×"


def described(value: object) -> str:
    """A guard, codec or protection as one phrase: its name, then its options."""
    if value is None or value == {}:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, Mapping):
        return value if isinstance(value, str) else json.dumps(value)
    options = ", ".join(f"{key} {described(item)}" for key, item in value.items() if key != "name")
    name = str(value.get("name", ""))
    return f"{name} ({options})" if name and options else name or options
