"""Active adversaries of split mode: members whose machines are honest, and whose workers lie."""

__all__: list[str] = []
