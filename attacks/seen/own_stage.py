"""What the adversary's own stages were at every step: it trained them itself, and can do it again.

Parameters began at public values, and what came in, from below and from above, is in the records; so the replay is the
training itself, to the bit, where nothing was lost and no standby took over.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from veilmesh.attacks.seen.smashed import Smashed, StageMap, boundaries, observe_smashed, require_split
from veilmesh.attacks.view import Public, View
from veilmesh.core import BadInput
from veilmesh.peer.machine import PeerId
from veilmesh.split.part import Part, Settings

__all__ = ["OwnStages", "own_stages", "settings_of", "tail_over_time"]

_Steps = dict[tuple[PeerId, int], list[Smashed]]  # by data owner and step: its micro-batches


@dataclass(frozen=True, slots=True)
class OwnStages:
    """The stages `low` to `high`, both included, that the adversary plays: those next to each other from the lowest
    boundary that it sees; `last`: the highest is the network's last, where the loss is."""

    low: int
    high: int
    last: bool


def own_stages(view: View) -> OwnStages:
    """Which stages the adversary plays. Raises BadInput where it plays none above a head."""
    split, controls = require_split(view.public), view.vantage.controls
    last = len(split["cuts"])
    for low in boundaries(view):
        for route in split["route"]:
            if route[low] in controls and route[0] not in controls:
                high = low
                while high < last and route[high + 1] in controls:
                    high += 1
                return OwnStages(low, high, high == last)
    raise BadInput(
        "This attack needs a stage above a head of somebody else's; take the vantage of such a member, as tail."
    )


def settings_of(public: Public) -> Settings:
    """What a round of local training is, as it is announced."""
    momentum = float(public.split.get("momentum", 0.0))
    return Settings(public.batch, public.local_steps, public.learning_rate, momentum, public.optimizer)  # type: ignore[arg-type]  # Public holds the name as plain text


def tail_over_time(view: View) -> Iterator[tuple[int, PeerId, nn.Module]]:
    """(step, data owner, the adversary's stages as one module, with their parameters before that step), in the order
    in which they were trained. The module is valid until the next one is asked for, and not to be trained.

    Steps that were not seen whole are left out. Raises BadInput where the adversary plays no stage above a head.
    """
    own = own_stages(view)
    replays = [_Replay(view, stage) for stage in range(own.low, own.high + 1)]
    steps = set.intersection(*(set(replay.steps) for replay in replays))
    route = [PeerId(way[0]) for way in view.public.split["route"]]
    local, turns = view.public.local_steps, view.public.strategy == "round-robin"
    done = 0
    for head, step in sorted(steps, key=lambda at: (at[1] // local if turns else at[1], route.index(at[0]), at[1])):
        if view.public.split["copies"] and step // local > done:
            done = step // local
            for replay in replays:
                replay.average([h for h in route if (h, done * local - 1) in steps])
        yield step, head, nn.Sequential(*(replay.part(head).module for replay in replays))
        for replay in replays:
            replay.train(head, step)


class _Replay:
    """The training of one stage."""

    def __init__(self, view: View, stage: int) -> None:
        self._view, self._stage = view, stage
        self._last = stage == len(view.public.split["cuts"])
        self._copies = bool(view.public.split["copies"])
        self._parts: dict[PeerId | None, Part] = {}
        self._above: dict[tuple[PeerId, int, int], Smashed] = {}
        if not self._last:
            outgoing = observe_smashed(view, stage + 1, everybody=True)
            self._above = {(one.head, one.step, one.micro): one for one in outgoing if one.gradients is not None}
        self.steps = self._whole(observe_smashed(view, stage, everybody=True))

    def _whole(self, seen: Sequence[Smashed]) -> _Steps:
        found: _Steps = defaultdict(list)
        for one in seen:
            told = one.labels is not None if self._last else (one.head, one.step, one.micro) in self._above
            if told:
                found[one.head, one.step].append(one)
        return {at: ones for at, ones in found.items() if len(ones) == ones[0].of}

    def part(self, head: PeerId) -> Part:
        """The copy of the stage that is trained with the examples of `head`."""
        copy = head if self._copies else None
        if copy not in self._parts:
            module = StageMap(self._view.public).stages[self._stage]
            part = Part(module, settings_of(self._view.public))
            part.load(StageMap(self._view.public).initial(self._stage))
            self._parts[copy] = part
        return self._parts[copy]

    def average(self, heads: Sequence[PeerId]) -> None:
        """Make all copies the mean of those of `heads`."""
        parts = [self.part(head) for head in heads]
        mean = np.zeros_like(parts[0].parameters)
        for part in parts:
            mean += np.float32(1 / len(parts)) * part.parameters
        for part in self._parts.values():
            part.load(mean)

    def train(self, head: PeerId, step: int) -> None:
        """Do a step again."""
        part = self.part(head)
        for one in self.steps[head, step]:
            place = step, 0, one.micro
            out = part.forward(torch.from_numpy(one.activations.copy()), place, learns_input=True)
            if self._last:
                assert one.labels is not None
                loss = functional.cross_entropy(out, torch.from_numpy(one.labels.copy()))
                part.leaves(place, loss * one.share if one.of > 1 else loss, None)
                part.backward(place, None)
                continue
            said = self._above[head, step, one.micro].gradients
            assert said is not None
            part.backward(place, torch.from_numpy(said.copy()))
        part.step(step, 0, self.steps[head, step][0].of)
