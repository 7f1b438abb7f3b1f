"""Non-neighbours at training learning rates: read the nearest peer, play it again, and the next one can be read.

A gossip is causal. What a peer k hops behind the told did in round 0 is first noticed in round k, and by then nobody
farther away is. So once the pictures of all nearer peers are known, and their gradients with them, at whatever
parameters mixing brings them to, the one unknown of round k is that peer's first update, times the weights in between.
It is solved for, its picture is read (`replica`), and it is played like the others from then on. Nothing is supposed to
be constant, so no learning rate is too large by itself; a larger one lifts updates further above rounding.

What a peer changes in its neighbours' gradients is noticed in the same round as it is itself, mixed with their
pictures. So what the told said has to be explained by the picture and all that it changes: equations in the picture,
solved by Anderson's method (1965), which learns from its own steps how the whole mesh answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice, product

import numpy as np
from numpy.typing import NDArray

from veilmesh.attacks.seen.knowledge import System
from veilmesh.attacks.seen.replica import Reading, Replica
from veilmesh.attacks.seen.steps import anderson, gauss_newton

__all__ = ["Played", "Replay"]

Floats = NDArray[np.float64]

_TURNS = 12
_ATTEMPTS = 12
_FAR = 3.0  # times the expected length of rounding, which is as good as none
_CLOSE, _LIKELY = 1e-3, 0.2  # of what was to be explained: refined no further; with no other label
_LOST = 0.7  # beyond that, and beyond rounding, whoever is farther would be read from what was not explained
_MEMORY = 30
_ALONE = 1e-6
_CONTRAST = 0.25  # standard deviation of a picture's values
_LEVEL = 1 / 255


@dataclass(frozen=True, slots=True, eq=False)
class Played:
    """One peer as it was read. `error`: the predicted standard deviation of rounding in a pixel; its `misfit` is of
    what the told said when it was first noticed."""

    reading: Reading
    error: float


@dataclass(eq=False)
class Replay:
    """The peers behind a coalition's neighbours, played again.

    `heard`: for everybody heard, by number, (d,) after training in each round, as differences to the common beginning.
    `rounding`: standard deviation of a coordinate's rounding in one round.
    """

    system: System
    heard: Mapping[int, list[Floats]]
    replica: Replica
    rounding: float
    found: dict[int, Played] = field(default_factory=dict)
    _states: dict[tuple[int, int], Floats] = field(default_factory=dict)

    def run(self) -> dict[int, Played]:
        """Everybody that could be read, by number; nearest first. The coalition's own are among them."""
        hops, rounds = self.system.hops, min(len(one) for one in self.heard.values())
        for peer in self.system.heard:
            self._read(peer)
        for hop in range(1, min(rounds, max(hops.values(), default=0) + 1)):
            fresh = [peer for peer, far in hops.items() if far == hop]
            if not self._advance(fresh, hop):
                break
            self._forget(hop)
        return self.found

    def _read(self, peer: int) -> None:
        """One that is heard: its first update is what it said."""
        first = self.heard[peer][0]
        reading = self.replica.read(first, self.replica.labels(first)[:2])
        self.replica.place(peer, self.replica.seen(reading.picture), reading.label)
        self.found[peer] = Played(reading, self.replica.blur(peer, self.rounding))

    def _advance(self, fresh: list[int], hop: int) -> bool:
        """Read the peers `hop` behind the told; whether the equations of that round single them out."""
        columns = self.system.first_seen(hop)[:, [self.system.rest.index(peer) for peer in fresh]]
        scaled = columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-300)
        if np.linalg.matrix_rank(scaled, _ALONE) < len(fresh):
            return False
        inverse: Floats = np.linalg.pinv(columns, rcond=1e-15).astype(np.float64)
        noise: Floats = self.rounding * np.linalg.norm(inverse, axis=1)
        said: Floats = inverse @ np.stack([self._told(v, hop) for v in self.system.told])
        first = said - self._explained(inverse, hop)
        faint = float(np.linalg.norm(noise)) * np.sqrt(first.shape[1])
        best: tuple[float, list[Reading], Floats] | None = None
        before = dict(self.found)
        orders = [self.replica.labels(update) for update in first]
        for labels in islice(product(*orders), _ATTEMPTS):
            readings = [self.replica.read(update, [label]) for update, label in zip(first, labels, strict=True)]
            points = self._solve(fresh, hop, inverse, said, readings, noise)
            enough = max(_FAR * faint, _CLOSE * float(np.linalg.norm(first)))
            points, left = self._refined(fresh, [one.label for one in readings], points, said, inverse, hop, enough)
            if best is None or left < best[0]:
                best = left, readings, points
            if left <= max(enough, _LIKELY * float(np.linalg.norm(first))):
                break
        assert best is not None
        unread = min(self.replica.blur(p, float(n)) for p, n in zip(fresh, noise, strict=True)) > _CONTRAST
        if unread or best[0] > max(_FAR * faint, _LOST * float(np.linalg.norm(first))):
            self.found = before
            return False
        for place, peer in enumerate(fresh):
            self._settle(
                peer, best[2][place], best[1][place].label, float(noise[place]), best[0] / float(np.linalg.norm(first))
            )
        return True

    def _explained(self, inverse: Floats, hop: int) -> Floats:
        """(fresh, d): of what the told said, as updates of the fresh ones, all that is played."""
        return np.stack([self.replica.whole(state) for state in inverse @ self._played(hop)])

    def _settle(self, peer: int, inputs: Floats, label: int, noise: float, misfit: float) -> None:
        picture = self.replica.picture(inputs[:-1])
        error = self.replica.blur(peer, noise)
        if error < _LEVEL / 8 and misfit < 0.5:
            picture = (np.round(picture / _LEVEL) / np.float32(255)).astype(np.float32)
        self._place(peer, self.replica.seen(picture), label)
        self.found[peer] = Played(Reading(picture, label, misfit), error)

    def _solve(
        self, fresh: list[int], hop: int, inverse: Floats, said: Floats, readings: list[Reading], noise: Floats
    ) -> Floats:
        """What the first layer sees (fresh, in + 1), so that the played told say what the told said."""
        matrices = [self.replica.matrix(update) for update in said]
        points = np.stack([self.replica.seen(one.picture) for one in readings])
        history: list[tuple[Floats, Floats]] = []
        for _ in range(_TURNS):
            for peer, x, one in zip(fresh, points, readings, strict=True):
                self._place(peer, x, one.label)
                self.found.setdefault(peer, Played(one, 0.0))
            played = inverse @ self._played(hop)
            steps = np.stack([self._step(p, m, state) for p, m, state in zip(fresh, matrices, played, strict=True)])
            if not np.isfinite(steps).all():
                break
            history = [*history[-_MEMORY:], (points, steps)]
            blur = max(self.replica.blur(p, float(n)) for p, n in zip(fresh, noise, strict=True))
            if np.linalg.norm(steps) < max(1e-10, 0.1 * blur) * np.sqrt(points.size):
                break
            points = anderson(history)
            points[:, -1] = 1.0
        return history[-1][0]

    def _refined(
        self,
        fresh: list[int],
        labels: list[int],
        points: Floats,
        said: Floats,
        inverse: Floats,
        hop: int,
        enough: float,
    ) -> tuple[Floats, float]:
        """`points` after Gauss-Newton steps, and the length of what they leave unexplained. They go where Anderson's do
        badly: towards the pictures of those that answer, as far as these are already known."""

        def left(points: Floats) -> Floats:
            for peer, x, label in zip(fresh, points, labels, strict=True):
                self._place(peer, x, label)
            return (said - self._explained(inverse, hop)).reshape(-1)

        others = [peer for peer in self.found if peer not in fresh]

        def moves(points: Floats) -> list[Floats]:
            return [self._toward(points, place, other) for place in range(len(fresh)) for other in others]

        return gauss_newton(points, left, moves, enough)

    def _toward(self, points: Floats, place: int, other: int) -> Floats:
        """The direction in which one of `points` becomes more like the picture of another peer."""
        move = np.zeros_like(points)
        move[place] = self.replica.input(other) - points[place]
        return move / np.linalg.norm(move)

    def _step(self, peer: int, said: Floats, played: Floats) -> Floats:
        """What the picture's input (in + 1,) would have to change by, did nothing else change with it."""
        signal = self.replica.signal(peer)
        left = said - self.replica.matrix(self.replica.whole(played))
        power = np.square(signal)
        # A unit that another peer's picture now excites, and in truth does not, is wrong by itself alone: rows count
        # the less, the worse they agree with the others.
        off = np.linalg.norm(left, axis=1) / np.maximum(np.abs(signal), 1e-6 * np.abs(signal).max())
        usual = float(np.median(off[power > 0])) if power.any() else 0.0
        weight = np.where(power > 0, 1 / (1 + np.square(off / max(usual, 1e-150))), 0.0)
        pull = (weight * signal) @ left
        return pull / (-self.replica.rate * max(float(weight @ power), 1e-300))

    def _place(self, peer: int, inputs: Floats, label: int) -> None:
        self.replica.place(peer, inputs, label)
        for key in [key for key in self._states if self._reaches(peer, *key)]:
            del self._states[key]

    def _reaches(self, peer: int, other: int, rounds: int) -> bool:
        hops = self.system.hops
        return rounds >= abs(hops.get(peer, -1) - hops.get(other, -1))

    def _told(self, v: int, t: int) -> Floats:
        """What v said in round t (d,), less what it took over of what others said that was heard too."""
        row, said = self.system.weights[v], self.heard[v][t]
        for i in self.system.heard:
            said = said - row[i] * self.heard[i][t - 1]
        return said

    def _played(self, t: int) -> Floats:
        """The same (told, size), as it is played."""
        rows = []
        for v in self.system.told:
            row, state = self.system.weights[v], self._half(v, t)
            for i in self.system.heard:
                state = state - row[i] * self._half(i, t - 1)
            rows.append(state)
        return np.stack(rows)

    def _half(self, peer: int, t: int) -> Floats:
        """Where `peer` stands after training in round t, as a state; who is not known yet is at the beginning."""
        if (peer, t) not in self._states:
            at = np.zeros(self.replica.size)
            row = self.system.weights[peer]
            for j in (int(j) for j in np.flatnonzero(row) if t):
                if j in self.found:
                    at += row[j] * self._half(j, t - 1)
            self._states[peer, t] = at + self.replica.update(peer, at)
        return self._states[peer, t]

    def _forget(self, hop: int) -> None:
        """States that nothing later is made of."""
        hops = self.system.hops
        for key in [k for k in self._states if hops.get(k[0], -1) + k[1] < hop - 3]:
            del self._states[key]
