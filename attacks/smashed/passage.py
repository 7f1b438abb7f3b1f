"""What public guards and codecs make of activations on their way, for an attacker who does the same to its own.

A decoder that is trained on what it will see is the adaptive attack: on noised activations under noise, on rounded ones
behind a codec that rounds, on ones with channels missing where channels are dropped.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from veilmesh.attacks.view import Public
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import CODECS, Codec

__all__ = ["Passage"]


@dataclass(frozen=True, eq=False)
class Passage:
    """The way of activations to whoever sees them.

    `guards`: those at work on the head's activations, as they are announced. `codec`: None where it loses nothing.
    `masks` (N, C): which channels were not zero in what was seen, where a guard drops some.
    """

    guards: tuple[Mapping[str, Any], ...] = ()
    codec: Codec | None = None
    masks: Tensor | None = None

    @classmethod
    def of(cls, public: Public, seen: Tensor) -> "Passage":
        """The passage of `public`'s split, where `seen` (N, ...) came through it."""
        split = public.split
        about = dict(split.get("codec") or {"name": "dense"})
        codec: Codec = CODECS.build(str(about.pop("name")), about)
        guards = tuple(split.get("guards", ()))
        drops = any(guard["name"] == "disco" for guard in guards)
        masks = (seen.flatten(2) != 0).any(dim=2) if drops and seen.ndim > 2 else (seen != 0) if drops else None
        return cls(guards, None if codec.lossless else codec, masks)

    @property
    def clear(self) -> bool:
        """Whether what arrives is what left."""
        return self.codec is None and not any(guard["name"] in _CHANGES for guard in self.guards)

    @property
    def silent(self) -> bool:
        """Whether a zero may stand for something that was not said."""
        return self.masks is not None or (self.codec is not None and type(self.codec).__name__ in _SPARSE)

    def __call__(self, z: Tensor, draws: torch.Generator) -> Tensor:
        """As `decoders.Smashing`."""
        for guard in self.guards:
            z = self._guarded(z, guard, draws)
        if self.codec is None:
            return z
        rng = np.random.default_rng(int(torch.randint(1 << 62, (1,), generator=draws)))
        flat = z.detach().contiguous().numpy().reshape(-1)
        return torch.from_numpy(np.array(table.decode(table.encode(self.codec, flat, rng), flat.size).values)).view_as(
            z
        )

    def _guarded(self, z: Tensor, guard: Mapping[str, Any], draws: torch.Generator) -> Tensor:
        match guard["name"]:
            case "laplace":
                return _bounded(z, guard) + float(guard.get("scale", 0.5)) * _laplace(z, draws)
            case "gaussian":
                return _bounded(z, guard) + float(guard.get("std", 0.5)) * torch.randn(z.shape, generator=draws)
            case "shredder":  # where its noise begins; where it goes nobody else knows
                unit = float(z.square().mean().sqrt())
                return z + unit * float(guard.get("scale", 0.5)) * _laplace(z, draws)
            case "disco" if self.masks is not None:
                chosen = self.masks[torch.randint(len(self.masks), (len(z),), generator=draws)]
                return z * chosen.reshape(*chosen.shape, *[1] * (z.ndim - 2))
        return z


_CHANGES = ("laplace", "gaussian", "shredder", "disco")
_SPARSE = ("TopK", "TopKPacked", "RandK")


def _bounded(z: Tensor, guard: Mapping[str, Any]) -> Tensor:
    bound = guard.get("bound")
    return z if bound is None else z.clamp(-float(bound), float(bound))


def _laplace(like: Tensor, draws: torch.Generator) -> Tensor:
    """Of location 0 and scale 1: the difference of two exponentials."""
    one, other = (torch.empty(like.shape).exponential_(generator=draws) for _ in range(2))
    return one - other
