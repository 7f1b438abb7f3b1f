"""Who talks to whom, and with what weight: graphs from networkx, mixing by Metropolis-Hastings.

Every graph here is undirected and connected; peers are numbered 0..n-1 in roster order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Protocol

import networkx as nx
from pydantic import Field

from veilmesh.core import BadInput, Registry, seed_number

__all__ = ["TOPOLOGIES", "Topology", "complete_rows", "lazy", "metropolis_hastings"]

_ATTEMPTS = 100
_Share = Annotated[float, Field(ge=0, le=1)]
_Degree = Annotated[int, Field(ge=1)]


class Topology(Protocol):
    """A family of graphs."""

    def graph(self, peers: int, seed: int) -> "nx.Graph[int]":
        """A connected graph on 0..peers-1. Raises BadInput if this family has none of that size."""
        ...


TOPOLOGIES: Registry[Topology] = Registry("topology", "veilmesh.swarm.topology")


@TOPOLOGIES.register("complete")
@dataclass(frozen=True)
class Complete:
    """Everybody hears everybody."""

    def graph(self, peers: int, seed: int) -> "nx.Graph[int]":
        return nx.complete_graph(peers)


@TOPOLOGIES.register("ring")
@dataclass(frozen=True)
class Ring:
    """Two neighbours each."""

    def graph(self, peers: int, seed: int) -> "nx.Graph[int]":
        return nx.cycle_graph(peers) if peers > 2 else nx.complete_graph(peers)


@TOPOLOGIES.register("line")
@dataclass(frozen=True)
class Line:
    """Two neighbours each, and one for the first and the last."""

    def graph(self, peers: int, seed: int) -> "nx.Graph[int]":
        return nx.path_graph(peers)


@TOPOLOGIES.register("k-regular")
@dataclass(frozen=True)
class KRegular:
    """A random graph in which everybody has `k` neighbours."""

    k: _Degree = 4

    def graph(self, peers: int, seed: int) -> "nx.Graph[int]":
        if self.k >= peers or self.k * peers % 2:
            raise BadInput(f"No {self.k}-regular graph has {peers} peers; choose an even k x peers with k below peers.")
        return _connected(
            f"{self.k}-regular", lambda attempt: nx.random_regular_graph(self.k, peers, seed=_number(seed, attempt))
        )


@TOPOLOGIES.register("erdos-renyi")
@dataclass(frozen=True)
class ErdosRenyi:
    """Every pair is joined with probability `p`; drawn again until connected (Erdos and Renyi 1959)."""

    p: _Share = 0.5

    def graph(self, peers: int, seed: int) -> "nx.Graph[int]":
        return _connected(
            f"Erdos-Renyi({self.p})", lambda attempt: nx.gnp_random_graph(peers, self.p, seed=_number(seed, attempt))
        )


@TOPOLOGIES.register("small-world")
@dataclass(frozen=True)
class SmallWorld:
    """A ring of `k` nearest neighbours, rewired with probability `p` (Watts and Strogatz 1998)."""

    k: _Degree = 4
    p: _Share = 0.1

    def graph(self, peers: int, seed: int) -> "nx.Graph[int]":
        if not 2 <= self.k < peers:
            raise BadInput(f"A small world of {peers} peers needs 2 <= k < {peers}, not k = {self.k}.")
        return _connected(
            f"small-world({self.k}, {self.p})",
            lambda attempt: nx.watts_strogatz_graph(peers, self.k, self.p, seed=_number(seed, attempt)),
        )


def metropolis_hastings(graph: "nx.Graph[int]") -> dict[int, dict[int, float]]:
    """The symmetric, doubly stochastic mixing matrix W with W_ij = 1 / (1 + max(d_i, d_j)), own weight included.

    Rows are {peer: {neighbour or self: weight}} (Xiao, Boyd and Kim 2007, "Distributed average consensus", eq. 5).
    """
    degree = dict(graph.degree())
    rows: dict[int, dict[int, float]] = {}
    for i in sorted(graph.nodes):
        row = {j: 1.0 / (1 + max(degree[i], degree[j])) for j in sorted(graph.neighbors(i))}
        row[i] = 1.0 - sum(row.values())
        rows[i] = row
    return rows


def complete_rows(graph: "nx.Graph[int]", protocol: str) -> dict[int, dict[int, float]]:
    """W = 1/n everywhere, for a protocol in which anybody may have to speak to anybody. Raises BadInput where a link is
    missing."""
    peers = graph.number_of_nodes()
    if graph.number_of_edges() < peers * (peers - 1) // 2:
        raise BadInput(f"{protocol} needs a link between any two peers; set topology to complete.")
    return metropolis_hastings(graph)


def lazy(rows: dict[int, dict[int, float]], step: float) -> dict[int, dict[int, float]]:
    """(1 - step) I + step W: the same mixing, a part of the way. `step` in (0, 1]."""
    if step == 1:
        return rows
    mixed = {i: {j: step * w for j, w in row.items() if j != i} for i, row in rows.items()}
    return {i: {**row, i: 1.0 - sum(row.values())} for i, row in mixed.items()}


def _connected(name: str, draw: "Callable[[int], nx.Graph[int]]") -> "nx.Graph[int]":
    for attempt in range(_ATTEMPTS):
        graph = draw(attempt)
        if nx.is_connected(graph):
            return graph
    raise BadInput(f"No connected {name} graph in {_ATTEMPTS} draws; make it denser.")


def _number(seed: int, attempt: int) -> int:
    return seed_number(seed, "topology", attempt) % (1 << 32)
