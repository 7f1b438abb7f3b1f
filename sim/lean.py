"""A member's own process without what only its worker needs: torch, the data, and whatever else its parent had loaded.

Theory of operation. A mesh forks its members from one preloaded process, which is quick and shares pages; but a small
device has no such parent, and of its two processes only the worker computes. So once an edge device's worker is forked,
the peer replaces itself by a fresh interpreter (exec), which imports what a peer needs and is handed the rest through a
file that has no name. Its process id, its worker, its slow link, its limits and its sockets stay what they were.
"""

import os
import pickle  # only from this process to itself
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from veilmesh.peer.processes import Child, Link
from veilmesh.peer.shaping_relay import Relay
from veilmesh.peer.worker import ProcessWorker
from veilmesh.sim.cast import Cast
from veilmesh.sim.resume import Resumption
from veilmesh.tasks.data.base import Dataset

__all__ = ["Belongings", "alone", "can_be_lean", "go_lean", "main", "slim"]

_COMMAND = "from veilmesh.sim.lean import main; main()"


class _Member(Protocol):
    """What goes on in the fresh interpreter."""

    def go_on(self, mine: "Belongings") -> None:
        """Live, and return when all is done."""
        ...


@dataclass(frozen=True, slots=True)
class Belongings:
    """What a member's process started before anything else, and what it is held to."""

    link: Link  # to the supervisor
    worker: ProcessWorker
    relay: Relay | None
    limits: Mapping[str, str]


def can_be_lean(cast: Cast, index: int) -> bool:
    """Whether this member's machine computes nothing with torch, so that its process can do without."""
    return type(cast) is Cast and index not in cast.tampering and not cast.serves


def go_lean(member: _Member, mine: Belongings) -> None:
    """Replace this process by a lean one, where `member` goes on. Returns only if that cannot be: the system does not
    let it, or somebody's own strategy holds what cannot be written down."""
    children = [mine.worker.child, *([mine.relay.child] if mine.relay else [])]
    ends = [mine.link, *(child.link for child in children)]
    pids = [(child.name, child.pid) for child in children]
    with suppress(OSError, pickle.PicklingError, TypeError, AttributeError), tempfile.TemporaryFile() as file:
        pickle.dump((member, mine.relay and mine.relay.host, dict(mine.limits), pids), file, protocol=5)
        file.seek(0)
        handles = [file.fileno(), *(end.socket.fileno() for end in ends)]
        for handle in handles:
            os.set_inheritable(handle, True)
        os.execv(sys.executable, [sys.executable, "-P", "-c", _COMMAND, *map(str, handles)])


def slim(cast: Cast) -> Cast:
    """The cast without the data that only workers look at: of each part one picture, for the shape. What guards ask of
    the network's layers is looked up now, because that takes torch."""
    data = cast.dataset
    one = Dataset(
        data.name, data.train_x[:1].copy(), data.train_y[:1].copy(), data.test_x[:1].copy(), data.test_y[:1].copy(),
        data.public_x[:1].copy(), data.public_y[:1].copy(), data.classes,
    )  # fmt: skip
    made = replace(cast, dataset=one, shards=(np.arange(0),) * len(cast.shards))
    if cast.scenario.guards:
        made.layout  # noqa: B018  # it is kept, once it was asked for
    return made


def alone(resumed: Resumption | None, index: int) -> Resumption | None:
    """What a member needs of where the run is taken up again: its own state, in everybody's place."""
    return resumed and replace(resumed, kept=(resumed.kept[index],) * len(resumed.kept))


def main() -> None:
    """The fresh interpreter's first words. The process edge, as of every forked child: never returns."""
    code = 70
    try:
        file, link, *rest = map(int, sys.argv[1:])
        with os.fdopen(file, "rb") as kept:
            member, host, limits, pids = pickle.load(kept)
        children = [Child(name, pid, Link.of(end)) for (name, pid), end in zip(pids, rest, strict=True)]
        relay = Relay.kept(children[1], host) if host else None
        member.go_on(Belongings(Link.of(link), ProcessWorker.kept(children[0]), relay, limits))
        code = 0
    except BaseException:  # noqa: BLE001  # say it, and end with a code
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)
