"""Labels by completing a model: the attacker has a trained head, and trains what is missing on a few labels of its own.

Fu et al., USENIX Security 2022, "Label inference attacks against vertical federated learning", section 4.2: in vertical
federated learning the party without labels trains a bottom model by what the label owner's gradients say, and in the
end it has a good feature extractor. A small top on it, trained on a few labelled examples and on many without labels,
names every example of its own, and new ones.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from veilmesh.attacks.seen.own_stage import settings_of
from veilmesh.attacks.seen.smashed import Smashed, StageMap
from veilmesh.attacks.smashed.decoders import begin, generator_of
from veilmesh.attacks.smashed.labels import guesses_of, without_labels
from veilmesh.attacks.view import ATTACKS, Guess, Public, View
from veilmesh.core import BadInput
from veilmesh.peer.machine import PeerId
from veilmesh.split.part import Part

__all__ = ["ModelCompletion"]

Pictures = NDArray[np.float32]

_BATCH = 64
_SHARPER = 0.8  # temperature of guessed labels, theirs


@ATTACKS.register("model-completion")
@dataclass(frozen=True, slots=True)
class ModelCompletion:
    """What a data owner's head was taught tells its labels, with a few labelled pictures (Fu et al. 2022, passive).

    For a data owner that has no labels of its own examples (vertical split learning: `labels = "held"` at the tail,
    vantage that data owner). Its head is replayed from what it was sent; a top of two layers is trained on `known`
    public pictures a class and their labels, and on what it says of the examples itself, sharpened, mixed with the
    former (in place of their MixMatch: mixup and sharpening without augmentation). Guesses carry labels in the order
    in which examples were sent, and no pictures; their loss is how often the attacker takes itself to be wrong.

    Args:
        known: labelled pictures for each class; public ones, so not of the run itself.
        iterations: steps of Adam.
        width: units of the top's hidden layer.
        rate: of Adam; theirs.
        unlabelled: the weight of what is said of examples without labels, once half of the steps are done.
        targets: at most so many rounds of each victim, the latest.
    """

    reconstructs: ClassVar[str] = "labels"
    ordered: ClassVar[bool] = True

    known: Annotated[int, Field(ge=1)] = 4
    iterations: Annotated[int, Field(ge=1)] = 400
    width: Annotated[int, Field(ge=1)] = 64
    rate: Annotated[float, Field(gt=0)] = 2e-3
    unlabelled: Annotated[float, Field(ge=0)] = 1.0
    targets: Annotated[int, Field(ge=1)] = 1_000_000

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`. Raises BadInput where the adversary has no head, or has its labels."""
        below, seen = without_labels(view, None)
        public = view.public
        for victim, mine in groupby(seen, key=lambda one: one.head):
            if victim not in view.vantage.controls or view.own is None:
                raise BadInput(
                    "Model completion needs a head of the adversary's own; take the vantage of a data owner."
                )
            group = list(mine)
            pictures = _pictures(view, victim, group)
            head = _trained_head(public, [one for one in below if one.head == victim], pictures)
            features = torch.cat([_features(head, pictures[one.step, one.micro]) for one in group])
            x, y = self._labelled(public, rng)
            top = self._top(_features(head, x), torch.from_numpy(y), features, public.classes, rng)
            with torch.no_grad():
                logs = functional.log_softmax(top(features).double(), dim=1)
            scores = [part.numpy() for part in torch.split(logs, [len(one.activations) for one in group])]
            yield from guesses_of(public, victim, group, scores, self.targets)

    def _labelled(self, public: Public, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        if public.pictures is None or public.picture_labels is None:
            raise BadInput("Model completion needs public pictures with labels, and this task has none.")
        order = rng.permutation(len(public.picture_labels))
        shuffled = public.picture_labels[order]
        chosen = np.concatenate([order[shuffled == k][: self.known] for k in range(public.classes)])
        return public.pictures[chosen], public.picture_labels[chosen]

    def _top(self, known: Tensor, labels: Tensor, others: Tensor, classes: int, rng: np.random.Generator) -> nn.Module:
        """A top (F -> K) trained on `known` (N, F), their labels (N,), and `others` (M, F)."""
        draws = generator_of(rng)
        inputs = known.shape[1]
        top = begin(
            lambda: nn.Sequential(nn.Linear(inputs, self.width), nn.ReLU(), nn.Linear(self.width, classes)), draws
        )
        adam = torch.optim.Adam(top.parameters(), lr=self.rate)
        truth = functional.one_hot(labels, classes).float()
        for step in range(self.iterations):
            weight = self.unlabelled * min(1.0, 2 * step / self.iterations)
            a, b = (torch.randint(len(x), (_BATCH,), generator=draws) for x in (known, others))
            guessed = _sharpened(top(others[b]).detach())
            share = torch.rand((_BATCH, 1), generator=draws) / 2 + 0.5  # of the one that is taught
            x, y = _mixed(known[a], truth[a], others[b], guessed, share)
            u, v = _mixed(others[b], guessed, known[a], truth[a], share)
            loss = functional.cross_entropy(top(x), y) + weight * (top(u).softmax(1) - v).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        return top


def _pictures(view: View, victim: PeerId, seen: Sequence[Smashed]) -> dict[tuple[int, int], Pictures]:
    """The adversary's own pictures, by step and micro-batch; not their labels, which it does not have."""
    assert view.own is not None  # the caller has looked
    found: dict[tuple[int, int], Pictures] = {}
    rounds: dict[int, list[Pictures]] = {}
    steps = view.public.local_steps
    for one in seen:
        round_, step = divmod(one.step, steps)
        if round_ not in rounds:
            rounds[round_] = np.split(view.own(victim, round_)[0], steps)
        found[one.step, one.micro] = np.array_split(rounds[round_][step], one.of)[one.micro]
    return found


def _trained_head(public: Public, seen: Sequence[Smashed], pictures: Mapping[tuple[int, int], Pictures]) -> nn.Module:
    """The data owner's head as it is in the end, trained again by what came back to it; guards are left out."""
    stages = StageMap(public)
    part = Part(stages.load(0, stages.initial(0)), settings_of(public))
    for one in seen:
        if one.gradients is None or (one.step, one.micro) not in pictures:
            continue
        place = one.step, 0, one.micro
        part.forward(torch.from_numpy(np.array(pictures[one.step, one.micro])), place, learns_input=False)
        part.backward(place, torch.from_numpy(np.array(one.gradients)))
        part.step(one.step, 0, one.of)
    return part.module.eval()


def _features(head: nn.Module, pictures: Pictures) -> Tensor:
    """What the head says of pictures, (N, F)."""
    with torch.no_grad():
        out: Tensor = head(torch.from_numpy(np.array(pictures)))
    return out.flatten(1)


def _sharpened(logits: Tensor) -> Tensor:
    return functional.softmax(logits / _SHARPER, dim=1)


def _mixed(x: Tensor, y: Tensor, other_x: Tensor, other_y: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    return share * x + (1 - share) * other_x, share * y + (1 - share) * other_y
