"""The space that a hijacker drives a victim's head into: a pilot of its own, and a decoder that reads it (FSHA).

Both are made of public things alone, so whoever reads the activations afterwards makes the same pair again.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from veilmesh.attacks.seen.smashed import StageMap
from veilmesh.attacks.smashed.decoders import Decoder, begin, fit, generator_of
from veilmesh.attacks.view import Public
from veilmesh.core import BadInput, generator

__all__ = ["Begins", "Pilot", "make_pilot"]

Begins = Literal["public", "own"]
"""Whether a pilot begins with the parameters that all heads begin with, or with some of its own."""
_RATE = 2e-3  # Adam's, of the pilot and its decoder
_PART = 256
_SOLVED = 2000  # public pictures that the decoder's linear map is solved on


@dataclass(frozen=True, slots=True, eq=False)
class Pilot:
    """`encoder`: pictures (B, C, H, W) to activations at the boundary, as the hijacker wants them; `decoder`: back."""

    encoder: nn.Sequential
    decoder: Decoder

    @torch.no_grad()
    def features(self, pictures: Tensor) -> Tensor:
        """The wanted activations (N, ...) of pictures (N, C, H, W)."""
        return torch.cat([self.encoder(part) for part in torch.split(pictures, _PART)])

    @torch.no_grad()
    def pictures(self, activations: Tensor) -> Tensor:
        """Pictures (N, C, H, W) in [0, 1] behind activations (N, ...) of that space."""
        return torch.cat([self.decoder(part).clamp(0, 1) for part in torch.split(activations, _PART)])


class _Both(nn.Module):
    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, x: Tensor) -> Tensor:
        """Pictures to the same pictures."""
        there: Tensor = self.decoder(self.encoder(x))
        return there


def make_pilot(public: Public, boundary: int, iterations: int, begins: Begins) -> Pilot:
    """An autoencoder of the public pictures whose inside has the shape of the activations at `boundary`.

    The encoder has the architecture of the stages below, which is public: the victim's can then become like it. Always
    the same for the same arguments. Raises BadInput without public pictures.
    """
    if public.pictures is None or not len(public.pictures):
        raise BadInput("A hijacker's pilot is trained on public pictures, and this task has none; take another task.")
    name = hashlib.blake2b(public.initial.tobytes(), digest_size=16).hexdigest()
    draws = generator_of(generator(0, "pilot", boundary, name))
    stages, x = StageMap(public), torch.from_numpy(public.pictures)
    below = nn.Sequential(*(stages.fresh(stage) for stage in range(boundary)))
    if begins == "own":
        _redraw(below, draws)
    decoder = begin(lambda: Decoder(stages.shapes[boundary], public.shape, width=32, blocks=1), draws)
    assert isinstance(decoder, Decoder)
    pilot = Pilot(below.eval(), decoder)
    chosen = x[torch.randperm(len(x), generator=draws)[:_SOLVED]]
    decoder.solve(pilot.features(chosen), chosen, draws)
    fit(_Both(below, decoder), lambda at: (x[at], x[at]), len(x), iterations, draws, rate=_RATE)
    return pilot


@torch.no_grad()
def _redraw(module: nn.Module, draws: torch.Generator) -> None:
    for parameter in module.parameters():
        if parameter.ndim > 1:
            bound = float(parameter[0].numel() ** -0.5)
            parameter.uniform_(-bound, bound, generator=draws)
