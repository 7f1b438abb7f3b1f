"""An invite: one string that is all a machine needs to join a mesh that runs elsewhere.

It holds the run's id, the scenario (so model, training and protocol are the same everywhere), where some members can be
reached, and, where the mesh admits whoever knows a secret, that secret: treat such a string as a password. A mesh with
an allow-list needs no secret; its invite lets nobody in who is not on the list.

    vm1.<base64url of: 4 bytes of checksum, zstd of a msgpack array>
"""

import base64
import binascii
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import msgspec
import zstandard

from veilmesh.core import BadInput, RemoteError
from veilmesh.crypto.card import ADDRESS_BYTES, RUN_BYTES
from veilmesh.crypto.identity import PeerId, public_key
from veilmesh.sim.scenario import Scenario

__all__ = ["CONTACTS", "INVITE", "SECRET_BYTES", "Invite", "code_named", "inviting"]

SECRET_BYTES: Final = 32
CONTACTS: Final = 8  # a string that fits a message
INVITE: Final = "invite"
"""The file in a run's folder that holds the run's invite, readable by its owner only."""

_PREFIX = "vm1."
_MOST_CHARACTERS = 64 << 10
_MOST_BYTES = 256 << 10
_BROKEN = "That is not a whole invite; copy all of the one string that `veilmesh invite` prints."


class _Packed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    run: bytes
    secret: bytes
    contacts: list[tuple[str, str]]
    scenario: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Invite:
    """What a newcomer is told.

    `run` (16 bytes) names the mesh, `secret` (32 bytes) opens its door or is None where an allow-list does, `contacts`
    are members and their addresses, `scenario` is plain data.
    """

    run: bytes
    secret: bytes | None
    contacts: Mapping[PeerId, str]
    scenario: Mapping[str, Any]

    def to_string(self) -> str:
        """The one string. Only the first few contacts are in it: whoever is in knows the others."""
        contacts = [(str(peer), address) for peer, address in self.contacts.items()][:CONTACTS]
        packed = msgspec.msgpack.encode(_Packed(self.run, self.secret or b"", contacts, dict(self.scenario)))
        squeezed = zstandard.ZstdCompressor(level=19).compress(packed)
        checked = zlib.crc32(squeezed).to_bytes(4, "big") + squeezed
        return _PREFIX + base64.urlsafe_b64encode(checked).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an invite. Raises BadInput: it is cut off, altered or something else, or it names code that the
        newcomer would import; nothing in it is acted upon."""
        text = "".join(text.split())  # mail programs break lines
        if not text.startswith(_PREFIX) or len(text) > _MOST_CHARACTERS:
            raise BadInput(_BROKEN)
        packed = _unpacked(text.removeprefix(_PREFIX))
        if len(packed.run) != RUN_BYTES or len(packed.secret) not in (0, SECRET_BYTES) or not packed.contacts:
            raise BadInput(_BROKEN)
        contacts = {PeerId(peer): address for peer, address in packed.contacts}
        try:
            for peer in contacts:
                public_key(peer)
        except RemoteError:
            raise BadInput(_BROKEN) from None
        if any(len(address) > ADDRESS_BYTES for address in contacts.values()):
            raise BadInput(_BROKEN)
        if name := code_named(packed.scenario.get("model")):
            raise BadInput(
                f"This invite names a model by import path ({name!r}), and what a stranger names is not run here; "
                "ask for one with a network of veilmesh's."
            )
        return cls(packed.run, packed.secret or None, contacts, _without_files(packed.scenario))


# Options of a transport that are each machine's own; a stranger's invite must not have a file of ours read out either.
_ONLY_HERE = ("listen", "port", "announce", "ca", "username", "password_file")


def _without_files(scenario: dict[str, Any]) -> dict[str, Any]:
    if scenario.get("feet"):  # an open mesh has none, and there could be files in them
        scenario = scenario | {"feet": []}
    transport = scenario.get("transport")
    if not isinstance(transport, dict):
        return scenario
    files = ("ca", "username", "password_file")
    return scenario | {"transport": {k: _only_of(v, files) for k, v in transport.items() if k not in files}}


def _only_of(value: object, unwanted: tuple[str, ...]) -> object:
    """An option that is a table of options itself, without these."""
    return {k: v for k, v in value.items() if k not in unwanted} if isinstance(value, dict) else value


def inviting(scenario: Scenario, run: bytes, secret: bytes | None, contacts: Mapping[PeerId, str]) -> Invite:
    """The invite to a mesh that its first members have begun: what a newcomer needs of the scenario, and no more.

    What this laboratory does to its own members (adversaries, faults, churn) is not a newcomer's business, nor is where
    files are here. On a list of those who may come in, the first members are too.
    """
    said = scenario.model_dump(mode="json", exclude={"adversary", "faults", "churn", "links", "transcript", "feet"})
    said["transport"] = {k: v for k, v in said["transport"].items() if k not in _ONLY_HERE}
    said["task"] = {k: v for k, v in said["task"].items() if k != "path"}
    if secret is None:
        said["door"]["allow"] = sorted({*scenario.door.allow, *contacts})
    return Invite(run, secret, contacts, said)


def code_named(model: object) -> str | None:
    """The name, in a `model` table or anywhere inside it, of a network that imports what its options name; or None."""
    from veilmesh.tasks.models.base import MODELS  # loads torch, which no other part of an invite needs

    importing = {name for name in MODELS.names() if getattr(MODELS.get(name), "imports", False)}
    waiting: list[object] = [model]
    while waiting:
        match waiting.pop():
            case Mapping() as table:
                waiting += table.values()
            case list() | tuple() as several:
                waiting += several
            case bytes() as raw:  # which a scenario reads as text
                waiting.append(raw.decode(errors="replace"))
            case str() as name if name in importing:
                return name
    return None


def _unpacked(text: str) -> _Packed:
    try:
        checked = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        if zlib.crc32(checked[4:]) != int.from_bytes(checked[:4], "big"):
            raise BadInput(_BROKEN)
        size = zstandard.frame_content_size(checked[4:])  # what it claims, before anything is inflated
        if not 0 <= size <= _MOST_BYTES:
            raise BadInput(_BROKEN)
        raw = zstandard.ZstdDecompressor().decompress(checked[4:], max_output_size=_MOST_BYTES)
        return msgspec.msgpack.decode(raw, type=_Packed)
    except (binascii.Error, ValueError, zstandard.ZstdError, msgspec.DecodeError):
        raise BadInput(_BROKEN) from None
