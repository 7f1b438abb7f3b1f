"""A View as bytes and back: all that an attack has, so that it can be run again elsewhere, with nothing else at hand.

    b"veilmesh view" | version u8 | BLAKE2b-128 of what follows | msgpack of the view

Arrays are msgpack extensions that hold `crypto.tensors`; everything is checked against its type when it is read, and
nothing in it is executed. Of the adversary's own data, and of the labels it was told, the batches of those rounds are
kept that its records speak of.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import msgspec
import numpy as np
from numpy.typing import NDArray

from veilmesh.attacks.view import Public, Sighting, Told, Vantage, View
from veilmesh.core import BadInput, LocalError, RemoteError
from veilmesh.crypto.tensors import pack, unpack
from veilmesh.peer.machine import PeerId
from veilmesh.peer.transcript import Record
from veilmesh.split import messages as split_messages
from veilmesh.swarm import messages

__all__ = ["from_bytes", "to_bytes"]

MAGIC: Final = b"veilmesh view"
VERSION: Final = 1
_ARRAY: Final = 1  # the extension's code
_DIGEST: Final = 16

Batch = tuple[NDArray[np.float32], NDArray[np.int64]]
Place = tuple[PeerId, int]  # whose batch, and of which round


class _Own(msgspec.Struct, forbid_unknown_fields=True):
    """What one controlled peer trained on in one round: pictures (B, C, H, W), labels (B,) or (B, H, W)."""

    peer: PeerId
    round: int
    pictures: NDArray[np.float32]
    labels: NDArray[np.int64]


class _Told(msgspec.Struct, forbid_unknown_fields=True):
    """The labels of one other peer's batch, or the places of the public pictures that it chose."""

    peer: PeerId
    round: int
    labels: NDArray[np.int64]


class _Stored(msgspec.Struct, forbid_unknown_fields=True):
    public: Public
    controls: list[PeerId]
    taps_wire: bool
    carries: list[tuple[PeerId, PeerId]]
    records: tuple[Record, ...]
    own: list[_Own] | None
    told: list[_Told] | None
    held: dict[PeerId, NDArray[np.int64]] = {}
    chosen: list[_Told] | None = None
    broker: bool = False
    sightings: tuple[Sighting, ...] = ()


@dataclass(frozen=True, slots=True)
class _Kept:
    """`Own` and `Told` of a stored view: what was kept, and nothing else."""

    batches: Mapping[Place, Any]

    def __call__(self, peer: PeerId, round_: int) -> Any:
        if (peer, round_) not in self.batches:
            raise LocalError(f"an attack asked for a batch of {peer}, round {round_}, that its view does not hold")
        return self.batches[peer, round_]


def to_bytes(view: View) -> bytes:
    """A view as bytes; the same view gives the same bytes. Raises LocalError where something in it has no such form."""
    vantage = view.vantage
    stored = _Stored(
        view.public,
        sorted(vantage.controls),
        vantage.taps_wire,
        sorted((min(link), max(link)) for link in vantage.carries),
        view.records,
        None if view.own is None else list(_own(view)),
        None if view.told is None else list(_told(view, view.told)),
        dict(sorted(view.held.items())),
        None if view.chosen is None else list(_told(view, view.chosen)),
        vantage.broker,
        view.sightings,
    )
    body = msgspec.msgpack.Encoder(enc_hook=_encoded).encode(stored)
    return MAGIC + bytes([VERSION]) + _digest(body) + body


def from_bytes(raw: bytes) -> View:
    """The view in `raw`. Raises BadInput, one sentence, if there is none, or it is damaged or does not fit together."""
    start = len(MAGIC) + 1
    if raw[: len(MAGIC)] != MAGIC or len(raw) < start + _DIGEST:
        _refuse("it is no stored view")
    if raw[len(MAGIC)] != VERSION:
        _refuse(f"it is of version {raw[len(MAGIC)]}, and this program reads version {VERSION}")
    body = raw[start + _DIGEST :]
    if raw[start : start + _DIGEST] != _digest(body):
        _refuse("it is cut off or damaged")
    stored = _decoded(body)
    if why := next(_faults(stored), None):
        _refuse(why)
    carries = frozenset(map(frozenset, stored.carries))
    vantage = Vantage(frozenset(stored.controls), stored.taps_wire, carries, stored.broker)
    own = None if stored.own is None else _Kept({(o.peer, o.round): (o.pictures, o.labels) for o in stored.own})
    told, chosen = (
        None if some is None else _Kept({(t.peer, t.round): t.labels for t in some})
        for some in (stored.told, stored.chosen)
    )
    return View(stored.public, vantage, stored.records, own, told, stored.held, chosen, stored.sightings)


def _refuse(why: str) -> NoReturn:
    raise BadInput(f"This view cannot be read: {why}; write it anew with `veilmesh view`.")


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_DIGEST).digest()


