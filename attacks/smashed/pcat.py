"""PCAT: a pseudo-client learns from public data what the adversary's own stages understand, and is then inverted."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from veilmesh.attacks.smashed.decoders import generator_of
from veilmesh.attacks.smashed.known_head import Inversion, Recipe
from veilmesh.attacks.smashed.passage import Passage
from veilmesh.attacks.smashed.passive import guess_of, rounds_seen
from veilmesh.attacks.smashed.stand_in import Moment, PublicBatches, StandIn, StandIns, Start, moments
from veilmesh.attacks.view import ATTACKS, Guess, View

__all__ = ["Pcat"]


@ATTACKS.register("pcat")
@dataclass(frozen=True, slots=True)
class Pcat:
    """A pseudo-client trained on public data against the evolving server, and a decoder of it.

    Gao and Zhang, USENIX Security 2023, "PCAT: functionality and data stealing from split learning by pseudo-client
    attack", section 4: at every step the pseudo-client learns from public pictures of the classes that were seen, by
    the loss that the server's own model of that step gives it. Nothing is changed, so nothing can be noticed. Where
    outputs stay with the data owner (U-shaped), it stands in for those stages as well, and tells labels.

    Other than theirs: architecture and first parameters are public here, and `start` "random" leaves the latter out;
    it trains as the data owner does, with `rate` for Adam instead; and it is inverted as decoder-inversion inverts a
    known head, when its round comes.

    Args:
        iterations, refinements, width: of the inversion.
        per_step: how many steps the pseudo-client does for each that was seen.
        targets: at most so many rounds of each victim, the last ones, or from `first` on.
    """

    reconstructs: ClassVar[str] = "pictures"

    iterations: Annotated[int, Field(ge=0)] = 200
    refinements: Annotated[int, Field(ge=0)] = 40
    per_step: Annotated[int, Field(ge=1)] = 1
    start: Start = "public"
    rate: Annotated[float, Field(gt=0)] | None = None
    targets: Annotated[int, Field(ge=1)] = 2
    first: Annotated[int, Field(ge=0)] | None = None
    width: Annotated[int, Field(ge=1, le=1024)] = 64

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`. Raises BadInput where the adversary plays no stage, or nothing public is labelled."""
        draws = generator_of(rng)
        wanted = {(one.head, one.round): one for one in rounds_seen(view, self.targets, self.first)}
        public, stand_ins = PublicBatches(view, draws), StandIns(view, self.start, self.rate, draws)
        recipe = Recipe(self.iterations, self.refinements, width=self.width)
        for moment in moments(view):
            stand_in = stand_ins.of(moment)
            round_, place = divmod(moment.step, view.public.local_steps)
            if place == view.public.local_steps - 1 and (seen := wanted.get((moment.head, round_))):
                passage = Passage.of(view.public, seen.activations)
                reader = Inversion(stand_in.below, public.pictures, passage, recipe, draws)
                pictures, misfits = reader(seen.activations)
                labels = stand_in.labels(moment, seen.activations)
                yield guess_of(seen, pictures, misfits, labels, misfit=float(misfits.median()))
            for _ in range(self.per_step):
                _learn(stand_in, moment, public)


def _learn(stand_in: StandIn, moment: Moment, public: PublicBatches) -> None:
    pictures, labels = public.like(moment)
    stand_in.learn(stand_in.loss(moment, stand_in.below(pictures), labels))
