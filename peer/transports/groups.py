"""Exceptions as they come out of task groups."""

__all__ = ["only"]


def only(group: BaseException) -> BaseException:
    """The one exception in nested groups of one; task groups wrap whatever passes through them."""
    while isinstance(group, BaseExceptionGroup) and len(group.exceptions) == 1:
        group = group.exceptions[0]
    return group
