"""Which sum by masks a peer takes part in, round by round: drawn alike by everybody from a public seed."""

from dataclasses import dataclass
from itertools import chain

from veilmesh.core import BadInput
from veilmesh.peer.machine import PeerId
from veilmesh.swarm.schedule import cohort_groups, cohorts, random_groups
from veilmesh.swarm.secure_messages import LARGEST_GROUP
from veilmesh.swarm.strategies.secure_plan import SumPlan, lowest_threshold

__all__ = ["SumSchedule"]


@dataclass(frozen=True)
class SumSchedule:
    """Groups of about `group` peers of `order`, anew in every round, of whole cohorts of `cohort` peers or more, which
    stay; with 1, of peers. `threshold`: of those that stay to the end, where it is more than two thirds.

    Raises BadInput where there are too few peers for a cohort, or where groups would have only one, or too many peers.
    """

    seed: int
    order: tuple[PeerId, ...]
    group: int
    cohort: int = 1
    threshold: int = 0

    def __post_init__(self) -> None:
        peers, divided = len(self.order), self._divided
        if self.cohort > peers:
            raise BadInput(f"There is no cohort of {self.cohort} among {peers} peers; lower cohort, or add peers.")
        if self.cohort > 1 and len(divided) > 1 and 2 * self.cohort > self.group:
            raise BadInput(
                f"Groups of {self.group} with one cohort of {self.cohort} would never mix with others; "
                f"take group = {2 * self.cohort} or more, or lower cohort."
            )
        if self.cohort > 1 and (most := self._most()) > LARGEST_GROUP:
            raise BadInput(
                f"Cohorts of {self.cohort} among {peers} peers make groups of up to {most}, and {LARGEST_GROUP} is the "
                "most; lower group or cohort."
            )

    def cohorts(self, round_: int, me: int) -> tuple[tuple[int, ...], ...]:
        """Those that make up a peer's group in a round; all by place in the roster."""
        if self.cohort == 1:
            return tuple((place,) for place in random_groups(self.seed, round_, len(self.order), self.group)[me])
        return cohort_groups(self.seed, round_, self._divided, self.group // self.cohort)[me]

    def members(self, round_: int, me: int) -> tuple[int, ...]:
        """A peer's group in a round, by place in the roster and in its order."""
        return tuple(sorted(chain.from_iterable(self.cohorts(round_, me))))

    def plan(
        self, round_: int, me: int, length: int, bits: int, copies: int | None = None, number: int = 0
    ) -> SumPlan | None:
        """A peer's sum of `length` words, the `number`-th of a round; None where there is nobody to add to. `copies`:
        None for so many that no loss which the threshold allows costs anything."""
        places = self.members(round_, me)
        if len(places) < 2:
            return None
        threshold = min(max(self.threshold, lowest_threshold(len(places))), len(places))
        within = {place: number for number, place in enumerate(places)}
        together = [tuple(within[place] for place in cohort) for cohort in self.cohorts(round_, me)]
        return SumPlan(
            tuple(self.order[place] for place in places),
            round_,
            number,
            threshold,
            length,
            bits,
            copies or len(places) - threshold + 1,
            f"secure-groups/{self.seed}".encode(),
            tuple(sorted(together)) if self.cohort > 1 else (),
        )

    @property
    def _divided(self) -> tuple[tuple[int, ...], ...]:
        return cohorts(self.seed, len(self.order), self.cohort)

    def _most(self) -> int:
        """How many peers a group may have."""
        count = len(self._divided)
        groups = len(set(random_groups(self.seed, 0, count, max(1, self.group // self.cohort))))
        return -(-count // groups) * max(map(len, self._divided))
