"""Attacks that say what a model's training data was like: membership and properties, one file an attack."""

__all__: list[str] = []
