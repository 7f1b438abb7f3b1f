"""What is on record at an adversary, by kind, round and sender; decoded as it is asked for."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from veilmesh.attacks.view import View
from veilmesh.core import RemoteError
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import Mask, Vector
from veilmesh.peer.machine import PeerId
from veilmesh.swarm import messages

__all__ = ["Heard", "Said", "message_in"]

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Said:
    """One update as it was said: (d,) values, which of them, and whether they are all of it."""

    samples: int
    values: Vector
    said: Mask | None
    lossless: bool


@dataclass(frozen=True, slots=True)
class Heard:
    """Bodies by round and sender, the first of each; not decoded yet, so that a long run fits into memory."""

    dimension: int
    updates: Mapping[int, Mapping[PeerId, messages.Update]]
    models: Mapping[int, Mapping[PeerId, bytes]]  # a hub's global model at the beginning of a round
    copies: Mapping[int, Mapping[PeerId, bytes]]  # a gossip peer's public copy after its update of a round
    changes: Mapping[int, Mapping[PeerId, messages.ControlledUpdate]]  # SCAFFOLD's, which stand in `updates` too
    controls: Mapping[int, messages.ControlledModel]  # SCAFFOLD's models, which stand in `models` too
    told: Mapping[int, Mapping[PeerId, bytes]]  # models that the hub said to some other than to the first
    aside: Mapping[int, Mapping[tuple[PeerId, PeerId], messages.Update]]  # such updates of our own, by both ends
    proxied: bool = False  # whether a hub tells proxies of its model, in any codec

    @classmethod
    def of(cls, view: View) -> "Heard":
        updates: dict[int, dict[PeerId, messages.Update]] = {}
        models: dict[int, dict[PeerId, bytes]] = {}
        copies: dict[int, dict[PeerId, bytes]] = {}
        changes: dict[int, dict[PeerId, messages.ControlledUpdate]] = {}
        controls: dict[int, messages.ControlledModel] = {}
        told: dict[int, dict[PeerId, bytes]] = {}
        aside: dict[int, dict[tuple[PeerId, PeerId], messages.Update]] = {}
        for record in view.records:
            match message_in(record.body):
                case messages.Update() as update:
                    first = updates.setdefault(update.round, {}).setdefault(record.sender, update)
                    if record.sender in view.vantage.controls and update.blob != first.blob:
                        aside.setdefault(update.round, {}).setdefault((record.sender, record.to), update)
                case messages.ControlledUpdate(round=round_, samples=samples, blob=blob) as change:
                    plain = messages.Update(round_, samples, blob)
                    updates.setdefault(round_, {}).setdefault(record.sender, plain)
                    changes.setdefault(round_, {}).setdefault(record.sender, change)
                case messages.ControlledModel(round=round_, blob=blob) as model if record.sender == view.public.server:
                    if models.setdefault(round_, {}).setdefault(record.sender, blob) != blob:
                        told.setdefault(round_, {}).setdefault(record.to, blob)
                    controls.setdefault(round_, model)
                case messages.Model(round=round_, blob=blob):
                    if models.setdefault(round_, {}).setdefault(record.sender, blob) != blob:
                        told.setdefault(round_, {}).setdefault(record.to, blob)
                case messages.Copy(round=round_, blob=blob):
                    copies.setdefault(round_, {}).setdefault(record.sender, blob)
        proxied = view.public.sharing["name"] == "served-proxy"
        return cls(view.public.initial.size, updates, models, copies, changes, controls, told, aside, proxied)

    def rounds(self) -> list[int]:
        return sorted(self.updates.keys() | self.copies.keys())

    def said(self, round_: int) -> dict[PeerId, Said]:
        """The updates of a round that can be decoded."""
        return self._read(self.updates.get(round_, {}))

    def said_aside(self, round_: int) -> dict[tuple[PeerId, PeerId], Said]:
        """What those we control said to some and not to all."""
        return self._read(self.aside.get(round_, {}))

    def _read(self, updates: Mapping[K, messages.Update]) -> dict[K, Said]:
        found: dict[K, Said] = {}
        for sender, update in updates.items():
            try:
                decoded = table.decode(update.blob, self.dimension)
            except RemoteError:
                continue
            lossless = table.WIRE_IDS[update.blob[0]].lossless
            found[sender] = Said(update.samples, decoded.values, decoded.said, lossless)
        return found

    def whole(self, blobs: Mapping[PeerId, bytes]) -> dict[PeerId, Vector]:
        """The vectors among losslessly encoded ones that can be decoded; where a hub tells proxies, of any."""
        found: dict[PeerId, Vector] = {}
        for sender, blob in blobs.items():
            try:
                found[sender] = (
                    table.decode(blob, self.dimension).values
                    if self.proxied
                    else table.decode_lossless(blob, self.dimension)
                )
            except RemoteError:
                continue
        return found


def message_in(body: bytes | None) -> messages.Message | None:
    if body is None:
        return None
    try:
        return messages.decode(body)
    except RemoteError:
        return None
