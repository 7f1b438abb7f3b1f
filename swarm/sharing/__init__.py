"""What is shared: the whole model, or something made of it that says less."""

__all__: list[str] = []