def _rounds(view: View) -> list[int]:
    """Those that the bodies on record speak of."""
    found = set()
    for record in view.records:
        if record.body is not None:
            found |= _round(record.body, view.public.local_steps)
    return sorted(found)


def _round(body: bytes, local_steps: int) -> set[int]:
    """The round that a message speaks of, if it is one and does: in split mode, that of its step."""
    for language in (messages, split_messages):
        try:
            message = language.decode(body)
        except RemoteError:
            continue
        if isinstance(message, split_messages.Activations | split_messages.Gradients):
            return {message.step // local_steps}
        return {message.round} if isinstance(message, messages.Message) else set()
    return set()  # somebody said what is no message


def _own(view: View) -> Iterator[_Own]:
    if view.own is not None:
        for peer, round_ in _places(view, view.vantage.controls):
            yield _Own(peer, round_, *view.own(peer, round_))


def _told(view: View, told: Told) -> Iterator[_Told]:
    for peer, round_ in _places(view, frozenset(view.public.peers) - view.vantage.controls):
        yield _Told(peer, round_, told(peer, round_))


def _places(view: View, peers: frozenset[PeerId]) -> list[Place]:
    """The batches of `peers` in the rounds on record; a hub trains on nothing, nor does who only plays a stage."""
    owners = {PeerId(route[0]) for route in view.public.split["route"]} if view.public.split else peers
    return [(peer, round_) for peer in sorted((peers & owners) - {view.public.server}) for round_ in _rounds(view)]


def _encoded(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return msgspec.msgpack.Ext(_ARRAY, pack({"array": value}))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    raise LocalError(f"a view with a {type(value).__name__} in it cannot be stored")


def _decoded(body: bytes) -> _Stored:
    decoder = msgspec.msgpack.Decoder(_Stored, dec_hook=_typed, ext_hook=_array)
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, RemoteError, UnicodeDecodeError, RecursionError, TypeError) as error:
        _refuse(str(error).splitlines()[0][:200] if str(error) else "it is no view")


def _array(code: int, data: memoryview) -> NDArray[Any]:
    if code != _ARRAY:
        raise TypeError(f"extension {code} is not known")
    raw = bytes(data)
    arrays = unpack(raw, limit_bytes=len(raw), dtypes=("float32", "int64", "bool"), finite=False)
    if set(arrays) != {"array"}:
        raise TypeError("an extension that is not one array")
    return arrays["array"]


def _typed(kind: Any, value: Any) -> Any:
    """An array where one belongs: msgspec asks of every field whose type it does not know."""
    wanted = [np.float32, np.int64]
    dtype = next((w for w in wanted if kind in (NDArray[w], np.ndarray[Any, np.dtype[w]])), None)  # type: ignore[valid-type]  # built at run time
    if dtype is None or not isinstance(value, np.ndarray) or value.dtype != dtype:
        raise TypeError(f"something that is no {kind}")
    return value


def _faults(stored: _Stored) -> Iterator[str]:
    """What does not fit together, in words."""
    public = stored.public
    numbers = (public.classes, public.batch, public.local_steps, *public.shape)
    if min(numbers) < 1 or max(numbers) > 2**31 or not (math.isfinite(public.learning_rate) and public.learning_rate):
        yield "sizes or rates are out of range"
    if public.initial.ndim != 1 or not isinstance(public.model.get("name"), str):
        yield "its network is not described"
    if not public.peers or len(set(public.peers)) != len(public.peers):
        yield "its peers are not named, or named twice"
    if public.server is not None and public.server not in public.peers:
        yield "its server is none of its peers"
    if public.pictures is not None and not _fit(public.pictures, public.picture_labels, public):
        yield "its public pictures do not fit its task"
    if not all(_fit(own.pictures, np.maximum(own.labels, 0), public) for own in stored.own or ()):  # -1: not known
        yield "the adversary's own pictures do not fit its task"
    if not all(_classes(told.labels, public) for told in stored.told or ()):
        yield "labels are no classes of its task"
    known = 0 if public.pictures is None else len(public.pictures)
    places = [told.labels for told in stored.chosen or ()]
    if not all(each.ndim == 1 and ((each >= 0) & (each < known)).all() for each in places):
        yield "public pictures were chosen that there are not"


def _fit(pictures: NDArray[np.float32], labels: NDArray[np.int64] | None, public: Public) -> bool:
    """Whether pictures are (N, C, H, W) in [0, 1] of the task's shape, with labels for all of them."""
    if pictures.ndim != 4 or pictures.shape[1:] != public.shape or not ((pictures >= 0) & (pictures <= 1)).all():
        return False
    return labels is None or (_classes(labels, public) and len(labels) == len(pictures))


def _classes(labels: NDArray[np.int64], public: Public) -> bool:
    sizes = labels.ndim == 1 or (labels.ndim == 3 and labels.shape[1:] == public.shape[1:])
    return bool(sizes and ((labels >= 0) & (labels < public.classes)).all())
