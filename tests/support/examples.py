"""How many examples of a property are tried: few every day, many in `make test-all`, which sets EXAMPLES."""

import os

from hypothesis import settings

__all__ = ["EVERYDAY", "examples", "untimed"]

EVERYDAY = 25
_ASKED = int(os.environ.get("EXAMPLES", EVERYDAY))


def examples(everyday: int) -> int:
    """As many as asked for, where a property has `everyday` of them instead of EVERYDAY."""
    return max(1, everyday * _ASKED // EVERYDAY)


def untimed() -> None:
    """No property has a deadline; one that says nothing of examples has as many as asked for."""
    settings.register_profile("untimed", deadline=None, max_examples=_ASKED)
    settings.load_profile("untimed")
