"""Labels of examples, from the gradients that come down through a cut: they never left their owner, and yet they did.

In U-shaped split learning, and where one party has pictures and another the labels, what comes back for each example is
J^T (p - y), a function of its label. Who stands there sees activations, gradients, and nothing else.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from veilmesh.attacks.seen.smashed import Smashed, boundaries, observe_smashed
from veilmesh.attacks.smashed.label_cues import by_clone, by_cosine, by_norm, by_sign, flat
from veilmesh.attacks.smashed.label_evidence import label_guards, log_likelihood, normalised
from veilmesh.attacks.smashed.last_stage import Upper
from veilmesh.attacks.smashed.repeats import Repeats
from veilmesh.attacks.view import ATTACKS, Guess, Public, View
from veilmesh.core import BadInput
from veilmesh.peer.machine import PeerId

__all__ = ["SplitLabels", "guesses_of", "without_labels"]

Floats = NDArray[np.float64]


@ATTACKS.register("split-labels")
@dataclass(frozen=True, slots=True)
class SplitLabels:
    """Which label each example has, from its gradient at a cut, where labels stay with their owner.

    `replay` (ours): of the stages above the cut the initial parameters are public. For every label it is known what
    gradient would come back (`last_stage.py`); the label that fits tells which step was taken, and so what the
    parameters are then. Behind a guard, labels are a distribution, by what is known of the guard's noise
    (`label_evidence.py`), and stages are trained on that. Behind batch normalisation a batch's labels are searched for
    together, and guards are taken for noise of unknown size. The others are published, and see `label_cues.py`.

    Guesses carry labels (B,) in the order in which examples were sent, and no pictures; their loss is how often the
    attacker takes itself to be wrong, or for the published methods 1 - the mean lead of the highest score.

    Args:
        method: how.
        boundary: the entrance of the stage above; None: the highest that is seen, nearest to the labels.
        known: of `cosine`, public pictures with labels, for each class.
        repeats: of `replay`, whether what is found of an example adds up over epochs, in which it is known again by its
            activations.
        ratio: of `repeats`, how much nearer than the second nearest an example must be; above 1 the nearest always is.
        targets: at most so many rounds of each victim, the latest.
    """

    reconstructs: ClassVar[str] = "labels"
    ordered: ClassVar[bool] = True

    method: Literal["replay", "sign", "norm", "cosine", "clone"] = "replay"
    boundary: Annotated[int, Field(ge=1)] | None = None
    known: Annotated[int, Field(ge=1)] = 8
    repeats: bool = True
    ratio: Annotated[float, Field(gt=0)] = 0.9
    targets: Annotated[int, Field(ge=1)] = 1_000_000

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`; draws from `rng` for `clone` only. Raises BadInput where labels are known to the adversary
        anyway, or no gradients are seen."""
        below, seen = without_labels(view, self.boundary)
        for victim, mine in groupby(seen, key=lambda one: one.head):
            group = list(mine)
            scores = self._scores(view.public, group, [one for one in below if one.head == victim], rng)
            yield from guesses_of(view.public, victim, group, scores, self.targets)

    def _scores(
        self, public: Public, seen: Sequence[Smashed], below: Sequence[Smashed], rng: np.random.Generator
    ) -> list[Floats]:
        at = seen[0].boundary
        match self.method:
            case "sign":
                return by_sign(public, at, seen)
            case "norm":
                return by_norm(public, at, seen)
            case "cosine":
                return by_cosine(public, at, seen, self.known)
            case "clone":
                return by_clone(public, at, seen, rng)
        return self._replay(public, seen, below)

    def _replay(self, public: Public, seen: Sequence[Smashed], below: Sequence[Smashed]) -> list[Floats]:
        """Log-probabilities (B, K) for each micro-batch."""
        upper, guards = Upper(public, seen[0].boundary), label_guards(public.split["guards"])
        met = Repeats(self.ratio if self.repeats else 0.0)
        rows = {(one.step, one.micro): one.activations for one in below}
        kept: list[tuple[Floats, NDArray[np.int64]]] = []
        for one in seen:
            gradients, known = flat(one), upper.candidates(one)
            which = met.find(rows[one.step, one.micro], _epoch(public, one), public.classes)
            prior = normalised(known.log_p + np.stack([met.evidence[i] for i in which]))
            found = upper.joint(one, prior) if upper.coupled else log_likelihood(gradients, known, guards, prior)
            for i, evidence in zip(which, found - found.max(axis=1, keepdims=True), strict=True):
                met.evidence[i] = met.evidence[i] + evidence
            upper.learn(one, np.exp(normalised(prior + found)))
            kept.append((known.log_p, which))
        return [normalised(log_p + np.stack([met.evidence[i] for i in which])) for log_p, which in kept]


def without_labels(view: View, boundary: int | None) -> tuple[list[Smashed], list[Smashed]]:
    """What was seen at the lowest boundary, and at `boundary` (None: the highest), of examples whose labels the
    adversary does not have: its own too, where somebody else holds those. Raises BadInput where it has them."""
    seen = boundaries(view)
    below = observe_smashed(view, own=True)
    at = observe_smashed(view, seen[-1] if boundary is None else boundary, own=True)
    blind = [one for one in at if one.labels is None]
    if not blind:
        raise BadInput(
            "No examples are seen here whose labels the adversary does not have; take a U-shaped run's body."
        )
    return below, blind


def guesses_of(
    public: Public, victim: PeerId, seen: Sequence[Smashed], scores: Sequence[Floats], targets: int
) -> list[Guess]:
    """The guesses for every round of `victim` that was seen whole, from scores (B, K) of its micro-batches in order."""
    rounds: dict[int, list[int]] = {}
    for at, one in enumerate(seen):
        rounds.setdefault(one.step // public.local_steps, []).append(at)
    nothing = np.zeros((0, *public.shape), np.float32)
    found = []
    for round_, places in sorted(rounds.items())[-targets:]:
        steps = sorted({seen[at].step for at in places})
        if len(steps) < public.local_steps or len(places) < sum(seen[at].of for at in places if not seen[at].micro):
            continue  # a step of it was not seen, or not to its end
        table = np.concatenate([scores[at] for at in places])
        sizes = [sum(len(scores[at]) for at in places if seen[at].step == step) for step in steps]
        details = {"batches": sizes, "scores": _lead(table)}
        found.append(Guess(victim, round_, nothing, table.argmax(axis=1).astype(np.int64), _doubt(table), details))
    return found


def _lead(table: Floats) -> Floats:
    """How far the second class is ahead of the first, of two: (B,); of more there is no such number."""
    return np.asarray(table[:, 1] - table[:, 0]) if table.shape[1] == 2 else np.zeros(0)


def _doubt(table: Floats) -> float:
    logs = bool((table <= 1e-9).all() and (np.abs(np.exp(table).sum(axis=1) - 1) < 1e-6).all())
    if logs:
        return float(1 - np.exp(table.max(axis=1)).mean())
    top = np.sort(table, axis=1)
    return float(1 - (top[:, -1] - top[:, -2]).mean())


def _epoch(public: Public, one: Smashed) -> int:
    heads = [route[0] for route in public.split["route"]]
    examples = int(public.split["examples"][heads.index(str(one.head))])
    return one.step // (examples // min(public.batch, examples))
