"""Attacks of split mode: what smashed data, gradients at the cut and their transcripts give away."""

__all__: list[str] = []
