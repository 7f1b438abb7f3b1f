"""Crafted models: parameters that make whoever trains from them give single examples away, one file a kind."""

__all__: list[str] = []
