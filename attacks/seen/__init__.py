"""From a view to what single peers did, as far as a place in the protocol shows it."""

__all__: list[str] = []
