"""Read a fished model's updates: what was caught is put as if it had been alone, and then inverted like that.

Wen et al., arXiv 2202.00580; the model is that of payloads/fishing.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from veilmesh.attacks.inversion.analytic import single_input
from veilmesh.attacks.inversion.cosine import CosineInversion
from veilmesh.attacks.inversion.labels import infer_labels
from veilmesh.attacks.network import Network
from veilmesh.attacks.payloads.fishing import as_single, fished_class
from veilmesh.attacks.payloads.places import entrance
from veilmesh.attacks.seen.observed import Observed, observe_updates
from veilmesh.attacks.view import ATTACKS, Guess, Public, Vantage, View
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.peer.machine import PeerId
from veilmesh.peer.transcript import Record
from veilmesh.swarm import messages

__all__ = ["ReadFishing", "alone"]


@ATTACKS.register("fishing")
@dataclass(frozen=True, slots=True)
class ReadFishing:
    """The examples that a fished model caught: in closed form behind a fully connected layer, else by cosine matching.

    Of models that are not fished, and of batches without the class, nothing is guessed.

    Args:
        iterations: steps of an inversion.
        tv: weight of its total variation.
        targets: at most so many rounds of each victim, the earliest exactly known ones first.
        first: the earliest round to look at.
    """

    reconstructs: ClassVar[str] = "pictures"

    iterations: Annotated[int, Field(ge=1)] = 400
    tv: Annotated[float, Field(ge=0)] = 1e-4
    targets: Annotated[int, Field(ge=1)] = 4
    first: Annotated[int, Field(ge=0)] = 0

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`. One number is drawn from `rng`."""
        seed = int(rng.integers(1 << 62))
        network = Network(view.public)
        for observed in observe_updates(view, self.targets, first=self.first):
            labels = infer_labels(network, observed, view.public)  # loads the start
            caught = as_single(observed, view.public, network)
            pictures, loss = np.zeros((0, *network.shape), np.float32), 1.0
            if caught is not None:
                pictures, loss = self._invert(network, caught, view.public, seed)
                target = fished_class(network, observed.start)
                labels = np.concatenate([labels[labels == target], labels[labels != target]])
            details = {"exact": observed.exact, "coverage": observed.coverage, "caught": len(pictures)}
            yield Guess(observed.victim, observed.round, pictures, labels, loss, details, observed.among)

    def _invert(
        self, network: Network, caught: Observed, public: Public, seed: int
    ) -> tuple[NDArray[np.float32], float]:
        place = entrance(network) if caught.samples == 1 else None
        if place is not None:
            weight, bias = place.layer.weight_of(caught.update), place.layer.bias_of(caught.update)
            assert bias is not None  # an entrance has one
            picture = (single_input(weight, bias) - place.offset) / place.factor
            return picture.clip(0, 1).astype(np.float32).reshape(1, *network.shape), 0.0
        engine = CosineInversion(iterations=self.iterations, tv=self.tv, targets=1)
        (guess,) = engine.run(alone(caught, public), np.random.default_rng(seed))
        return guess.pictures, guess.loss


def alone(observed: Observed, public: Public) -> View:
    """A view of a gossip of two, in which one said just this update of `observed.samples` pictures, in one step."""
    me, victim = PeerId("reader"), observed.victim
    rows = {peer: {me: 0.5, victim: 0.5} for peer in (me, victim)}
    body = messages.encode(
        messages.Update(0, observed.samples, table.encode(Dense(), observed.update, np.random.default_rng(0)))
    )
    heard = Record(0.0, me, victim, me, len(body), b"", body)
    changed = replace(
        public, initial=observed.start, batch=observed.samples, local_steps=1, strategy="gossip", options={},
        codec={"name": "dense"}, guards=(), private={}, weights=rows, peers=(me, victim), server=None,
    )  # fmt: skip
    return View(changed, Vantage(frozenset({me})), (heard,))
