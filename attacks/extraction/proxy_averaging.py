"""Undoing masked and rounded proxies (FedQSN, arXiv 2508.18911) by averaging over rounds and colluders.

The mask of a round leaves out other columns every time, and rounding errs elsewhere whenever it does; so the mean of
what was said of a column, over rounds and over the peers that pool what they got, is the column. What is hidden for
good is in no proxy. It can still be guessed: where it began is public, and where the server lets its clients' updates
count in columns they do not see (the paper's averaging), they know what they taught it; among peers that train one
model, the others' columns are near.

What the adversary has to choose, it chooses by what it can see: how far back to look, by how well the mean of earlier
rounds says what the last one says; which guess to make of what is hidden, by the loss on the public pictures.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch.nn import functional

from veilmesh.attacks.extraction.base import EXTRACTIONS, Extracted
from veilmesh.attacks.network import Network
from veilmesh.attacks.seen.proxies import Proxy, proxies_seen, taught
from veilmesh.attacks.view import View
from veilmesh.core import BadInput
from veilmesh.crypto.codecs.base import Mask, Vector
from veilmesh.swarm.sharing.columns import Columns
from veilmesh.tasks.models.build import layout

__all__ = ["ProxyAveraging"]

_Rounds = Annotated[int, Field(ge=1)]


@EXTRACTIONS.register("proxy-averaging")
@dataclass(frozen=True, slots=True)
class ProxyAveraging:
    """The mean of every column over the latest proxies that show it; what no proxy shows is guessed.

    Args:
        windows: over how many of the latest rounds it may average.
        older: where a column was not shown in that window, take what was said of it before.
        guess: what to put into the columns that were never shown: whatever names the public pictures best, or the
            values that are the "likeliest", or "nothing".
    """

    extracts: ClassVar[str] = "model"
    sharings: ClassVar[tuple[str, ...]] = ("served-proxy", "masked-proxy")

    windows: tuple[_Rounds, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 32)
    older: bool = True
    guess: Literal["best", "likeliest", "nothing"] = "best"

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Extracted]:
        """As `Extraction.run`. Draws nothing from `rng`."""
        if view.public.sharing["name"] not in self.sharings:
            raise BadInput(f"There are no proxies to average in this run; share {' or '.join(self.sharings)}.")
        network = Network(view.public)
        columns = Columns.in_layout(tuple(layout(network.module)))
        proxies = proxies_seen(view, columns)
        for victim in sorted({one.victim for one in proxies} - view.vantage.controls):
            own = [one for one in proxies if one.victim == victim]
            others = [one for one in proxies if one.victim != victim]
            yield self._extracted(view, network, columns, own, others)

    def _extracted(
        self, view: View, network: Network, columns: Columns, own: Sequence[Proxy], others: Sequence[Proxy]
    ) -> Extracted:
        end = own[-1].round
        window = self._window(columns, own)
        latest = [one for one in own if one.round > end - window]
        mean, seen = _mean(columns, latest)
        ever = columns.spread(np.any([one.shown for one in own], axis=0))
        parameters = np.where(seen, mean, _mean(columns, own if self.older else [])[0])
        if self.guess != "nothing":
            guesses = [np.where(ever, parameters, guess) for guess in _guesses(view, columns, others, end)]
            some = [*guesses, parameters] if self.guess == "best" else guesses[:1]
            parameters = min(some, key=lambda x: _loss(view, network, x))
        last = own[-1].values * columns.scale(own[-1].shown)
        return Extracted(own[-1].victim, end, parameters, ever, last, len(latest), window)

    def _window(self, columns: Columns, own: Sequence[Proxy]) -> int:
        """How many rounds back: by the error of what the rounds before the last say of the last."""
        end = own[-1].round
        target, shown = _mean(columns, [one for one in own if one.round == end])
        before = [one for one in own if one.round < end]
        errors = []
        for window in self.windows:
            mean, seen = _mean(columns, [one for one in before if one.round >= end - window])
            both = seen & shown & (columns.of >= 0)
            # what a short window has not seen it does not know: that counts as if it were nothing
            errors.append(float(np.square(np.where(both, mean, 0) - target)[shown].sum()))
        return self.windows[int(np.argmin(errors))] if before else 1


def _guesses(view: View, columns: Columns, others: Sequence[Proxy], end: int) -> Iterator[Vector]:
    """What may stand (d,) where the victim never showed anything, the likeliest first."""
    begun = view.public.initial[: columns.of.size]
    if view.public.sharing["name"] == "masked-proxy":
        mean, seen = _mean(columns, [one for one in others if one.round == end])
        yield np.where(seen, mean, begun)
    elif view.public.sharing.get("taught", "all") == "all":
        yield begun + taught(view, columns)
    yield begun


def _loss(view: View, network: Network, parameters: Vector) -> float:
    """Of a model (d,) on the public pictures; nothing where there are none."""
    pictures, labels = view.public.pictures, view.public.picture_labels
    if pictures is None or labels is None or not len(labels):
        return 0.0
    network.load(parameters)
    with torch.no_grad():
        return float(functional.cross_entropy(network.module(torch.from_numpy(pictures)), torch.from_numpy(labels)))


def _mean(columns: Columns, proxies: Sequence[Proxy]) -> tuple[Vector, Mask]:
    """The mean (d,) of each column over the proxies that show it, and which coordinates (d,) any did."""
    total, count = np.zeros(columns.of.size), np.zeros(columns.total + 1)
    for one in proxies:
        total += one.values
        count += np.append(one.shown, True)
    times = count[columns.of]
    mean: Vector = (total / np.maximum(times, 1)).astype(np.float32)
    return mean, times > 0
