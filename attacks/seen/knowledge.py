"""What the neighbours of a coalition give away of peers that it never hears: the linear system over the gossip matrix.

In D-PSGD peer j trains from z_j^t to z_j^t + u_j^t, says it, and mixes with W (all z are differences to the common
beginning). A coalition hears its neighbours v after training, h_v^t, and nobody else. Between two rounds

    h_v^t - sum over heard i of W_vi h_i^{t-1}  =  u_v^t + sum over unheard j of W_vj h_j^{t-1}
    h_j^t                                       =  u_j^t + sum over heard i of W_ji h_i^{t-1} + sum over unheard ...

so whatever the coalition and its neighbours said is on the left, to the bit, and on the right are the unknowns alone.
With updates that stay the same (El Mrini, Cyffers, Bellet, "Privacy attacks in decentralized learning", ICML 2024,
arXiv 2402.10001, section 4) one column a peer, K u = o; with updates that drift, u + t d, two. The farther away a peer
is, the smaller its column: on a line by the product of the weights in between, and so rounding ends the reach.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from veilmesh.peer.machine import PeerId

__all__ = ["System", "determinable", "reach"]

Floats = NDArray[np.float64]
Weights = Mapping[PeerId, Mapping[PeerId, float]]

_ALONE = 1e-6  # of a peer's leverage in the row space: what lacks more than that is mixed with others


@dataclass(frozen=True, eq=False)
class System:
    """A gossip as a coalition knows it. Peers are numbered as in `peers`; matrices are float64.

    `weights` (n, n): W. `controlled`, `told` (their neighbours, who are heard every round) and `rest` are disjoint.
    """

    peers: tuple[PeerId, ...]
    weights: Floats
    controlled: tuple[int, ...]
    told: tuple[int, ...]
    rest: tuple[int, ...]

    @classmethod
    def of(cls, weights: Weights, coalition: Collection[PeerId]) -> "System":
        """From the rows of W. Whoever has a weight for a controlled peer, or gets one from it, is heard."""
        peers = tuple(sorted(weights))
        matrix = np.array([[weights[i].get(j, 0.0) for j in peers] for i in peers])
        inside = [i for i, peer in enumerate(peers) if peer in coalition]
        near = (matrix[inside] != 0).any(axis=0) | (matrix[:, inside] != 0).any(axis=1)
        told = [i for i in range(len(peers)) if near[i] and i not in inside]
        rest = [i for i in range(len(peers)) if not near[i] and i not in inside]
        return cls(peers, matrix, tuple(inside), tuple(told), tuple(rest))

    @property
    def heard(self) -> tuple[int, ...]:
        """Whose state after training is known every round."""
        return tuple(sorted((*self.controlled, *self.told)))

    @property
    def targets(self) -> tuple[int, ...]:
        """Everybody but the coalition, in the order of the columns of K: the told first."""
        return (*self.told, *self.rest)

    @cached_property
    def hops(self) -> Mapping[int, int]:
        """How many rounds later than the told a target is first noticed; who never is, is left out."""
        found, edge, hop = dict.fromkeys(self.told, 0), set(self.told), 0
        while edge:
            hop += 1
            beyond = {j for j in self.rest if j not in found and any(self.weights[i, j] for i in edge)}
            found |= dict.fromkeys(beyond, hop)
            edge = beyond
        return found

    def knowledge(self, rounds: int, drift: bool = False) -> Floats:
        """K (rounds * told, targets), rows by round; with `drift` (rounds * told, 2 * targets), u first, then d."""
        told, rest, within, across = self._blocks()
        steady, rising = np.zeros((len(rest), len(rest))), np.zeros((len(rest), len(rest)))
        rows = []
        for t in range(rounds):
            seen = np.hstack([np.eye(len(told)), across @ steady])
            grown = np.hstack([t * np.eye(len(told)), across @ rising])
            rows.append(np.hstack([seen, grown]) if drift else seen)
            steady, rising = within @ steady + np.eye(len(rest)), within @ rising + t * np.eye(len(rest))
        return np.vstack(rows) if rows else np.zeros((0, len(self.targets) * (1 + drift)))

    def first_seen(self, hop: int) -> Floats:
        """(told, rest): what of an unheard peer's update of one round is in what the told say `hop` >= 1 rounds on."""
        _, _, within, across = self._blocks()
        seen: Floats = across @ np.linalg.matrix_power(within, hop - 1)
        return seen

    def left_sides(self, rounds: int) -> Floats:
        """L (rounds * told, rounds * heard): what is on the left of the equations, from what was said, by round."""
        told, rest, within, across = self._blocks()
        heard = list(self.heard)
        into, direct = self.weights[np.ix_(rest, heard)], self.weights[np.ix_(told, heard)]
        matrix = np.zeros((rounds, len(told), rounds, len(heard)))
        driven = np.zeros((len(rest), rounds, len(heard)))  # of the unheard, by what was said up to two rounds ago
        for t in range(rounds):
            for place, v in enumerate(told):
                matrix[t, place, t, heard.index(v)] = 1.0
            if t:
                matrix[t, :, t - 1] -= direct
                matrix[t] -= np.tensordot(across, driven, 1)
                driven = np.tensordot(within, driven, 1)
                driven[:, t - 1] += into
        return matrix.reshape(rounds * len(told), rounds * len(heard))

    def noise(self, rounds: int) -> Floats:
        """The covariance (rounds * told, rounds * told) that everybody's rounding, of variance 1 a round, has in o."""
        told, rest, within, across = self._blocks()
        size = len(told)
        power, responses = np.eye(len(rest)), []
        for _ in range(rounds):
            responses.append(across @ power)
            power = within @ power
        cov = np.eye(rounds * size)
        for t in range(rounds):
            for s in range(rounds):
                shared = range(min(t, s))  # the unheard peers' rounding of round r < min(t, s) is in both
                block = sum((responses[t - 1 - r] @ responses[s - 1 - r].T for r in shared), np.zeros((size, size)))
                cov[t * size : (t + 1) * size, s * size : (s + 1) * size] += block
        return cov

    def determinable(self, rounds: int, drift: bool = False) -> frozenset[PeerId]:
        """The targets whose u the equations of so many rounds single out, were there no rounding.

        Steady updates: by Krylov spaces, made orthogonal step by step, for in K itself the far peers' columns are too
        small to be told from zero. With `drift`: from K, as far as float64 goes.
        """
        if drift:
            return self._singled_out(self.knowledge(rounds, drift=True))
        _, rest, within, across = self._blocks()
        basis, rows = np.zeros((0, len(rest))), across
        for _ in range(rounds - 1):
            known = len(basis)
            basis = _orthonormal(basis, rows)
            rows = basis[known:] @ within
        leverage = np.square(basis).sum(axis=0)
        found = [j for j, share in zip(rest, leverage, strict=True) if share > 1 - _ALONE]
        return frozenset(self.peers[i] for i in (*self.told, *found)) if rounds else frozenset()

    def _singled_out(self, k: Floats) -> frozenset[PeerId]:
        scaled = k / np.maximum(np.linalg.norm(k, axis=0), 1e-300)
        leverage = np.diag(np.linalg.pinv(scaled, rcond=1e-13) @ scaled)
        return frozenset(self.peers[i] for i, share in zip(self.targets, leverage, strict=False) if share > 1 - _ALONE)

    def _blocks(self) -> tuple[list[int], list[int], Floats, Floats]:
        told, rest = list(self.told), list(self.rest)
        return told, rest, self.weights[np.ix_(rest, rest)], self.weights[np.ix_(told, rest)]


