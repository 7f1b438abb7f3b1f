"""What passes a relay or a broker, as members' own taps write it down: every frame with its time, and what besides.

A member's tap stands at its way out, behind the seal. Over MQTT it is told every message that is published and every
presence that is heard, and puts frames together from chunks as anybody at the broker can; elsewhere it is told every
frame that is handed to the transport, which stands for a broker that everybody would use. That the two see what a
broker sees, is what `tests/sim/test_broker_view.py` asks a real one.

    transcript/passing/NAME.records   frames, at `IN_PASSING`
    transcript/passing/NAME.seen      a line for each sighting
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import BinaryIO, Self

import msgspec

from veilmesh.attacks.view import IN_PASSING, Sighting
from veilmesh.core import BadInput, RemoteError
from veilmesh.peer.machine import Note, PeerId
from veilmesh.peer.store import writing
from veilmesh.peer.transcript import Record
from veilmesh.peer.transports.base import Arrival, Transport
from veilmesh.peer.transports.mqtt_chunks import Acks, Chunk, Reassembly, read
from veilmesh.peer.transports.mqtt_names import Presence
from veilmesh.peer.transports.mqtt_transport import MqttTransport
from veilmesh.peer.transports.wrapped import Wrapped
from veilmesh.sim.cast import Cast, stem
from veilmesh.sim.scenario import Envelope
from veilmesh.sim.tap import Tap

__all__ = ["Passing", "passing_folder", "protections_of", "sightings"]


def protections_of(envelope: Envelope) -> dict[str, str]:
    """What is in force of a scenario's choices, for the run's record."""
    cover = envelope.cover
    covered = (
        {"cover": f"{cover.bytes} bytes every {cover.pace:g} s" + " to everybody" * cover.everybody} if cover else {}
    )
    return {"padding": envelope.padding, **covered}


def passing_folder(folder: Path) -> Path:
    """Where a run keeps what passed."""
    return folder / "transcript" / "passing"


class Passing:
    """What passes of one member. A context manager; use `for_member`."""

    def __init__(self, me: PeerId, records: Tap, seen: Path | None, clock: Callable[[], float], again: bool) -> None:
        self._me = me
        self._records = records
        self._path = seen
        self._clock = clock
        self._again = again
        self._out: BinaryIO | None = None
        self._frames: dict[tuple[PeerId, bytes], Reassembly] = {}

    @classmethod
    def for_member(
        cls, folder: Path, cast: Cast, index: int, me: PeerId, full: Callable[[Note], None], again: bool = False,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> Self:  # fmt: skip
        """What the scenario asks for at member `index`; nothing is kept where it asks for nothing."""
        keeps, name, budget = cast.scenario.keeps_passing, stem(cast.names[index]), cast.scenario.transcript.max_bytes
        place = passing_folder(folder)
        spent = Note("transcript-full", {"max_bytes": budget})
        tap = Tap(place / f"{name}.records" if keeps else None, budget, lambda: full(spent), again)
        return cls(me, tap, place / f"{name}.seen" if keeps else None, clock, again)

    def keep(self, record: Record) -> None:
        """A frame passed."""
        self._records.keep(record)

    def sight(self, sighting: Sighting) -> None:
        """Something else was seen."""
        if self._path and self._out:
            with writing(self._path):
                self._out.write(msgspec.json.encode(sighting) + b"\n")

    def over(self, transport: Transport) -> Transport:
        """`transport`, not open yet, with this tap at its way out."""
        if not self._path:
            return transport
        if isinstance(transport, MqttTransport):
            transport.watched_by(self._published)
            return transport
        return _Watched(transport, self._me, self, self._clock)

    def __enter__(self) -> Self:
        self._records.__enter__()
        if self._path:
            with writing(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._out = self._path.open("ab" if self._again else "wb")
        return self

    def __exit__(self, *error: object) -> None:
        self._records.__exit__(*error)
        if self._path and self._out:
            with writing(self._path):
                self._out.close()

    def _published(self, topic: str, payload: bytes) -> None:
        """A message of this member's passed the broker, or it heard a presence from there."""
        _, one, other = topic.rsplit("/", 2)
        try:
            if one == "presence":
                self._presence(PeerId(other), payload)
            else:
                self._said(PeerId(one), read(payload), len(payload))
        except RemoteError:  # of others: what is wrong with it is no news to the broker either
            return

    def _presence(self, who: PeerId, payload: bytes) -> None:
        if payload:
            said = Presence.from_bytes(payload, who)
            what = said.state.name.lower()
            session = said.session.hex()
            self.sight(Sighting(self._clock(), what, who, None, len(payload), said.connections, session))

    def _said(self, to: PeerId, what: Chunk | Acks, size: int) -> None:
        now = self._clock()
        if isinstance(what, Acks):
            self.sight(Sighting(now, "ack", self._me, to, size))
            return
        self.sight(Sighting(now, "chunk", self._me, to, size, what.frame))
        frame = self._frames.setdefault((to, what.target), Reassembly()).take(what)
        if frame is not None:
            self.keep(Record(now, IN_PASSING, self._me, to, len(frame), frame, None))


class _Watched(Wrapped):
    """A transport whose frames are seen as they leave."""

    def __init__(self, inner: Transport, me: PeerId, tap: Passing, clock: Callable[[], float]) -> None:
        super().__init__(inner)
        self._me, self._tap, self._clock = me, tap, clock

    def open(self) -> AbstractAsyncContextManager[AsyncIterator[Arrival]]:
        """Listen."""
        return self._open()

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[AsyncIterator[Arrival]]:
        async with self._inner.open() as inbox:
            self._tap.sight(Sighting(self._clock(), "here", self._me, number=1))
            try:
                yield inbox
            finally:
                self._tap.sight(Sighting(self._clock(), "closed", self._me, number=1))

    async def send(self, to: PeerId, frame: bytes) -> None:
        """Carry `frame` towards `to`."""
        self._tap.keep(Record(self._clock(), IN_PASSING, self._me, to, len(frame), frame, None))
        await super().send(to, frame)


def sightings(folder: Path) -> Iterator[Sighting]:
    """What a run's broker saw besides frames, in order of time: each presence once, whoever heard it."""
    found = [sighting for file in sorted(passing_folder(folder).glob("*.seen")) for sighting in _read(file)]
    known: set[tuple[str, PeerId, int, str]] = set()
    for sighting in sorted(found, key=lambda one: one.now):
        key = (sighting.what, sighting.who, sighting.number, sighting.session)
        if sighting.session and key in known:
            continue
        known.add(key)
        yield sighting


def _read(file: Path) -> Iterator[Sighting]:
    for line in file.read_bytes().split(b"\n")[:-1]:  # what follows the last newline was cut off
        try:
            yield msgspec.json.decode(line, type=Sighting)
        except msgspec.DecodeError as error:
            raise BadInput(f"{file} holds no sightings ({error}); delete the run and run it again.") from None
