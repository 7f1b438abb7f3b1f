"""How a member gets into a mesh that others may join, and how the others know it may."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from veilmesh.core import BadInput
from veilmesh.crypto.identity import Identity, PeerId
from veilmesh.peer.store import write_durably

__all__ = ["Entry", "identity_in", "kept_identity", "new_identity"]


@dataclass(frozen=True)
class Entry:
    """What a member of an open mesh needs besides the scenario.

    `secret`: the mesh's join secret; None where a list says who may come in. `contacts`: members to join by, with their
    addresses; none for those who begin the mesh. `identity`: who it is; None: somebody new.
    """

    secret: bytes | None = field(default=None, repr=False)
    contacts: Mapping[PeerId, str] = field(default_factory=dict)
    identity: Identity | None = None


def identity_in(path: Path) -> Identity:
    """The identity kept in the file `path`; a new one is drawn and kept, readable by its owner only, if there is none.

    Raises BadInput if the file holds something else, or cannot be written.
    """
    if not path.exists():
        return new_identity(path)
    if (identity := kept_identity(path)) is None:
        raise BadInput(f"{path} holds no identity key; give another file, or one that is not there yet.")
    return identity


def kept_identity(path: Path) -> Identity | None:
    """The identity in the file `path`; None if there is none, or something else."""
    try:
        seed = path.read_bytes()
    except OSError:
        return None
    return Identity.from_seed(seed) if len(seed) == 32 else None


def new_identity(path: Path) -> Identity:
    """A new identity, kept in the file `path`, readable by its owner only. Raises BadInput if it cannot be written."""
    identity = Identity.generate()
    write_durably(path, identity.seed(), mode=0o600)
    return identity
