"""What a coalition hears over many rounds of gossip, solved for the updates of peers that it never talks to.

El Mrini, Cyffers, Bellet, "Privacy attacks in decentralized learning" (ICML 2024, arXiv 2402.10001): with updates that
stay nearly the same, the system of `knowledge` is linear in them. Here what the neighbours said is taken as it is
instead of being solved for again, which leaves the coalition's own influence out to the bit; equations are weighted by
the covariance of everybody's rounding; and the least squares are damped where a direction holds less of an update than
of rounding: the cut-off follows from the precision of the wire and is not chosen.

How far that goes is known beforehand, and said: `Solved.confidence`. At learning rates where gradients change from
round to round, `drift` adds one unknown for each peer; `replay` does without supposing anything to be constant.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from veilmesh.attacks.seen.knowledge import System
from veilmesh.attacks.seen.update import Observed
from veilmesh.attacks.view import Public, View
from veilmesh.core import RemoteError
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import PeerId
from veilmesh.swarm import messages

__all__ = ["Solution", "Solved", "heard_states", "rounding_of", "solve_unheard", "solve_view", "unheard"]

Floats = NDArray[np.float64]

_LEAST = 0.05  # confidence below which an update is mostly rounding and other peers


@dataclass(frozen=True, slots=True, eq=False)
class Solved:
    """What the equations give for `peer`: `update` (d,) float64, its update of round 0. `confidence`: the share of its
    variance that is explained, from 0 to 1, as predicted from the weights and the precision alone. `error`: the
    predicted length of rounding in it, relative to an update."""

    peer: PeerId
    update: Floats
    confidence: float
    error: float


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """All targets that are not told, by peer id; `condition`: of K, `determinable`: of them without rounding."""

    solved: tuple[Solved, ...]
    condition: float
    determinable: frozenset[PeerId]


def heard_states(view: View) -> dict[PeerId, list[Vector]]:
    """For each controlled peer and each that it hears: the parameters (d,) after training, round by round, as far as
    everybody's are there. Empty where the protocol is not plain gossip, or its codec loses anything."""
    public, found = view.public, dict[PeerId, dict[int, Vector]]()
    if public.strategy != "gossip" or public.aggregator != "mean":
        return {}
    for record in view.records:
        message = _message(record.body)
        if not isinstance(message, messages.Update) or message.round in found.get(record.sender, {}):
            continue
        try:
            found.setdefault(record.sender, {})[message.round] = table.decode_lossless(
                message.blob, public.initial.size
            )
        except RemoteError:
            return {}
    rounds = min((_unbroken(said) for said in found.values()), default=0)
    return {peer: _added_up(public.initial, said, rounds) for peer, said in found.items() if rounds}


def _message(body: bytes | None) -> messages.Message | None:
    try:
        return None if body is None else messages.decode(body)
    except RemoteError:
        return None


def _unbroken(said: Mapping[int, Vector]) -> int:
    return next(t for t in range(len(said) + 1) if t not in said)


def _added_up(initial: Vector, said: Mapping[int, Vector], rounds: int) -> list[Vector]:
    copies = [initial]
    for t in range(rounds):
        copies.append(copies[-1] + said[t])
    return copies[1:]


def rounding_of(parameters: Vector, kind: type[np.floating] = np.float32) -> float:
    """The standard deviation of one coordinate's rounding to `kind`, (d,) taken together."""
    spacing = np.spacing(np.abs(parameters).astype(kind)).astype(np.float64)
    return float(np.sqrt(np.mean(np.square(spacing)) / 12))


def unheard(view: View) -> Iterator[Observed]:
    """The first updates of peers that nobody in the coalition hears, solved for from all rounds."""
    samples = view.public.batch * view.public.local_steps
    for one in solve_view(view).solved:
        update = one.update.astype(np.float32)
        yield Observed(one.peer, 0, view.public.initial, update, None, samples, False, one.confidence)


def solve_view(view: View, drift: bool = False) -> Solution:
    """As `solve_unheard`, from what a view holds; without targets where it cannot be solved."""
    states = heard_states(view)
    system = system_of(view.public, view.vantage.controls, states)
    if system is None:
        return Solution((), np.inf, frozenset())
    zero = view.public.initial.astype(np.float64)
    heard = {i: [x - zero for x in states[system.peers[i]]] for i in system.heard}
    return solve_unheard(system, heard, rounding_of(view.public.initial), drift)


def system_of(public: Public, coalition: Collection[PeerId], states: Collection[PeerId]) -> System | None:
    """The system of a coalition that has these peers' states; None where it lacks any that it should have heard."""
    system = System.of(public.weights, coalition)
    there = all(system.peers[i] in states for i in system.heard)
    return system if system.told and there else None


def solve_unheard(system: System, heard: Mapping[int, list[Floats]], rounding: float, drift: bool = False) -> Solution:
    """The updates of everybody beyond the told; those of whom next to nothing would be seen are left out.

    `heard`: for everybody heard, by number, (d,) after training in each round, as differences to the common beginning.
    `rounding`: standard deviation of a coordinate's rounding in one round.
    """
    rounds = min(len(one) for one in heard.values())
    k = system.knowledge(rounds, drift)
    first = [heard[v][0] for v in system.told]
    size = float(np.sqrt(np.mean([np.mean(np.square(u)) for u in first]))) or 1.0
    inverse, explained, error = _damped(system, k, rounds, rounding / size)
    far = range(len(system.told), len(system.targets))
    kept = [c for c in far if explained[c] > _LEAST]
    updates = _applied(inverse[kept], system, heard, rounds)
    solved = [
        Solved(system.peers[system.targets[c]], u, float(explained[c]), float(error[c]))
        for c, u in zip(kept, updates, strict=True)
    ]
    alone = system.determinable(rounds, drift)
    unheard = alone & {system.peers[i] for i in system.rest}
    return Solution(tuple(sorted(solved, key=lambda s: s.peer)), float(np.linalg.cond(k)), frozenset(unheard))


def _damped(system: System, k: Floats, rounds: int, noise: float) -> tuple[Floats, Floats, Floats]:
    """The Wiener inverse of K (columns, rows), and for each column the share of it that is explained, and its error.

    `noise`: of rounding, relative to an update. Over all rounds a drift is taken to be as large as an update.
    """
    scale = np.ones(k.shape[1])
    scale[len(system.targets) :] = 1 / max(rounds, 1)
    whiten = np.linalg.inv(np.linalg.cholesky(system.noise(rounds)))
    left, values, right = np.linalg.svd(whiten @ k * scale, full_matrices=False)
    gains = values / (np.square(values) + noise**2)
    inverse: Floats = scale[:, None] * (right.T * gains) @ (left.T @ whiten)
    explained = np.square(right.T) @ (gains * values)
    error = noise * np.sqrt(np.square(right.T) @ np.square(gains))
    return inverse, explained, error


def _applied(inverse: Floats, system: System, heard: Mapping[int, list[Floats]], rounds: int) -> Floats:
    """(rows of inverse, d), one heard state at a time: a long run of a large model need not be one array."""
    factors = (inverse @ system.left_sides(rounds)).reshape(len(inverse), rounds, len(system.heard))
    total = np.zeros((len(inverse), heard[system.told[0]][0].size))
    for t in range(rounds):
        for place, i in enumerate(system.heard):
            if factors[:, t, place].any():
                total += np.outer(factors[:, t, place], heard[i][t])
    return total
