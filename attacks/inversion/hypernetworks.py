"""What both attacks on shared hypernetworks do alike: the message as a gradient, and the search for the pictures."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from veilmesh.attacks.matching.descent import Adam, Variable
from veilmesh.attacks.matching.distance import Cosine
from veilmesh.attacks.matching.objective import Matching
from veilmesh.attacks.matching.predict import Predictor
from veilmesh.attacks.matching.prior import Prior, Smooth
from veilmesh.attacks.matching.space import Pixels, Start, starting_pictures
from veilmesh.attacks.seen.observed import Observed, observe_updates
from veilmesh.attacks.view import Guess, Public, View
from veilmesh.core import BadInput, seed_number
from veilmesh.swarm.sharing.base import SHARINGS
from veilmesh.swarm.sharing.hyperfl import HyperFL
from veilmesh.tasks.models.hypernetwork import Hypernetwork, HyperOptions, hypernetwork

__all__ = ["HyperSearch", "Message", "messages", "searched"]

NAME = "hyperfl"


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """An update to the shared vector, read as a gradient.

    `gradient` (d,): dL/dphi at `phi` (d,), up to a positive factor; after several local steps their mean, weighted as
    momentum does. `said` (d,): 0 where nothing was said, and the gradient is 0 there; None: all was. `count`: pictures.
    """

    observed: Observed
    net: Hypernetwork
    phi: Tensor
    gradient: Tensor
    said: Tensor | None
    count: int
    seed: int  # names the streams of chance, by the update itself


@dataclass(frozen=True, slots=True)
class HyperSearch(ABC):
    """A search for the pictures behind updates to a shared hypernetwork; an attack says what is compared with what."""

    reconstructs: ClassVar[str] = "pictures"
    sharings: ClassVar[tuple[str, ...]] = (NAME,)  # what it reads
    reads_models: ClassVar[bool] = False

    iterations: Annotated[int, Field(ge=1)] = 400
    tv: Annotated[float, Field(ge=0)] = 1e-4
    rate: Annotated[float, Field(gt=0)] = 0.1
    restarts: Annotated[int, Field(ge=1)] = 1
    start: Start = "noise"
    targets: Annotated[int, Field(ge=1)] = 1
    first: Annotated[int, Field(ge=0)] = 0

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`; one number is drawn from `rng`. Raises BadInput where no hypernetwork is shared."""
        seed = int(rng.integers(1 << 62))
        for message in messages(view, self, seed):
            yield self.guess(message, view.public.shape)

    @abstractmethod
    def guess(self, message: Message, shape: tuple[int, int, int]) -> Guess:
        """What one message gives away, as pictures of `shape` (C, H, W)."""


def messages(view: View, options: HyperSearch, seed: int) -> Iterator[Message]:
    """Every update to a shared hypernetwork that `view` gives away. Raises BadInput where none is shared."""
    public = view.public
    if public.sharing.get("name") != NAME:
        raise BadInput(f"A hypernetwork is what sharing {NAME!r} says; this run shared something else.")
    scheme = SHARINGS.build_from(public.sharing)
    assert isinstance(scheme, HyperFL)  # registered under that name
    form = HyperOptions(scheme.embedding, scheme.hidden, scheme.rank, scheme.chunk, scheme.head_bias)
    net = hypernetwork(form, public.model, public.shape, public.classes)
    for observed in observe_updates(view, options.targets, first=options.first):
        said = _said(observed, public)
        phi = torch.from_numpy(observed.start.copy())
        gradient = _gradient(observed, scheme, public.local_steps)
        gradient = gradient if said is None else gradient * said
        most = public.batch * public.local_steps * max(1, len(observed.among))
        count = int(np.clip(observed.samples, 1, most))
        name = observed.update[:: max(1, observed.update.size // 4096)].tobytes().hex()
        yield Message(observed, net, phi, gradient, said, count, seed_number(seed, name))


def _gradient(observed: Observed, scheme: HyperFL, steps: int) -> Tensor:
    """(d,) what was added to the parameters, without the rate, the momentum and the weight decay, which are public."""
    update, start = observed.update.astype(np.float64), observed.start.astype(np.float64)
    gain = sum((1 - scheme.momentum**step) / (1 - scheme.momentum) for step in range(1, steps + 1))
    middle = start + update / 2 if steps > 1 else start
    return torch.from_numpy((-update / (scheme.learning_rate * gain) - scheme.decay * middle).astype(np.float32))


def _said(observed: Observed, public: Public) -> Tensor | None:
    """Where anything was said; of a pruned update, wherever it is not nothing."""
    if observed.said is None and not any(guard["name"] == "prune" for guard in public.guards):
        return None
    heard = observed.update != 0 if observed.said is None else observed.said & (observed.update != 0)
    return torch.from_numpy(heard.astype(np.float32))


def searched(
    message: Message, predictor: Predictor, distance: Cosine, options: HyperSearch, shape: tuple[int, int, int],
    pull: int = 0, details: dict[str, object] | None = None,
) -> Guess:  # fmt: skip
    """The pictures whose update by `predictor` is nearest in `distance`; the best of all restarts by its own loss.
    `pull`: how many numbers are searched with every picture."""
    count, restarts = message.count, range(options.restarts)
    begin = [starting_pictures(options.start, (count, *shape), message.seed, restart) for restart in restarts]
    variables = {"x": Variable(torch.stack(begin), (0.0, 1.0))}
    if pull:
        drawn = torch.Generator().manual_seed(seed_number(message.seed, "pull"))
        raw = torch.randn(options.restarts, count, pull, generator=drawn)
        variables["alpha"] = Variable(raw, sign="plain")
    smooth: list[Prior] = [Smooth(options.tv)] if options.tv else []
    labels = torch.arange(count).remainder(_classes(message.net)).expand(options.restarts, count)
    objective = Matching(predictor, distance, smooth, Pixels(), labels)
    found = Adam(options.iterations, options.rate).run(objective, variables)
    best = found.best()
    pictures = found.values["x"][best].clamp(0, 1).numpy().astype(np.float32)
    return _guess(message, pictures, float(found.loss[best]), float(found.distance[best]), details or {})


def _classes(net: Hypernetwork) -> int:
    return net.shapes[net.own[-1]][0]


def _guess(
    message: Message, pictures: NDArray[np.float32], loss: float, distance: float, more: dict[str, object]
) -> Guess:
    observed = message.observed
    details = {"exact": observed.exact, "coverage": observed.coverage, "distance": distance, **more}
    loss = min(loss, float(np.finfo(np.float32).max))
    nothing = np.zeros(0, np.int64)  # labels are behind the classifier, which is not shared
    return Guess(observed.victim, observed.round, pictures, nothing, loss, details, observed.among)
