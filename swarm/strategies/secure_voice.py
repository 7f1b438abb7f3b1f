"""How one member of a sum by masks says things: to those that are there, to itself, and again where it was missed."""

from collections.abc import Iterable

from veilmesh.peer.machine import Send
from veilmesh.swarm import messages
from veilmesh.swarm.secure_messages import SumMessage
from veilmesh.swarm.strategies.secure_plan import SumPlan
from veilmesh.swarm.strategies.secure_state import SumState

__all__ = ["SumVoice"]


class SumVoice(SumState):
    """Keeps all that was said, so that it can be said again, to the byte."""

    def __init__(self, plan: SumPlan, me: int) -> None:
        super().__init__(plan, me)
        self._said: dict[int, list[bytes]] = {}
        self._repeated: set[int] = set()

    def _tell(self, message: SumMessage, places: Iterable[int]) -> list[Send]:
        """Say something to several, and to ourselves."""
        self._inbox.take(self._me, message)
        return self._say(message, [place for place in places if place != self._me])

    def _say(self, message: SumMessage, places: Iterable[int]) -> list[Send]:
        body, sends = messages.encode(message), list[Send]()
        for place in places:
            if place == self._me:
                self._inbox.take(place, message)
                continue
            self._said.setdefault(place, []).append(body)
            if self._plan.members[place] in self._present:
                sends.append(Send(self._plan.members[place], body))
        return sends

    def _repeat(self, place: int) -> list[Send]:
        to = self._plan.members[place]
        return [Send(to, body) for body in self._said.get(place, ())] if to in self._present else []

    def _again_once(self, place: int) -> list[Send]:
        """Who says a thing twice may have missed ours."""
        if place in self._repeated:
            return []
        self._repeated.add(place)
        return self._repeat(place)
