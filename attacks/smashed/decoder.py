"""Decoder inversion: a network that is trained on public pictures reads what heads say of private ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field
from torch import nn

from veilmesh.attacks.seen.own_stage import own_stages
from veilmesh.attacks.seen.smashed import StageMap
from veilmesh.attacks.smashed.decoders import generator_of
from veilmesh.attacks.smashed.known_head import Inversion, Recipe
from veilmesh.attacks.smashed.passage import Passage
from veilmesh.attacks.smashed.passive import Seen, guess_of, public_pictures, rounds_seen
from veilmesh.attacks.smashed.told_heads import HeadsSeen
from veilmesh.attacks.view import ATTACKS, Guess, View

__all__ = ["DecoderInversion"]


@ATTACKS.register("decoder-inversion")
@dataclass(frozen=True, slots=True)
class DecoderInversion:
    """A decoder of smashed data through the head that the attacker knows, and then the head itself, run backwards.

    Known is the head as it began, which is public, and drifts away as it is trained; and where a controlled peer was
    given a head, by averaging or handed on, the last one that it had before (`attacks/smashed/told_heads.py`). Guards
    and codecs are public, and the decoder is trained on what they leave. How both work is in
    `attacks/smashed/known_head.py`; a plain decoder is He et al., ACSAC 2019, section 4.

    Args:
        iterations: of the decoder's training, each on `batch` public pictures.
        refinements: steps of the descent through the head; 0: the decoder alone.
        turns: of pictures and a clone of the head, where what is seen does not fit the head that is known.
        targets: at most so many rounds of each victim, from `first` on.
        pictures: at most so many public pictures to learn from.
    """

    reconstructs: ClassVar[str] = "pictures"

    iterations: Annotated[int, Field(ge=0)] = 200
    refinements: Annotated[int, Field(ge=0)] = 40
    turns: Annotated[int, Field(ge=0)] = 40
    targets: Annotated[int, Field(ge=1)] = 4
    first: Annotated[int, Field(ge=0)] = 0
    pictures: Annotated[int, Field(ge=8)] = 3000
    batch: Annotated[int, Field(ge=1)] = 64
    rate: Annotated[float, Field(gt=0)] = 1e-3
    width: Annotated[int, Field(ge=1, le=1024)] = 64
    blocks: Annotated[int, Field(ge=0, le=16)] = 2

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`. Raises BadInput where no cut is seen, or there are no public pictures."""
        stages = StageMap(view.public)
        seen = rounds_seen(view, self.targets, self.first)
        pictures = public_pictures(view)[0][: self.pictures]
        heads = HeadsSeen(view, stages)
        low, draws = own_stages(view).low, generator_of(rng)
        recipe = Recipe(self.iterations, self.refinements, self.batch, self.rate, self.width, self.blocks, self.turns)
        readers: dict[object, Inversion] = {}
        for one in sorted(seen, key=lambda s: (s.round, s.head)):
            known, parameters = heads.before(one.head, one.round)
            if known not in readers:
                readers.clear()  # one at a time: they are large
                head = _below(stages, low, parameters)
                readers[known] = Inversion(head, pictures, Passage.of(view.public, one.activations), recipe, draws)
            yield _read(readers[known], one, known)


def _below(stages: StageMap, low: int, head: np.ndarray) -> nn.Module:
    """Everything below the attacker: the head, and stages of others as they began."""
    modules = [stages.load(0, head), *(stages.load(stage, stages.initial(stage)) for stage in range(1, low))]
    whole = nn.Sequential(*modules)
    for parameter in whole.parameters():
        parameter.requires_grad_(False)
    return whole


def _read(reader: Inversion, seen: Seen, known: object) -> Guess:
    pictures, misfits = reader(seen.activations)
    details = {"head": str(known), "misfit": float(misfits.median()), "error_on_public": reader.error}
    return guess_of(seen, pictures, misfits, None, **details)
