"""Who mixes with whom in a mesh whose members come and go: the scenario's topology on whoever is there.

Only graphs that hardly change with one member more or less: a complete one, or the ring of the sorted ids. Members that
believe the same of who is there get rows of one matrix; while they do not, each has a row that adds up to one,
which is all that mixing needs to stay inside the range of what was said.
"""

from collections.abc import Mapping, Sequence

from veilmesh.peer.machine import PeerId
from veilmesh.swarm.strategies.base import Strategy
from veilmesh.swarm.topology import Topology

__all__ = ["Overlay"]

_SIZES = 16  # graphs that are remembered: a mesh has a few sizes for long, and many for a moment


class Overlay:
    """Rows of W for any number of members.

    Args:
        strategy: whose weights.
        topology: the family of graphs.
        seed: the scenario's, for graphs that are drawn.
    """

    def __init__(self, strategy: Strategy, topology: Topology, seed: int) -> None:
        self._strategy = strategy
        self._topology = topology
        self._seed = seed
        self._rows: dict[int, Mapping[int, Mapping[int, float]]] = {1: {0: {0: 1.0}}}

    def row(self, me: PeerId, members: Sequence[PeerId]) -> dict[PeerId, float]:
        """My weights for the members that are there, myself among them, sorted."""
        rows = self._of(len(members))
        return {members[j]: weight for j, weight in rows[members.index(me)].items()}

    def _of(self, size: int) -> Mapping[int, Mapping[int, float]]:
        if size not in self._rows:
            if len(self._rows) >= _SIZES:
                del self._rows[next(size for size in self._rows if size > 1)]
            self._rows[size] = self._strategy.weights(self._topology.graph(size, self._seed))
        return self._rows[size]
