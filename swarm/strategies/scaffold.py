"""SCAFFOLD: FedAvg whose clients correct every local gradient by how their data differ from everybody's.

Theory of operation (Karimireddy et al. 2020, "SCAFFOLD: stochastic controlled averaging for federated learning",
algorithm 1, option II, server step size 1). The hub keeps a control variate c, client i its own c_i, all zero at first.
Per round, with K local steps of size lr from x to y_i:

    y_i  <- y_i - lr (g_i(y_i) - c_i + c)                 K times; the worker adds c - c_i to every gradient
    c_i+  = c_i - c + (x - y_i) / (K lr)                  which is the mean of the gradients g_i
    x    += mean_i (y_i - x);   c += |S| / N mean_i (c_i+ - c_i)      over the |S| of N clients that were heard

so that sum_i c_i = N c. Clients weigh alike, as in the paper. Option II reads the gradients off the way gone, which
only plain SGD lets it; a scenario with momentum or Adam is refused.

What is said. Both differences give gradients away: y_i - x, and c_i+ - c_i = -c + (x - y_i) / (K lr) just as much. So
both have to be guarded, and one guard does it: guards see y_i - x, and c_i+ is computed from what they left of it.
The second difference is then a function of the first and of what the hub said, and adds nothing to what the hub knows;
a second draw of noise on the same gradients would, for the two could be averaged.

Both go through the codec. Updates have error feedback, as in FedAvg. c_i is a public copy instead: what is said is
C(c_i+ - c_i), and c_i moves by what was said (the difference coding of EF21: Richtarik et al. 2021), so what a lossy
codec left out is in the next difference, and sum_i c_i = N c stays exact, which two memories would not make it.

A client that is absent, or heard too late, keeps its c_i: every model says whose updates were taken in, and c_i moves
only then.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from veilmesh.core import Refusal, RemoteError
from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import Machine, PeerId, State
from veilmesh.swarm import messages
from veilmesh.swarm.sealer import astray
from veilmesh.swarm.strategies.base import STRATEGIES, Kit
from veilmesh.swarm.strategies.hub import Contribution, lossless
from veilmesh.swarm.strategies.star import ClientMachine, HubMachine, Star

__all__ = ["Scaffold", "ScaffoldClient", "ScaffoldHub"]


@STRATEGIES.register("scaffold")
@dataclass(frozen=True)
class Scaffold(Star):
    """Federated averaging with control variates (SCAFFOLD), against client drift; plain SGD only."""

    def _hub(self, kit: Kit) -> Machine:
        return ScaffoldHub(kit)

    def _client(self, kit: Kit) -> Machine:
        return ScaffoldClient(kit)


class ScaffoldHub(HubMachine):
    """The server, with its control variate."""

    def __init__(self, kit: Kit) -> None:
        super().__init__(kit)
        self._c = np.zeros_like(kit.initial)
        self._taken = dict.fromkeys(self._clients, -1)  # the last round whose update of a client was taken in

    def _state(self) -> State:
        return {**super()._state(), "c": self._c, **{f"taken/{p}": round_ for p, round_ in self._taken.items()}}

    def _restore(self, state: State) -> None:
        super()._restore(state)
        self._c = np.asarray(state["c"], np.float32)
        self._taken = {p: int(state[f"taken/{p}"]) for p in self._clients}

    def _astray(self) -> str | None:
        return astray(self._x) or astray(self._c)

    def _message(self) -> messages.Message:
        taken = tuple(self._taken[p] for p in self._clients)
        return messages.ControlledModel(self._round, lossless(self._x), lossless(self._c), taken)

    def _read(self, message: messages.Message) -> Contribution:
        if not isinstance(message, messages.ControlledUpdate):
            raise RemoteError(Refusal.MISMATCH, f"{type(message).__name__} at the hub")
        decode = self._kit.sealer.decode
        return message.samples, (decode(message.blob).values, decode(message.control).values)

    def _take_in(self, got: Mapping[PeerId, Contribution]) -> None:
        if not got:
            return
        share = np.float32(len(got) / len(self._clients))
        self._x = self._x + self._mean([vectors[0] for _, vectors in got.values()])
        self._c = self._c + share * self._mean([vectors[1] for _, vectors in got.values()])
        self._taken |= dict.fromkeys(got, self._round)

    def _mean(self, said: list[Vector]) -> Vector:
        return self._kit.aggregator(np.zeros_like(self._x), said, [1 / len(said)] * len(said))


class ScaffoldClient(ClientMachine):
    """A client, with its control variate."""

    hears: ClassVar[type[messages.Message]] = messages.ControlledModel

    def __init__(self, kit: Kit) -> None:
        super().__init__(kit)
        self._clients = tuple(p for p in kit.order if p != kit.server)
        self._c = np.zeros_like(kit.initial)
        self._mine = np.zeros_like(kit.initial)  # c_i, as the hub has it
        self._said: Vector | None = None  # by how much it moves, if the hub took in our update of the round ...
        self._said_in = -1  # ... this one

    def _state(self) -> State:
        return {**super()._state(), "mine": self._mine}  # what was said for the round is settled by then

    def _restore(self, state: State) -> None:
        super()._restore(state)
        self._mine = np.asarray(state["mine"], np.float32)

    def _take(self, message: messages.ControlledModel) -> None:
        if len(message.taken) != len(self._clients) or not all(-1 <= t < message.round for t in message.taken):
            raise RemoteError(Refusal.MALFORMED, "rounds that nobody can have been heard in")
        x, c = (self._kit.sealer.decode_lossless(blob) for blob in (message.blob, message.control))
        self._x, self._c = x, c
        if self._said is not None and message.taken[self._clients.index(self._kit.me)] == self._said_in:
            self._mine = self._mine + self._said
        self._said = None

    def _task(self) -> object:
        return self._kit.work.train(self._round, self._x, correction=self._c - self._mine)

    def _change(self, update: Vector) -> Vector:
        """c_i+ - c_i (d,)."""
        return (-self._c - update / np.float32(self._kit.stride)).astype(np.float32)

    def _astray(self, update: Vector) -> str | None:
        return super()._astray(update) or astray(self._change(update))

    def _message(self, update: Vector, samples: int) -> messages.Message:
        control, said = self._kit.sealer.encode(self._change(update), self._round)
        self._said, self._said_in = said, self._round
        return messages.ControlledUpdate(self._round, samples, self._encoded(update), control)
