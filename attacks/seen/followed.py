"""What a protocol adds to what peers say of themselves, as an adversary who knows the protocol follows it.

SCAFFOLD (`swarm/strategies/scaffold.py`): a client's update is -K lr times the mean of its gradients plus c - c_i, and
the hub knows both. DiLoCo (`swarm/strategies/diloco.py`): a peer's outer optimizer moves what mixing came to, by
nothing that a neighbour does not know.
"""

from collections.abc import Sequence

import numpy as np

from veilmesh.attacks.view import Public
from veilmesh.core import RemoteError
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import PeerId
from veilmesh.swarm import messages

__all__ = ["ControlVariates", "OuterSteps"]


class ControlVariates:
    """The control variates of SCAFFOLD's server and clients; where there are none, nothing changes."""

    def __init__(self, public: Public) -> None:
        self._clients: Sequence[PeerId] = [p for p in public.peers if p != public.server]
        self._dimension = public.initial.size
        self._stride = np.float32(public.local_steps * public.learning_rate)
        self._server: Vector | None = None
        self._own = {p: np.zeros_like(public.initial) for p in self._clients}
        self._said: dict[PeerId, tuple[int, Vector]] = {}  # changes that may yet be taken in

    def model(self, message: messages.ControlledModel | None) -> None:
        """What the hub says at the beginning of a round: its own variate, and whose change it took in."""
        if message is None or len(message.taken) != len(self._clients):
            return
        try:
            self._server = table.decode_lossless(message.control, self._dimension)
        except RemoteError:
            return
        for client, taken in zip(self._clients, message.taken, strict=True):
            round_, change = self._said.pop(client, (-1, None))
            if change is not None and round_ == taken:
                self._own[client] = self._own[client] + change

    def change(self, client: PeerId, message: messages.ControlledUpdate | None) -> None:
        """What a client says in a round."""
        if message is None or client not in self._own:
            return
        try:
            self._said[client] = message.round, table.decode(message.control, self._dimension).values
        except RemoteError:
            self._said.pop(client, None)

    def freed(self, client: PeerId, update: Vector) -> Vector:
        """The update (d,) as it would have been without the correction: -K lr times the mean gradient."""
        if self._server is None or client not in self._own:
            return update
        return update + self._stride * (self._server - self._own[client])


class OuterSteps:
    """Where peers of a DiLoCo begin their rounds, followed from the first one on; elsewhere, where mixing left them."""

    def __init__(self, public: Public) -> None:
        self._active = public.strategy == "diloco"
        self._initial = public.initial
        lr, momentum = public.options.get("outer_lr", 1.0), public.options.get("outer_momentum", 0.0)
        self._lr, self._momentum = np.float32(lr), np.float32(momentum)
        self._at: dict[PeerId, tuple[int, Vector, Vector, float]] = {}  # round, model, velocity, least coverage

    def start(self, peer: PeerId, round_: int, mixed: Vector, coverage: float) -> tuple[Vector, float] | None:
        """Where `peer` begins `round_`, given what mixing came to before it and the share of that which is known, and
        the least such share so far; None where it was lost sight of."""
        if not self._active:
            return mixed, coverage
        if round_ == 0:
            self._at[peer] = (0, self._initial, np.zeros_like(self._initial), 1.0)
            return self._initial, coverage
        before, x, velocity, least = self._at.pop(peer, (-1, mixed, mixed, 0.0))
        if before != round_ - 1:
            return None
        move = mixed - x
        velocity = (self._momentum * velocity + move).astype(np.float32)
        x = (x + self._lr * (move + self._momentum * velocity)).astype(np.float32)
        self._at[peer] = (round_, x, velocity, min(least, coverage))
        return x, min(least, coverage)
