"""Pictures back from activations of a head that the attacker has: a decoder, and then the head itself.

The decoder begins as a ridge regression from the neighbourhood of every place to its pixels, which has a closed form,
and a residual network learns what that leaves. Its pictures are then moved until the head says of them what was seen:
the likelihood of the activations under the noise of their passage, times a Gaussian around the decoder's picture, as
wide as the decoder's own errors on public pictures that it was not trained on.

Source: decoders as in He et al., ACSAC 2019 ("Model inversion attacks against collaborative inference"), section 4,
which has the white-box descent too, from a grey picture; both in a row, and the closed form, are ours.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from veilmesh.attacks.smashed.decoders import Decoder, begin, cosine, fit, generator_of
from veilmesh.attacks.smashed.passage import Passage
from veilmesh.core import BadInput

__all__ = ["Inversion", "Recipe", "activations", "invert"]

_CHUNK = 64
_FEWEST = 8
_FLOORS = (1e-2, 1e-1)  # of the activations' variance: what is not asked of a fit; public pictures say which
_ANOTHER = 4.0  # so much worse on what was seen than on public pictures: it is another head's
_STEP = 0.02  # of Adam, in pixels
_CLONE = 1e-3  # of Adam, of a clone's parameters
_PICTURE_STEPS = 5  # for each of a clone's
_SMOOTH = 0.01


@dataclass(frozen=True, slots=True)
class Recipe:
    """`iterations` of the decoder's network, `refinements` of the pictures, and what the decoder is (`Decoder`).
    `turns`: where what is seen does not fit the head, so often pictures and a clone of it are moved in turns."""

    iterations: int = 200
    refinements: int = 40
    batch: int = 64
    rate: float = 1e-3
    width: int = 64
    blocks: int = 2
    turns: int = 0


class Inversion:
    """What an attacker has who knows `head`, and public pictures (N, C, H, W): what it reads activations by.

    `passage`: what is made of activations before they are seen. Raises BadInput for fewer than 8 pictures.
    """

    def __init__(self, head: nn.Module, pictures: Tensor, passage: Passage, recipe: Recipe, draws: torch.Generator):
        if len(pictures) < _FEWEST:
            raise BadInput(f"A decoder learns from {_FEWEST} public pictures or more; this task has {len(pictures)}.")
        self._head, self._passage, self._recipe, self._draws = head, passage, recipe, draws
        held = max(2, min(16, len(pictures) // 10))
        x, kept = pictures[held:], pictures[:held]
        clean = activations(head, x)
        self._variance = float(clean.var(dim=0).mean()) + 1e-12
        self.decoder = self._learned(clean, x)
        self._noise = self._loss_of(clean)
        self._judge(kept)

    def _learned(self, clean: Tensor, x: Tensor) -> Decoder:
        recipe, passage = self._recipe, self._passage
        shape = clean.shape[1:], (int(x.shape[1]), int(x.shape[2]), int(x.shape[3]))
        module = begin(lambda: Decoder(*shape, recipe.width, recipe.blocks), self._draws)
        assert isinstance(module, Decoder)
        module.solve(self._passed(clean), x, self._draws)
        for parameter in module.linear.parameters():  # it is the best of its kind already
            parameter.requires_grad_(False)

        def pairs(chosen: Tensor) -> tuple[Tensor, Tensor]:
            return passage(clean[chosen], self._draws), x[chosen]

        fit(module, pairs, len(x), recipe.iterations, self._draws, recipe.batch, recipe.rate)
        return module

    def _passed(self, clean: Tensor) -> Tensor:
        """As they would be seen, a micro-batch at a time."""
        if self._passage.clear:
            return clean
        return torch.cat([self._passage(part, self._draws) for part in torch.split(clean, _CHUNK)])

    def _loss_of(self, clean: Tensor) -> float:
        """The mean square of what the passage does to what it lets through."""
        some = clean[:_CHUNK]
        seen = self._passage(some, self._draws)
        weight = self._said(seen)
        return float(((seen - some).square() * weight).sum() / weight.sum().clamp_min(1))

    def _judge(self, kept: Tensor) -> None:
        """How good this is, on public pictures that nothing was trained on."""
        seen = self._passed(activations(self._head, kept))
        guess = self._decoded(seen)
        self._misfit = float(self.misfit(guess, seen).median())
        self._width = float((guess - kept).square().mean()) + 1e-6
        self.error = self._width
        self._floor: float | None = None  # None: nothing is refined
        for floor in _FLOORS if self._recipe.refinements else ():
            refined = float((self._refined(guess, seen, floor) - kept).square().mean())
            if refined < self.error:
                self._floor, self.error = floor, refined

    @torch.no_grad()
    def misfit(self, pictures: Tensor, z: Tensor) -> Tensor:
        """How far the head's word on pictures (B, C, H, W) is from `z` (B, ...): (B,), 1 where it says nothing."""
        apart = (activations(self._head, pictures) - z).square() * self._said(z)
        return apart.flatten(1).mean(dim=1) / self._variance

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (B, C, H, W) behind `z` (B, ...), and their misfits (B,). Moved are those whose misfit is such as
        this head's are: what comes of another head is not to be explained by this one."""
        guess = self._decoded(z)
        before = self.misfit(guess, z)
        if float(before.median()) > _ANOTHER * self._misfit:
            return self._in_turns(guess, z) if self._recipe.turns else (guess, before)
        if self._floor is None:
            return guess, before
        refined = self._refined(guess, z, self._floor)
        after = self.misfit(refined, z)
        better = after < before
        return torch.where(better[:, None, None, None], refined, guess), torch.where(better, after, before)

    @torch.no_grad()
    def _decoded(self, z: Tensor) -> Tensor:
        return torch.cat([self.decoder(part).clamp(0, 1) for part in torch.split(z, _CHUNK)])

    def _refined(self, guess: Tensor, z: Tensor, floor: float) -> Tensor:
        pairs = zip(torch.split(guess, _CHUNK), torch.split(z, _CHUNK), strict=True)
        return torch.cat([self._descend(x, y, floor) for x, y in pairs])

    def _descend(self, start: Tensor, z: Tensor, floor: float) -> Tensor:
        x = start.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([x], _STEP, betas=(0.9, 0.99))
        weight = self._said(z) / ((self._noise + floor * self._variance) * start[0].numel())
        for step in range(self._recipe.refinements):
            for group in optimizer.param_groups:
                group["lr"] = _STEP * cosine(step, self._recipe.refinements)
            said = ((self._head(x) - z).square() * weight).sum()
            near = (x - start).square().sum() / (self._width * start[0].numel())
            (x.grad,) = torch.autograd.grad(said + near, [x])
            optimizer.step()
            with torch.no_grad():
                x.clamp_(0, 1)
        return x.detach()

    def _in_turns(self, start: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures and their misfits by a clone of the head that is fitted to what was seen: UnSplit (see `unsplit`),
        begun at the decoder's pictures and at the head that is known."""
        clone, weight = copy.deepcopy(self._head), self._said(z) / self._variance
        learned = [p.requires_grad_(True) for p in clone.parameters()]
        x = start.clone().requires_grad_(True)
        mine, its = torch.optim.Adam([x], _STEP, betas=(0.9, 0.99)), torch.optim.Adam(learned, _CLONE)
        for _ in range(self._recipe.turns):
            for _ in range(_PICTURE_STEPS):
                rough = sum(x.diff(dim=axis).square().mean() for axis in (2, 3))
                loss = ((clone(x) - z).square() * weight).mean() + _SMOOTH * rough
                (x.grad,) = torch.autograd.grad(loss, [x])
                mine.step()
                with torch.no_grad():
                    x.clamp_(0, 1)
            loss = ((clone(x.detach()) - z).square() * weight).mean()
            for parameter, gradient in zip(learned, torch.autograd.grad(loss, learned), strict=True):
                parameter.grad = gradient
            its.step()
        misfits = ((activations(clone, x.detach()) - z).square() * weight).flatten(1).mean(dim=1)
        return x.detach(), misfits

    def _said(self, z: Tensor) -> Tensor:
        """1 for the coordinates that were said."""
        return (z != 0).float() if self._passage.silent else torch.ones_like(z)


@torch.no_grad()
def activations(head: nn.Module, pictures: Tensor) -> Tensor:
    """What `head` says (B, ...) of pictures (B, C, H, W)."""
    return torch.cat([head(part) for part in torch.split(pictures, _CHUNK)])


def invert(
    head: nn.Module, z: NDArray[np.float32], pictures: NDArray[np.float32], recipe: Recipe, rng: np.random.Generator
) -> NDArray[np.float32]:
    """The pictures (B, C, H, W) in [0, 1] behind clear activations `z` (B, ...) of a known `head`, by an attacker who
    has public `pictures` (N, C, H, W)."""
    found = Inversion(head, torch.from_numpy(pictures), Passage(), recipe, generator_of(rng))
    result: NDArray[np.float32] = found(torch.from_numpy(z))[0].numpy()
    return result
