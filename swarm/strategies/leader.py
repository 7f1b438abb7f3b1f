"""Merging by an elected leader: a star whose hub is one of the peers, and another one every few rounds.

Theory of operation (as HPE Swarm Learning does it, Warnat-Herresthal et al. 2021, "Swarm Learning for decentralized and
confidential clinical machine learning", without its blockchain): all hold the same model x; in a round

    everybody trains, and says its update to the leader        after the guards, through the codec, with error feedback
    the leader merges them, its own too, by the aggregator     weighted by examples, in roster order
    and says the next model to everybody, losslessly

to the bit what a star does with these peers as clients. A leader serves to the end of a term, `term` rounds; it is
elected (see `election`) while its first round is being trained, so an election costs hardly any time. When it dies, or
says nothing for twice the round's patience, the others elect another, and say to that one what they have already said:
no round is trained twice. A leader that has no updates of a strict majority steps down instead of merging.

Peers that hold different models (some had heard the last one of a leader that died) take their new leader's, which at
most goes back one round; an elected leader is never behind the most. Models are ordered by ballot, then by round.

What a leader sees: all that a star's server sees, every peer's update, during its term; over a long run, every peer in
turn. What a lying leader can do: say any model within shape and range, and of a round up to the end of its term.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import networkx as nx
from pydantic import Field

from veilmesh.peer.machine import Machine
from veilmesh.swarm.strategies.base import STRATEGIES, Kit
from veilmesh.swarm.strategies.merging import LeaderMachine
from veilmesh.swarm.topology import complete_rows

__all__ = ["Leader"]


@STRATEGIES.register("leader")
@dataclass(frozen=True)
class Leader:
    """Merging by a leader that the peers elect (as in HPE Swarm Learning), with the scenario's aggregator.

    `term`: how many rounds a leader serves. `penalty`: from how many ballots one that cheated or went silent is left
    out.
    """

    term: Annotated[int, Field(ge=1)] = 10
    penalty: Annotated[int, Field(ge=0)] = 3

    centralised: ClassVar[bool] = False
    aggregates: ClassVar[bool] = True

    def machine(self, kit: Kit) -> Machine:
        return LeaderMachine(kit, self.term, self.penalty)

    def weights(self, graph: "nx.Graph[int]") -> dict[int, dict[int, float]]:
        return complete_rows(graph, "leader")
