"""Receivers that tell their accomplices the keys which were to be theirs alone.

Behind blind proxies (`swarm/strategies/blind_proxy.py`) a sum is all that a receiver learns, and nothing is what its
proxy learns, as long as the two do not pool what they have. These do, and are honest in everything else.
"""

from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from veilmesh.attacks.tampers.base import TAMPERS, Insider, Labels, Pictures, peers_only
from veilmesh.core import BadInput, RemoteError
from veilmesh.crypto.homomorphic import Keys
from veilmesh.peer.machine import Effect, Event, Machine, Received, Send, WorkDone
from veilmesh.swarm import messages

__all__ = ["PoolKeys"]


@TAMPERS.register("pool-keys")
@dataclass(frozen=True)
class PoolKeys:
    """Honest but for one thing: tell all accomplices one's own secret key (blind-proxy only)."""

    def check(self, strategy: str, classes: int, server: bool = False) -> None:
        peers_only(server)
        if strategy != "blind-proxy":
            raise BadInput(f"pool-keys is for meshes with blind proxies, not for {strategy!r}; set strategy to it.")

    def wrap(self, honest: Machine, insider: Insider, rng: np.random.Generator) -> Machine:
        return _Pooling(honest, insider)

    def data(self, x: Pictures, y: Labels, classes: int, rng: np.random.Generator) -> tuple[Pictures, Labels]:
        return x, y


class _Pooling:
    """An honest machine that speaks of its keys."""

    def __init__(self, honest: Machine, insider: Insider) -> None:
        self._honest = honest
        self._accomplices = [p for p in insider.kit.order if p in insider.malicious and p != insider.kit.me]

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case WorkDone(name, Keys() as keys):
                secret = messages.Key(int(name.rpartition("-")[2]), keys.serialise_secret())
                tell: list[Effect] = [Send(p, messages.encode(secret)) for p in self._accomplices]
                return [*tell, *self._honest.handle(event, now)]
            case Received(sender, body) if sender in self._accomplices and _is_key(body):
                with suppress(RemoteError):  # a secret is on record, and none of the honest machine's business
                    return self._honest.handle(event, now)
                return []
        return self._honest.handle(event, now)


def _is_key(body: bytes) -> bool:
    return isinstance(messages.decode(body), messages.Key)
