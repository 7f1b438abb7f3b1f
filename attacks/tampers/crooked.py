"""Shares that do not fit together: what a malicious dealer can try where updates are shared and not said."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from veilmesh.attacks.tampers.base import TAMPERS, Insider, Labels, Pictures, peers_only
from veilmesh.core import BadInput
from veilmesh.crypto.field import PRIME
from veilmesh.peer.machine import Effect, Event, Machine, Note, PeerId, Send
from veilmesh.swarm import messages
from veilmesh.swarm.strategies.base import Kit
from veilmesh.swarm.strategies.brea_steps import Deal, Step, commitment, round_label, said, unchecked

__all__ = ["WrongShare"]


@TAMPERS.register("wrong-share")
@dataclass(frozen=True)
class WrongShare:
    """Deal to `victims` honest members a share of another update than to the rest, by one in one coordinate.

    `promised`: whether the commitments are to what is dealt. Otherwise each victim sees at once that they are not.
    """

    victims: Annotated[int, Field(ge=1)] = 1
    promised: bool = True

    def check(self, strategy: str, classes: int, server: bool = False) -> None:
        peers_only(server)
        if strategy != "brea":
            raise BadInput("wrong-share deals shares that do not fit, and only brea deals any; take strategy brea.")

    def wrap(self, honest: Machine, insider: Insider, rng: np.random.Generator) -> Machine:
        near = [p for p in insider.kit.order if p not in insider.malicious]
        return _Dealer(honest, insider.kit, tuple(near[: self.victims]), self.promised)

    def data(self, x: Pictures, y: Labels, classes: int, rng: np.random.Generator) -> tuple[Pictures, Labels]:
        return x, y


class _Dealer:
    """An honest machine whose deals are changed on their way out."""

    def __init__(self, honest: Machine, kit: Kit, victims: tuple[PeerId, ...], promised: bool) -> None:
        self._honest = honest
        self._kit, self._victims, self._promised = kit, victims, promised

    def handle(self, event: Event, now: float) -> list[Effect]:
        effects = self._honest.handle(event, now)
        deals: dict[PeerId, tuple[messages.Step, Deal]] = {}
        for effect in effects:
            message = messages.decode(effect.body) if isinstance(effect, Send) else None
            if isinstance(effect, Send) and isinstance(message, messages.Step) and message.step == Step.DEAL:
                deals[effect.to] = (message, unchecked(message.body))
        if not deals:
            return effects
        bodies = self._bent(deals)
        note = Note("tampered", {"round": next(iter(deals.values()))[0].round, "peers": len(self._victims)})
        changed = [Send(e.to, bodies.pop(e.to)) if isinstance(e, Send) and e.to in bodies else e for e in effects]
        return [*changed, note]

    def _bent(self, deals: dict[PeerId, tuple[messages.Step, Deal]]) -> dict[PeerId, bytes]:
        shares = {to: _off_by_one(deal.share) if to in self._victims else deal.share for to, (_, deal) in deals.items()}
        promised = list(next(iter(deals.values()))[1].commitments)
        me = self._kit.order.index(self._kit.me)
        for to, (message, deal) in deals.items():
            if self._promised:
                place, label = self._kit.order.index(to), round_label(self._kit.seed, message.round)
                promised[place] = commitment(label, me, place, deal.salt, shares[to])
        bent = {to: deal._replace(share=shares[to], commitments=tuple(promised)) for to, (_, deal) in deals.items()}
        return {to: messages.encode(messages.Step(m.round, m.step, said(bent[to]))) for to, (m, _) in deals.items()}


def _off_by_one(share: bytes) -> bytes:
    words = np.frombuffer(share, "<u4").copy()
    words[0] = (int(words[0]) + 1) % PRIME
    return words.tobytes()
