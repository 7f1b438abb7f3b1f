"""Attacks that put together a model which its owner never said, one file an attack."""

__all__: list[str] = []