def determinable(weights: Weights, coalition: Collection[PeerId], rounds: int) -> frozenset[PeerId]:
    """Whose constant updates a coalition can solve for after so many rounds, in exact arithmetic."""
    return System.of(weights, coalition).determinable(rounds)


def reach(weights: Weights, coalition: Collection[PeerId], rounds: int, precision: float) -> Mapping[PeerId, float]:
    """The predicted relative error of each target's update, one by one; who is not determinable is left out.

    `precision`: rounding of what is said, relative to an update: eps ||theta|| / ||u||. The length of the peer's row of
    the generalised inverse, which is what rounding is amplified by, times that.
    """
    system = System.of(weights, coalition)
    alone = system.determinable(rounds)
    k = system.knowledge(rounds)
    whiten = np.linalg.inv(np.linalg.cholesky(system.noise(rounds)))
    amplified = np.linalg.norm(np.linalg.pinv(whiten @ k, rcond=1e-15), axis=1)
    found = zip(system.targets, amplified, strict=True)
    return {system.peers[i]: float(a) * precision for i, a in found if system.peers[i] in alone}


def _unit(rows: Floats) -> Floats:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Floats = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    return unit


def _orthonormal(basis: Floats, rows: Floats) -> Floats:
    """`basis` (r, n) with what is new in `rows` (m, n), Gram-Schmidt done twice."""
    for row in _unit(rows):
        rest = row.copy()
        for _ in range(2):
            rest -= basis.T @ (basis @ rest)
        if (length := np.linalg.norm(rest)) > _ALONE:
            basis = np.vstack([basis, rest / length])
    return basis
