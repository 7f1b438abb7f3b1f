"""What is left to see where groups show nothing but their sums (`swarm/strategies/secure_groups.py`).

A member of a group learns the mean of the survivors' models, x_0 + sum(h_j - x_0) / m with h_j = x_j + u_j, and nothing
else of any of them. Where the adversary knows what every survivor trained from (all of a group went on from the mean of
their last one; at the beginning everybody from x_0), it has the sum of their updates; its own updates it can make again
from its own data, and take away. What remains is a mean over the others, as if they were one peer with a larger batch:
that is what the inversions are given, and `among` says that nobody can tell whose a picture is. With all others but one
in the coalition, what remains is that one's update.

Sums over groups that overlap are put together in `overlap`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from veilmesh.attacks.seen.overlap import solve
from veilmesh.attacks.seen.update import Observed, mean_of
from veilmesh.attacks.view import Public, View
from veilmesh.core import RemoteError
from veilmesh.crypto.codecs.base import Vector
from veilmesh.crypto.fixed import word_type
from veilmesh.peer.machine import PeerId
from veilmesh.swarm import messages
from veilmesh.swarm.secure_messages import Agreed, Enrol, Roll, Total
from veilmesh.swarm.strategies.secure_groups import SecureGroups

__all__ = ["GroupSum", "SeenSum", "group_sums", "in_sums", "remaining"]


Gradient: TypeAlias = Callable[[Vector, np.ndarray, np.ndarray], Vector]
"""Of the mean loss at parameters (d,), on pictures (B, C, H, W) with labels (B,): (d,)."""


@dataclass(frozen=True, slots=True, eq=False)
class GroupSum:
    """One sum as a member of the group has it: over `survivors`, of h - x_0, (d,) float64."""

    round: int
    group: tuple[PeerId, ...]  # in roster order
    survivors: tuple[PeerId, ...]
    total: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class SeenSum:
    """The updates of `members`, whom the adversary does not control, added up: (d,) float32. `start` (d,): the mean of
    what they trained from; `alike`: whether that was the same for all of them."""

    round: int
    members: tuple[PeerId, ...]
    start: Vector
    total: Vector
    alike: bool


@dataclass(slots=True)
class _Heard:
    """What one controlled peer was told, and said, in one round's sum."""

    enrolled: set[PeerId] = field(default_factory=set)
    size: int = 0
    agreed: dict[bytes, tuple[int, ...]] = field(default_factory=dict)  # by label
    parts: dict[bytes, dict[int, bytes]] = field(default_factory=dict)


def in_sums(view: View, across: bool = False) -> Iterator[Observed]:
    """A group's view. Whom a coalition leaves alone in a sum is seen as if there were none; `across`: what all sums
    together say of single peers."""
    seen = list(remaining(view))
    samples = view.public.batch * view.public.local_steps
    if not across:
        for one in (s for s in seen if s.members):
            update = (one.total / len(one.members)).astype(np.float32)
            yield mean_of(one.members, view.public, one.round, one.start, update, exact=one.alike)
        return
    for found in solve([one.members for one in seen], [one.total for one in seen]):
        first = next(one for one in seen if found.peer in one.members)
        yield Observed(found.peer, first.round, first.start, found.update, None, samples, False, 1.0)


def group_sums(view: View) -> list[GroupSum]:
    """Every whole sum that the coalition was told, by round; each group's once. Only of whole models: with `keep` = 1
    and `rank` = 0."""
    public = view.public
    if public.strategy != "secure-groups" or public.options.get("keep") != 1.0 or public.options.get("rank"):
        return []
    heard: dict[tuple[int, int, PeerId], _Heard] = {}
    for record in view.records:
        if record.body is not None and record.at in view.vantage.controls:
            _take(heard, record.at, record.sender, record.body)
    found: dict[tuple[int, tuple[PeerId, ...]], GroupSum] = {}
    for (round_, _, at), one in sorted(heard.items()):
        if (seen := _whole(public, round_, at, one)) is not None:
            found.setdefault((round_, seen.group), seen)
    return list(found.values())


