"""How training pictures are divided among peers: independent draws, Dirichlet label skew, a few classes each or mostly.

Every partition is pure in its generator. The parts are disjoint, sorted, and nobody's is empty; together they cover
every picture, except that `label-skew` leaves out classes which no peer was given, and `dominant` what would spoil its
mix.
"""

from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from veilmesh.core import BadInput, Registry
from veilmesh.tasks.work import Indices

__all__ = ["PARTITIONS", "Dirichlet", "Dominant", "Iid", "LabelSkew", "Partition"]


class Partition(Protocol):
    """A rule that divides pictures among peers by their labels."""

    def split(self, labels: NDArray[np.int64], peers: int, rng: np.random.Generator) -> list[Indices]:
        """One sorted index array a peer, over `labels` (N,). Raises BadInput where somebody would have nothing."""
        ...


PARTITIONS: Registry[Partition] = Registry("partition", "veilmesh.tasks.partition")


@PARTITIONS.register("iid")
@dataclass(frozen=True, slots=True)
class Iid:
    """Everybody draws alike: a random division into parts whose sizes differ by one at most."""

    def split(self, labels: NDArray[np.int64], peers: int, rng: np.random.Generator) -> list[Indices]:
        """As `Partition.split`; labels may also be per pixel, (N, H, W)."""
        _require_enough(len(labels), peers)
        return [np.sort(part) for part in np.array_split(rng.permutation(len(labels)), peers)]


@PARTITIONS.register("dirichlet")
@dataclass(frozen=True, slots=True)
class Dirichlet:
    """Each class is divided in proportions drawn from Dirichlet(alpha): the smaller alpha, the more one-sided.

    Source: Hsu, Qi, Brown, arXiv 1909.06335. A peer whom the draw leaves with nothing takes one picture from the peer
    that has most.
    """

    alpha: Annotated[float, Field(ge=1e-3, le=1e6)] = 0.5

    def split(self, labels: NDArray[np.int64], peers: int, rng: np.random.Generator) -> list[Indices]:
        """As `Partition.split`."""
        _require_per_picture(labels, "dirichlet")
        _require_enough(len(labels), peers)
        parts: list[list[int]] = [[] for _ in range(peers)]
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            shares = rng.dirichlet(np.full(peers, self.alpha))
            cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
            for part, piece in zip(parts, np.split(members, cuts), strict=True):
                part.extend(piece.tolist())
        _feed_the_empty(parts)
        return [np.array(sorted(part), dtype=np.int64) for part in parts]


@PARTITIONS.register("label-skew")
@dataclass(frozen=True, slots=True)
class LabelSkew:
    """Every peer holds pictures of only a few classes; a class is divided evenly among the peers that hold it.

    With fewer than classes / classes_per_peer peers some classes are held by nobody, and their pictures are left out.
    """

    classes_per_peer: Annotated[int, Field(ge=1)] = 2

    def split(self, labels: NDArray[np.int64], peers: int, rng: np.random.Generator) -> list[Indices]:
        """As `Partition.split`, but for the classes that nobody holds."""
        _require_per_picture(labels, "label-skew")
        _require_enough(len(labels), peers)
        parts: list[list[int]] = [[] for _ in range(peers)]
        held = self._holders(np.unique(labels), peers, rng)
        # The scarcest class first, and those who have least first: so that a class of few pictures feeds the hungry.
        for label, holders in sorted(held.items(), key=lambda item: (int(np.sum(labels == item[0])), item[0])):
            members = rng.permutation(np.flatnonzero(labels == label)).tolist()
            hungry = sorted(holders, key=lambda peer: (len(parts[peer]), peer))
            for place, picture in enumerate(members):
                parts[hungry[place % len(hungry)]].append(picture)
        if not all(parts):
            raise BadInput(
                f"label-skew with {self.classes_per_peer} classes a peer leaves peer {parts.index([])} of {peers} "
                "without a picture; use fewer peers, more classes a peer, or more pictures."
            )
        return [np.array(sorted(part), dtype=np.int64) for part in parts]

    def _holders(self, classes: NDArray[np.int64], peers: int, rng: np.random.Generator) -> dict[int, list[int]]:
        if self.classes_per_peer > len(classes):
            raise BadInput(
                f"label-skew cannot give a peer {self.classes_per_peer} classes: the pictures have {len(classes)}."
            )
        order = rng.permutation(classes).tolist()
        held: dict[int, list[int]] = {}
        for turn in range(peers * self.classes_per_peer):
            held.setdefault(order[turn % len(order)], []).append(turn // self.classes_per_peer)
        return held


@PARTITIONS.register("dominant")
@dataclass(frozen=True, slots=True)
class Dominant:
    """A few dominant classes make up a `share` of every peer's pictures, evenly; the rest is as the whole is.

    Source: the experiments of HyperFL, Guo et al. 2025: of ten classes, [0, 1, 2], [2, 3, 4], [4, 5, 6], [6, 7, 8] and
    [8, 9, 0] dominate at 80 %, here at peers 0, 5, ..., at peers 1, 6, ... and so on. Everybody has equally many
    pictures, as many as the scarcest class allows; what is left is nobody's.
    """

    share: Annotated[float, Field(ge=0, le=1)] = 0.8
    classes_per_peer: Annotated[int, Field(ge=1)] = 3

    def split(self, labels: NDArray[np.int64], peers: int, rng: np.random.Generator) -> list[Indices]:
        """As `Partition.split`, but for the pictures that nobody holds."""
        _require_per_picture(labels, "dominant")
        _require_enough(len(labels), peers)
        classes, counts = np.unique(labels, return_counts=True)
        mixes = self._mixes(counts, peers)
        size = float(np.min(counts[mixes.any(axis=0)] / mixes.sum(axis=0)[mixes.any(axis=0)]))
        parts: list[list[int]] = [[] for _ in range(peers)]
        for place, label in enumerate(classes):
            members = rng.permutation(np.flatnonzero(labels == label))
            cuts = np.floor(np.cumsum(mixes[:, place]) * size + 1e-9).astype(np.int64)
            for part, piece in zip(parts, np.split(members, cuts)[:-1], strict=True):
                part.extend(piece.tolist())
        if not all(parts):
            raise BadInput(
                f"dominant leaves peer {parts.index([])} of {peers} without a picture: the scarcest class has only "
                f"{counts.min()}; use fewer peers or more pictures."
            )
        return [np.array(sorted(part), dtype=np.int64) for part in parts]

    def _mixes(self, counts: NDArray[np.int64], peers: int) -> NDArray[np.float64]:
        """What share of its pictures each peer has of each class, (peers, classes); rows add up to one."""
        classes = len(counts)
        width = min(self.classes_per_peer, classes)
        stride = max(1, width - 1)
        mixes = np.tile((1 - self.share) * counts / counts.sum(), (peers, 1))
        for peer in range(peers):
            first = peer % -(-classes // stride) * stride
            mixes[peer, (first + np.arange(width)) % classes] += self.share / width
        return mixes


def _feed_the_empty(parts: list[list[int]]) -> None:
    for part in parts:
        if not part:
            part.append(max(parts, key=len).pop())


def _require_enough(pictures: int, peers: int) -> None:
    if peers < 1:
        raise BadInput(f"Pictures cannot be divided among {peers} peers; use at least 1.")
    if pictures < peers:
        raise BadInput(f"{pictures} training pictures cannot be divided among {peers} peers; use fewer peers.")


def _require_per_picture(labels: NDArray[np.int64], name: str) -> None:
    if labels.ndim != 1:
        raise BadInput(f"The partition {name!r} needs one label a picture; where every pixel has one, use 'iid'.")
