"""Gradient matching: what an update would have been, how far that is from the one seen, and the way down."""

__all__: list[str] = []
