"""Labels for public pictures that nobody labelled for the purpose: one file an aligner."""

__all__: list[str] = []
