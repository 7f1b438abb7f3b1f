"""Whether the members of a run came to the same model, and which one: to the bit, so that runs can be compared."""

import hashlib
from collections.abc import Iterable
from typing import Any

from veilmesh.crypto.codecs.base import Vector

__all__ = ["final_models"]

DIGEST_BYTES = 6  # as a number it is exact in JSON, and two models share it by chance once in 2^48


def final_models(models: Iterable[Vector]) -> dict[str, Any]:
    """`models`: how many different ones there are among `models`, each (d,); `model_bits`: the beginning of the SHA-256
    of the one they share, as a number, or None where they differ, so that equal figures of two runs mean equal bits."""
    digests = {_digest(model) for model in models}
    return {"models": len(digests), "model_bits": min(digests) if len(digests) == 1 else None}


def _digest(model: Vector) -> int:
    raw = model.astype("<f4", copy=False).tobytes()
    return int.from_bytes(hashlib.sha256(raw).digest()[:DIGEST_BYTES], "big")
