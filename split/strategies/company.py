"""Who plays which stage now, and which works are under way: what a member's halves have in common."""

from collections.abc import Callable

from veilmesh.core import LocalError, Refusal, RemoteError
from veilmesh.peer.machine import Effect, PeerId, Work
from veilmesh.split.strategies.base import SplitKit
from veilmesh.split.work import Task

__all__ = ["Company", "Desk"]


class Company:
    """The players of every stage, as the data owners say; standbys take the place of who is gone."""

    def __init__(self, kit: SplitKit) -> None:
        self._kit = kit
        self._players = [list(route) for route in kit.plan.route]
        self._spare = list(kit.plan.standbys)
        self.recasts: dict[tuple[int, int], int] = {}  # by head and stage: who plays it now, in another's place
        self.present: frozenset[PeerId] = frozenset()  # of the others

    def player(self, head: int, stage: int) -> PeerId:
        """Who plays `stage` for data owner `head`. Raises RemoteError(MISMATCH) where there is no such place."""
        if not (0 <= head < len(self._players) and 0 <= stage < len(self._players[head])):
            raise RemoteError(Refusal.MISMATCH, "a stage that nobody plays")
        return self._kit.order[self._players[head][stage]]

    def require(self, who: PeerId, head: int, stage: int) -> None:
        """Raises RemoteError(MISMATCH) if `who` does not play `stage` for `head`."""
        if self.player(head, stage) != who:
            raise RemoteError(Refusal.MISMATCH, "said by one whose part it is not")

    def recast(self, head: int, stage: int, player: int) -> bool:
        """From now on member `player` plays `stage` for `head`; whether that is news. Raises RemoteError(MISMATCH): not
        a standby's part."""
        current = self.player(head, stage)
        if self._kit.order.index(current) == player:
            return False
        if stage == 0 or player not in self._kit.plan.standbys:
            raise RemoteError(Refusal.MISMATCH, "a part that cannot be given away")
        self._players[head][stage] = player
        self.recasts[head, stage] = player
        if player in self._spare:
            self._spare.remove(player)
        return True

    @property
    def standbys(self) -> list[PeerId]:
        """Who is there to replace somebody, the next one first."""
        near = [self._kit.order[i] for i in self._spare]
        return [peer for peer in near if peer in self.present]

    def name(self, head: int, stage: int) -> str:
        """What the player of a stage is called."""
        return self._kit.plan.seats[self._players[head][stage]].name

    def missing(self, head: int) -> list[int]:
        """The stages of `head` whose players are gone."""
        players = enumerate(self._kit.order[i] for i in self._players[head])
        return [stage for stage, peer in players if peer != self._kit.me and peer not in self.present]


class Desk:
    """Works that were asked for, and what is to be done with their results."""

    def __init__(self) -> None:
        self._then: dict[str, Callable[[object], list[Effect]]] = {}

    def ask(self, name: str, task: Task, then: Callable[[object], list[Effect]]) -> Work:
        """The effect that asks for `task`. Raises LocalError if one of that name is under way."""
        if name in self._then:
            raise LocalError(f"the work {name} is under way already")
        self._then[name] = then
        return Work(name, task)

    def done(self, name: str, result: object) -> list[Effect]:
        """What follows from a result."""
        return self._then.pop(name)(result)
