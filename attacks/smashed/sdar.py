"""SDAR: a simulator of the head that is held to what real activations look like, and a decoder to what pictures do."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from veilmesh.attacks.smashed.critics import Critic, belief, disbelief
from veilmesh.attacks.smashed.decoders import Decoder, begin, generator_of
from veilmesh.attacks.smashed.known_head import Inversion, Recipe, activations
from veilmesh.attacks.smashed.passage import Passage
from veilmesh.attacks.smashed.passive import Seen, guess_of, rounds_seen
from veilmesh.attacks.smashed.stand_in import Moment, PublicBatches, StandIn, StandIns, Start, moments
from veilmesh.attacks.view import ATTACKS, Guess, View

__all__ = ["Sdar"]


@ATTACKS.register("sdar")
@dataclass(frozen=True, slots=True)
class Sdar:
    """A simulator and a decoder, each with a discriminator (SDAR).

    Zhu, Luo, Wu, Jiang, Xiao, Ooi, NDSS 2025, "Passive inference attacks on split learning via adversarial
    regularization" (arXiv 2310.10483), sections 4 and 5: the simulator is a pseudo-client (`pcat`) whose activations
    are to pass for real ones of the same class, by `simulated` times a discriminator's loss; the decoder's pictures of
    real activations are to pass for public ones, by `decoded` times another's. Where labels are not seen discriminators
    do without, and the stand-in for the data owner's upper stages tells labels. Theirs, for CIFAR-10: `start` "random",
    `rate` 1e-3, `decoder_rate` 5e-4, `simulated` 0.02 to 0.04, `decoded` 1e-5, 20,000 iterations, `reader` "decoder".

    Args:
        iterations: of the inversion at the end, where `reader` is "inversion": of the simulator, as of a known head.
        per_step: how many steps of everything for each that was seen.
        reader: "decoder": the one that was trained all along; "inversion": as pcat does.
        targets: at most so many rounds of each victim, the last ones, or from `first` on.
    """

    reconstructs: ClassVar[str] = "pictures"

    iterations: Annotated[int, Field(ge=0)] = 200
    refinements: Annotated[int, Field(ge=0)] = 40
    per_step: Annotated[int, Field(ge=1)] = 1
    start: Start = "public"
    rate: Annotated[float, Field(gt=0)] | None = None
    decoder_rate: Annotated[float, Field(gt=0)] = 5e-4
    simulated: Annotated[float, Field(ge=0)] = 0.02
    decoded: Annotated[float, Field(ge=0)] = 1e-5
    reader: Literal["decoder", "inversion"] = "inversion"
    targets: Annotated[int, Field(ge=1)] = 2
    first: Annotated[int, Field(ge=0)] | None = None
    width: Annotated[int, Field(ge=1, le=1024)] = 64

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`. Raises BadInput where the adversary plays no stage, or nothing public is labelled."""
        draws = generator_of(rng)
        wanted = {(one.head, one.round): one for one in rounds_seen(view, self.targets, self.first)}
        public, stand_ins = PublicBatches(view, draws), StandIns(view, self.start, self.rate, draws)
        games: dict[int, _Game] = {}
        for moment in moments(view):
            stand_in = stand_ins.of(moment)
            game = games.get(id(stand_in)) or _Game(self, view, moment, stand_in, public, draws)
            games[id(stand_in)] = game
            round_, place = divmod(moment.step, view.public.local_steps)
            if place == view.public.local_steps - 1 and (seen := wanted.get((moment.head, round_))):
                yield self._guess(view, game, moment, seen, draws)
            for _ in range(self.per_step):
                game.play(moment)

    def _guess(self, view: View, game: "_Game", moment: Moment, seen: Seen, draws: torch.Generator) -> Guess:
        labels = game.stand_in.labels(moment, seen.activations)
        if self.reader == "inversion":
            recipe = Recipe(self.iterations, self.refinements, width=self.width)
            passage = Passage.of(view.public, seen.activations)
            pictures, misfits = Inversion(game.stand_in.below, game.public.pictures, passage, recipe, draws)(
                seen.activations
            )
        else:
            pictures = activations(game.decoder, seen.activations).clamp(0, 1)
            apart = (activations(game.stand_in.below, pictures) - seen.activations).square()
            misfits = apart.flatten(1).mean(dim=1)
        return guess_of(seen, pictures, misfits, labels, misfit=float(misfits.median()))


class _Game:
    """The simulator, the decoder and their two opponents."""

    def __init__(
        self,
        options: Sdar,
        view: View,
        moment: Moment,
        stand_in: StandIn,
        public: PublicBatches,
        draws: torch.Generator,
    ) -> None:
        self.stand_in, self.public = stand_in, public
        self._options, self._draws = options, draws
        self._passage = Passage.of(view.public, moment.activations)
        shape, picture, classes = moment.activations.shape[1:], view.public.shape, view.public.classes
        self._of_activations = begin(lambda: Critic(shape, classes, options.width), draws)
        self._of_pictures = begin(lambda: Critic(picture, classes, options.width), draws)
        decoder = begin(lambda: Decoder(shape, picture, options.width), draws)
        assert isinstance(decoder, Decoder)
        with torch.no_grad():
            decoder.solve(activations(stand_in.below, public.pictures), public.pictures, draws)
        self.decoder = decoder
        rate = options.rate or 1e-3  # Adam's, where the simulator's own is for the data owner's optimizer
        self._first = _Learner(self._of_activations, options.simulated * rate)
        self._second = _Learner(self._of_pictures, options.decoded * options.decoder_rate)
        self._third = _Learner(decoder, options.decoder_rate)

    def play(self, moment: Moment) -> None:
        """One step of everybody."""
        options = self._options
        x, y = self.public.like(moment)
        known = None if moment.labels is None else torch.from_numpy(moment.labels.astype(np.int64))
        classes = None if known is None else y
        clean = self.stand_in.below(x)
        passed = self._passage(clean, self._draws) if self._passage.codec is None else clean
        fooled = belief(self._of_activations(passed, classes))
        self.stand_in.learn(self.stand_in.loss(moment, passed, y) + options.simulated * fooled)
        simulated, real = passed.detach(), moment.activations
        self._first.learn(
            belief(self._of_activations(real, known)) + disbelief(self._of_activations(simulated, classes))
        )
        guess = self.decoder(real)
        wrong = functional.mse_loss(self.decoder(simulated), x)
        self._third.learn(wrong + options.decoded * belief(self._of_pictures(guess, known)))
        self._second.learn(belief(self._of_pictures(x, classes)) + disbelief(self._of_pictures(guess.detach(), known)))


class _Learner:
    """One module and its Adam; a rate of 0 leaves it as it is."""

    def __init__(self, module: nn.Module, rate: float) -> None:
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._optimizer = torch.optim.Adam(self._parameters, rate, eps=1e-7) if rate else None

    def learn(self, loss: Tensor) -> None:
        if self._optimizer is None:
            return
        gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient  # None: without classes nobody asks for their vectors
        self._optimizer.step()
