"""What crosses the cuts of a split network, as one vantage sees it: activations, gradients, and labels where they go.

A boundary is known by the stage that it is the entrance of. A peer that plays a stage sees both of its boundaries: what
it is sent, and what it says itself.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from veilmesh.attacks.network import Network
from veilmesh.attacks.view import Public, View
from veilmesh.core import BadInput, RemoteError
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import PeerId
from veilmesh.split import messages
from veilmesh.split.cut import divide, shapes
from veilmesh.split.messages import Activations, Gradients, Labels

__all__ = ["Smashed", "StageMap", "boundaries", "labels_elsewhere", "observe_smashed", "require_split"]

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Smashed:
    """One micro-batch of one data owner at one boundary.

    `activations` (B, ...) as they were read on the wire; `gradients` (B, ...), of the step's mean loss with respect to
    them, as said, or None where none was seen; `labels` (B,) where the vantage has them. `share`: B over the examples
    of the step, so that gradients / share are those of the micro-batch's own mean loss.
    """

    head: PeerId
    boundary: int
    step: int
    micro: int
    of: int
    share: float
    activations: Array
    gradients: Array | None = None
    labels: NDArray[np.int64] | None = None


class StageMap:
    """The stages of the public network: what anybody can build, and load with parameters. Not for two threads."""

    def __init__(self, public: Public) -> None:
        require_split(public)
        self.public = public
        self._network = Network(public, per_pixel=True)
        self.stages: list[nn.Sequential] = divide(self._network.module, [int(at) for at in public.split["cuts"]])
        self.shapes = shapes(self.stages, public.shape)
        self.sizes = [sum(p.numel() for p in stage.parameters()) for stage in self.stages]

    @cached_property
    def starts(self) -> list[int]:
        """Where the parameters of each stage begin in the flat vector."""
        return [sum(self.sizes[:stage]) for stage in range(len(self.sizes))]

    def initial(self, stage: int) -> Vector:
        """The parameters (d,) that `stage` begins with: public, as those of the whole network are."""
        return self.public.initial[self.starts[stage] : self.starts[stage] + self.sizes[stage]]

    def load(self, stage: int, parameters: Vector) -> nn.Sequential:
        """The module of `stage` with `parameters` (d,); the same one every time."""
        with torch.no_grad():
            at = 0
            for parameter in self.stages[stage].parameters():
                piece = parameters[at : at + parameter.numel()]
                parameter.copy_(torch.from_numpy(np.array(piece)).view_as(parameter))
                at += parameter.numel()
        return self.stages[stage]

    def fresh(self, stage: int) -> nn.Sequential:
        """A module of `stage`'s architecture of its own, with the parameters that it begins with."""
        other = StageMap(self.public)
        return other.load(stage, self.initial(stage))


def require_split(public: Public) -> Mapping[str, Any]:
    """What is public of split mode. Raises BadInput for a run of swarm mode."""
    if not public.split:
        raise BadInput(
            f"This attack reads what crosses a cut, and strategy {public.strategy!r} has none; take one of split mode, "
            "or another attack."
        )
    return public.split


def labels_elsewhere(view: View) -> bool:
    """Whether the labels of the adversary's own examples are held by somebody whom it does not control."""
    split = require_split(view.public)
    return split["labels"] == "held" and not any(route[-1] in view.vantage.controls for route in split["route"])


def boundaries(view: View) -> list[int]:
    """The boundaries that a vantage sees in clear, rising."""
    controls = view.vantage.controls
    seen = set()
    for route in require_split(view.public)["route"]:
        for stage, player in enumerate(route):
            if player in controls:
                seen |= {stage, stage + 1}
    return sorted(seen - {0, len(view.public.split["cuts"]) + 1})


def observe_smashed(
    view: View, boundary: int | None = None, own: bool = False, everybody: bool = False
) -> list[Smashed]:
    """Everything that was seen at `boundary` (None: the lowest that is seen, nearest to the data) of data owners that
    the adversary does not control, in order of data owner, step and micro-batch; `own`: of its own data owners too,
    where somebody else holds their labels; `everybody`: of those too, wherever. Raises BadInput where nothing is."""
    seen = boundaries(view)
    if not seen:
        raise BadInput("Nothing crosses a cut in clear here; take the vantage of a member that plays a stage, as tail.")
    boundary = seen[0] if boundary is None else boundary
    stages = StageMap(view.public)
    found: dict[tuple[int, int, int], Smashed] = {}
    gradients: dict[tuple[int, int, int], bytes] = {}
    apart: dict[tuple[int, int, int], Labels] = {}  # labels that did not come with the activations
    for message in _messages(view):
        if isinstance(message, Activations) and message.stage == boundary:
            if (one := _read(view, stages, message)) is not None:
                found.setdefault((message.head, message.step, message.micro), one)
        elif isinstance(message, Gradients) and message.stage == boundary - 1:
            gradients.setdefault((message.head, message.step, message.micro), message.blob)
        elif isinstance(message, Labels):
            apart.setdefault((message.head, message.step, message.micro), message)
    hidden = frozenset() if everybody or (own and labels_elsewhere(view)) else view.vantage.controls
    whole = [(key, _with_labels(view, one, apart.get(key))) for key, one in sorted(found.items(), key=lambda at: at[0])]
    every = (_with_gradient(one, gradients.get(key)) for key, one in whole)
    return [one for one in every if one.head not in hidden]


def _messages(view: View) -> Iterator[messages.Message]:
    """What controlled members said and heard, in order of time."""
    for record in sorted(view.records, key=lambda record: record.now):
        if record.body is None:
            continue
        try:
            yield messages.decode(record.body)
        except RemoteError:
            continue  # the heads' swarm speaks another language


def _read(view: View, stages: StageMap, m: Activations) -> Smashed | None:
    route = view.public.split["route"]
    if not m.head < len(route) or not m.stage < len(stages.shapes):
        return None
    shape = stages.shapes[m.stage]
    try:
        values = table.decode(m.blob, m.rows * prod(shape)).values
    except RemoteError:
        return None
    head = PeerId(route[m.head][0])
    labels = _labels(view, head, m)
    return Smashed(
        head, m.stage, m.step, m.micro, m.of, m.rows / m.total, values.reshape(m.rows, *shape), labels=labels
    )


def _labels(view: View, head: PeerId, m: Activations | Labels) -> NDArray[np.int64] | None:
    """What a message says of labels, as far as the adversary can read it."""
    if m.labels:
        return np.frombuffer(m.labels, "<u2").astype(np.int64)
    which = np.frombuffer(m.which, "<u4")
    held = view.held.get(head)
    return held[which] if m.which and held is not None and (which < len(held)).all() else None


def _with_labels(view: View, one: Smashed, m: Labels | None) -> Smashed:
    if m is None or one.labels is not None or m.rows != len(one.activations):
        return one
    return replace(one, labels=_labels(view, one.head, m))


def _with_gradient(one: Smashed, blob: bytes | None) -> Smashed:
    if blob is None:
        return one
    try:
        values = table.decode(blob, one.activations.size).values
    except RemoteError:
        return one
    return replace(one, gradients=values.reshape(one.activations.shape))
