"""What a data owner that forged pictures of somebody else's class has in the end."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field

from veilmesh.attacks.seen.smashed import StageMap, require_split
from veilmesh.attacks.smashed.forger import Forger, Forging
from veilmesh.attacks.view import ATTACKS, Guess, View
from veilmesh.core import BadInput, RemoteError
from veilmesh.crypto.codecs import table
from veilmesh.split import messages
from veilmesh.split.messages import Activations, Gradients, Handover

__all__ = ["ClientGanReading", "trained"]


@ATTACKS.register("client-gan")
@dataclass(frozen=True, slots=True)
class ClientGanReading:
    """Pictures of class `target` that a malicious data owner's generator learned to make through everybody's network.

    The second half of hijack `client-gan` (Hitaj, Ateniese and Perez-Cruz, CCS 2017), with the same options: the
    generator is trained again by what the member was told. It has no example of anybody, so its guess for a batch is
    the same pictures for every place; where they do not resemble the class, the hijack failed.
    """

    target: Annotated[int, Field(ge=0)] = 0
    other: Annotated[int, Field(ge=0)] | None = None
    every: Annotated[int, Field(ge=2)] = 4
    rate: Annotated[float, Field(gt=0)] = 1e-3

    reconstructs: ClassVar[str] = "pictures"

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`. Raises BadInput where no data owner is controlled."""
        route = require_split(view.public)["route"]
        mine = [place for place, way in enumerate(route) if way[0] in view.vantage.controls]
        if not mine or view.public.strategy != "round-robin":
            raise BadInput(
                "client-gan reads what one of several data owners was told in turn; take round-robin, peer:N."
            )
        forging = Forging(self.target, self.other, self.every, self.rate)
        forger, last = trained(view, mine[0], forging)
        count = view.public.batch * view.public.local_steps
        pictures = forger.pictures(count).numpy()
        labels = np.full(count, self.target, np.int64)
        for way in route:
            if way[0] not in view.vantage.controls:
                yield Guess(way[0], max(0, last // view.public.local_steps), pictures, labels, 0.0)


def trained(view: View, place: int, forging: Forging) -> tuple[Forger, int]:
    """The generator after all that its member was told, in the order in which it was; and the last step."""
    forger, shape = Forger(view.public, place, forging), StageMap(view.public).shapes[1]
    sizes = StageMap(view.public).sizes
    rows: dict[tuple[int, int], int] = {}
    learned: set[tuple[int, int]] = set()
    for record in sorted(view.records, key=lambda record: record.now):
        if record.body is None:
            continue
        try:
            match messages.decode(record.body):
                case Handover(head=head, blob=blob) if head != place:
                    forger.take(table.decode_lossless(blob, sizes[0]))
                case Activations(head=head, stage=1, step=step, micro=micro, rows=count) if head == place:
                    rows[step, micro] = count
                case Gradients(head=head, stage=0, step=step, micro=micro, blob=blob) if head == place:
                    if (step, micro) in learned or (step, micro) not in rows or not forging.asks(step):
                        continue
                    learned.add((step, micro))
                    seen = table.decode(blob, rows[step, micro] * prod(shape)).values
                    forger.learn(torch.from_numpy(np.array(seen)).view(-1, *shape), step, micro)
        except RemoteError:
            continue
    return forger, max((step for step, _ in rows), default=0)
