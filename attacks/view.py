"""What an adversary sees: a vantage on a transcript, and nothing else.

`observe(vantage, transcript, public) -> View` keeps bodies only at the peers the adversary controls, and sealed
frames only where it taps the wire. An attack is a function of that `View`. The truth lives in `sim/`, where no attack
can reach (the layer check makes an import of it fail), so honest figures follow from the types.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from veilmesh.core import Registry
from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import PeerId
from veilmesh.peer.transcript import Record

__all__ = [
    "ATTACKS", "IN_PASSING", "Attack", "Guess", "Own", "Public", "Sighting", "Told", "Vantage", "View", "observe",
]  # fmt: skip

IN_PASSING: Final = PeerId("in passing")
"""Where a record was made that shows a frame on its way, between its sender and its receiver: nobody opened it there,
and it may be a sign of life or a dummy."""


@dataclass(frozen=True, slots=True)
class Vantage:
    """Where the adversary sits: the peers it controls, whether it also taps every link, the links, as pairs of ends,
    whose frames it carries as a relay or broker, and whether it is the broker, who sees more than frames."""

    controls: frozenset[PeerId]
    taps_wire: bool = False
    carries: frozenset[frozenset[PeerId]] = frozenset()
    broker: bool = False


@dataclass(frozen=True, slots=True)
class Sighting:
    """What a broker sees besides frames: who says `here` or `closed`, of whom it must say `lost` itself, and every
    `chunk` of a frame and `ack` of chunks that passes."""

    now: float
    what: str
    who: PeerId
    to: PeerId | None = None  # of chunks and acknowledgements
    size: int = 0  # bytes of the message, without MQTT's own header
    number: int = 0  # of the connection, counted by who connects; of the frame a chunk is of
    session: str = ""  # of who connects, where it says one: several hear of the same


@dataclass(frozen=True, slots=True)
class Public:
    """Exactly what the protocol announces to everybody who takes part: no data, no key, no peer's state."""

    task: str  # name of the task, e.g. "faces"
    shape: tuple[int, int, int]  # (C, H, W) of one picture, values in [0, 1]
    classes: int
    model: Mapping[str, Any]  # name and options of the network, as tasks.models builds it
    initial: Vector  # (d,) the common initial parameters
    learning_rate: float
    batch: int
    local_steps: int
    strategy: str  # its registered name: "gossip", "choco", "fedavg", ...
    codec: Mapping[str, Any]
    guards: tuple[Mapping[str, Any], ...]
    weights: Mapping[PeerId, Mapping[PeerId, float]]  # gossip matrix W: row of v -> {j: W_vj}, own weight included
    peers: tuple[PeerId, ...]  # everybody, sorted
    server: PeerId | None = None  # the star's hub
    options: Mapping[str, Any] = field(default_factory=dict)  # the strategy's, defaults included
    optimizer: str = "sgd"  # what clients train with: behind "adam", an update is no multiple of a gradient
    private: Mapping[str, Any] = field(default_factory=dict)  # of training with differential privacy: clip, noise, ...
    aggregator: str = "mean"  # what peers, or the hub, make one model of many with
    pictures: NDArray[np.float32] | None = (
        None  # (N, C, H, W) public pictures of the same kind, disjoint from all private
    )
    split: Mapping[str, Any] = field(default_factory=dict)  # in split mode: cuts, who plays what; plain data
    picture_labels: NDArray[np.int64] | None = None  # (N,) their classes, or (N, H, W) where pixels have them
    sharing: Mapping[str, Any] = field(default_factory=lambda: {"name": "model"})  # what the vectors are: name, options
    draws: int | None = None  # what everybody draws alike from, as who speaks to whom; no private stream does


class Own(Protocol):
    """The adversary's own data: of its own peers, and of nobody else."""

    def __call__(self, peer: PeerId, round_: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The pictures (B, C, H, W) and labels (B,) that a controlled peer trained on. Raises LocalError for others."""
        ...


class Told(Protocol):
    """What an easier setting tells the adversary, and no protocol would: the labels of a victim's batch, or its choice
    of public pictures."""

    def __call__(self, peer: PeerId, round_: int) -> NDArray[np.int64]:
        """Labels (B,), or (B, H, W) where every pixel has one; or places (n,)."""
        ...


@dataclass(frozen=True, slots=True)
class View:
    """All that the adversary has. `own`: what its own peers trained on; None where nobody kept it. `told`: labels,
    where an attack asked for that easier setting, which every table then names; None otherwise. `held`: in split mode,
    where a controlled peer holds the labels of a data owner's examples as a party to the protocol, those labels (n,),
    by data owner, in the order in which messages number them. `chosen`: where an attack asked for that easier setting,
    places among the public pictures that a victim chose for its public steps, step by step (n,). `sightings`: what
    passed a broker besides frames."""

    public: Public
    vantage: Vantage
    records: tuple[Record, ...]
    own: Own | None = None
    told: Told | None = None
    held: Mapping[PeerId, NDArray[np.int64]] = field(default_factory=dict)
    chosen: Told | None = None
    sightings: tuple[Sighting, ...] = ()


@dataclass(frozen=True, slots=True)
class Guess:
    """One reconstruction: what the adversary says `victim` trained on in `round`.

    `pictures` (B, C, H, W) in [0, 1]; `labels` (B,) as the attacker inferred them, or (B, H, W) where pixels have
    labels (an attack that can work on those says `per_pixel: ClassVar[bool] = True`); `loss` is the attacker's own
    objective at the end (lower is better), the only thing restarts may be chosen by. `among`: the peers behind it, the
    victim first, where the adversary saw only their sum and cannot tell them apart; B pictures are then of all of them.
    """

    victim: PeerId
    round: int
    pictures: NDArray[np.float32]
    labels: NDArray[np.int64]
    loss: float
    details: Mapping[str, Any] = field(default_factory=dict)
    among: tuple[PeerId, ...] = ()


class Attack(Protocol):
    """A reconstruction attack: pure in its View and its generator. Needs the fields of its dataclass, nothing more."""

    reconstructs: ClassVar[str]  # what the guesses are: "pictures", "labels", ...

    def run(self, view: View, rng: np.random.Generator) -> Iterable[Guess]:
        """Guesses, as they come."""
        ...


def observe(
    vantage: Vantage, transcript: Iterable[Record], public: Public, own: Own | None = None, told: Told | None = None,
    held: Mapping[PeerId, NDArray[np.int64]] | None = None, chosen: Told | None = None,
    sightings: Iterable[Sighting] = (),
) -> View:  # fmt: skip
    """The part of a transcript that `vantage` sees. Bodies survive only at controlled peers; frames only on a tap, or
    where it carries them."""
    seen = []
    for record in transcript:
        inside = record.at in vantage.controls
        on_its_way = record.at in (record.to, IN_PASSING)
        carried = on_its_way and frozenset((record.sender, record.to)) in vantage.carries
        if inside or vantage.taps_wire or carried:
            seen.append(record.as_seen(body=inside, frame=vantage.taps_wire or carried))
    sighted = tuple(sightings) if vantage.broker else ()
    return View(public, vantage, tuple(seen), own, told, held or {}, chosen, sighted)


ATTACKS: Registry[Attack] = Registry("attack", "veilmesh.attacks.inversion", further=("veilmesh.attacks.smashed",))
