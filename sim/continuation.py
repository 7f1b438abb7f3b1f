"""What has to be right in a run's folder for the run to go on in it: who its members are, what is counted, who writes.

A member remains who it was: where checkpoints are taken, its identity key lies in the folder, readable by its owner
only. Its sealing key and the run's id are new each time, so what was recorded before cannot be opened with what comes.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from veilmesh.core import BadInput
from veilmesh.crypto.identity import Identity
from veilmesh.peer.machine import PeerId
from veilmesh.peer.store import write_durably, writing
from veilmesh.sim.cast import Cast, stem
from veilmesh.sim.entry import kept_identity, new_identity

__all__ = ["claimed", "cut_figures", "identity_of", "stored_identity"]


def identity_of(folder: Path, cast: Cast, index: int) -> Identity:
    """Member `index`'s identity: where checkpoints are taken, the one in the run's folder, made if there is none."""
    if not cast.scenario.checkpoints.every:
        return Identity.generate()
    path = _key(folder, cast, index)
    return kept_identity(path) or new_identity(path)


def stored_identity(folder: Path, cast: Cast, index: int) -> PeerId | None:
    """Whose key lies in a run's folder for member `index`; None if there is none."""
    identity = kept_identity(_key(folder, cast, index))
    return identity.peer if identity else None


def _key(folder: Path, cast: Cast, index: int) -> Path:
    return folder / "identities" / f"{stem(cast.names[index])}.key"


def cut_figures(folder: Path, round_: int) -> None:
    """Take what members noted of rounds after the cut out of the record: it will be noted again.

    A score after n rounds is taken when round n begins, so the one at the cut goes too. Lines that name no round stay:
    what was refused, was refused. Raises BadInput if nothing can be written.
    """
    for name in ("events.jsonl", "metrics.jsonl"):
        path = folder / name
        with writing(path):
            lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []  # the last may be torn
            kept = [line for line in lines if _is_before(line, round_)]
        write_durably(path, b"".join(line + b"\n" for line in kept))


def _is_before(raw: bytes, round_: int) -> bool:
    try:
        line: Any = json.loads(raw)
    except ValueError:
        return False
    of = line.get("round")
    return not isinstance(of, int) or of < round_ or (of == round_ and line.get("kind") in ("kept", "resumed"))


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Around a run with checkpoints: nobody else runs in `folder`. Raises BadInput if somebody does.

    The lock passes to forked members, so it is free only once all of them have ended too.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise BadInput(f"A run is still going on in {folder}; end it first, or wait for it.") from None
    try:
        yield
    finally:
        os.close(handle)