def _take(heard: dict[tuple[int, int, PeerId], _Heard], at: PeerId, sender: PeerId, body: bytes) -> None:
    try:
        message = messages.decode(body)
    except RemoteError:
        return
    if not isinstance(message, Enrol | Roll | Agreed | Total):
        return
    one = heard.setdefault((message.round, message.number, at), _Heard())
    match message:
        case Enrol():
            one.enrolled.add(sender)
        case Roll(cards=cards):
            one.size = len(cards)
        case Agreed(label=label, members=members):
            one.agreed.setdefault(label, members)
        case Total(label=label, part=part, words=words):
            one.parts.setdefault(label, {}).setdefault(part, words)


def _whole(public: Public, round_: int, at: PeerId, one: _Heard) -> GroupSum | None:
    group = tuple(peer for peer in public.peers if peer in one.enrolled or peer == at)
    fixed = SecureGroups(**public.options).fixed(max(len(group), 1))
    for label, parts in one.parts.items():
        raw = b"".join(words for _, words in sorted(parts.items()))
        if label not in one.agreed or len(group) != one.size or len(raw) % word_type(fixed.bits).itemsize:
            continue
        words = np.frombuffer(raw, word_type(fixed.bits))
        if words.size == public.initial.size:
            survivors = tuple(group[place] for place in one.agreed[label] if place < len(group))
            return GroupSum(round_, group, survivors, fixed.decode_sum(words))
    return None


def remaining(view: View) -> Iterator[SeenSum]:
    """What is left of each sum once the coalition has taken its own part away; by round.

    Sums over members of whom the coalition does not know where they trained from are left out, and so is its own part
    where it cannot be made again: after several local steps, behind guards, with momentum, of what is no model.
    """
    if not _repeatable(view):
        return
    public = view.public
    models: dict[PeerId, Vector] = dict.fromkeys(public.peers, public.initial)
    gradient = _gradient(public)
    sums = group_sums(view)
    for round_ in sorted({one.round for one in sums}):
        after: dict[PeerId, Vector] = {}
        for one in (s for s in sums if s.round == round_):
            mean = one.total / len(one.survivors)
            after |= dict.fromkeys(one.survivors, (public.initial + mean).astype(np.float32))
            if all(peer in models for peer in one.survivors):
                yield _without_own(view, gradient, one, models)
        models = after  # who was in no group that the coalition saw may be anywhere now


def _repeatable(view: View) -> bool:
    public = view.public
    plain = public.local_steps == 1 and not public.guards and public.optimizer == "sgd"
    return plain and public.sharing["name"] == "model" and view.own is not None


def _gradient(public: Public) -> Gradient:
    from veilmesh.attacks.network import Network  # torch: whoever only looks at a view need not wait for it

    network = Network(public)

    def gradient(at: Vector, pictures: np.ndarray, labels: np.ndarray) -> Vector:
        network.load(at)
        return network.gradient(pictures, labels)

    return gradient


def _without_own(view: View, gradient: Gradient, one: GroupSum, models: Mapping[PeerId, Vector]) -> SeenSum:
    public = view.public
    others = tuple(peer for peer in one.survivors if peer not in view.vantage.controls)
    total = one.total - sum(models[peer].astype(np.float64) - public.initial for peer in one.survivors)
    for peer in one.survivors:
        if peer in view.vantage.controls and view.own is not None:
            own = gradient(models[peer], *view.own(peer, one.round))
            total += public.learning_rate * own.astype(np.float64)
    starts = np.stack([models[peer] for peer in others or one.survivors])
    alike = bool((starts == starts[0]).all())
    return SeenSum(one.round, others, starts.mean(axis=0), total.astype(np.float32), alike)
