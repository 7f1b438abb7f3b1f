"""Taking a broken-off run up again: from the last round that every member has a checkpoint of.

Theory of operation. All members go on from the same round n, the consistent cut: what each said in rounds before n the
others have taken in, or never will, and what anybody said in round n or later is said again, to the same bits, because
every random stream is named by its round. A run in which nobody was late therefore ends as if it had never been broken
off. What was late and under way at the cut is lost, as a lost frame is.

That there is a round which everybody still keeps follows from how far apart members can be. Let S be the most rounds by
which one can have done more than another (`spread`), and k the rounds between two checkpoints. A member writes one
checkpoint at a time and waits before it hands over the next, so the one that is furthest behind has a checkpoint that
is less than 2 k rounds old; the one furthest ahead has done less than S + 2 k rounds more than that says, and taken at
most (S - 1) // k + 3 checkpoints in them, and one more after the last round. One is spare, for a file that is broken.
S supposes that nobody is given up waiting for; where peers are late for longer, a cut may be missing, and is then
refused in a sentence.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

import networkx as nx

from veilmesh.core import BadInput
from veilmesh.peer.checkpoints import Checkpoints
from veilmesh.peer.machine import Keep, Machine, PeerId, Resumable
from veilmesh.sim.cast import Cast, stem
from veilmesh.sim.scenario import Scenario
from veilmesh.swarm.strategies.scheduled import WINDOW, ScheduledMachine

__all__ = [
    "Counted", "Keeper", "Resumption", "checkpoints_of", "last_cut", "refuse_what_cannot_resume", "resumed_machine",
    "scenario_digest", "spread",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Counted:
    """What a member had counted when it took a checkpoint; `seconds` since the run began."""

    seconds: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0
    messages_sent: int = 0
    messages_received: int = 0

    @classmethod
    def of(cls, figures: Mapping[str, float]) -> Self:
        """The figures that lay beside a checkpoint."""
        numbers = {field.name: int(figures[field.name]) for field in fields(cls) if field.name != "seconds"}
        return cls(seconds=figures["seconds"], **numbers)

    def __add__(self, other: Self) -> "Counted":
        """The sum, with the time of `other`, whose clock goes on from ours."""
        return Counted(
            other.seconds,
            self.bytes_sent + other.bytes_sent,
            self.bytes_received + other.bytes_received,
            self.messages_sent + other.messages_sent,
            self.messages_received + other.messages_received,
        )


@dataclass(frozen=True)
class Resumption:
    """Where a run is taken up again."""

    rounds: tuple[int, ...]  # done by everybody when it was: now, and at earlier times, the latest last
    kept: tuple[Keep, ...]  # by member
    before: tuple[Counted, ...]  # by member

    @property
    def round(self) -> int:
        """The first round that is still to be done."""
        return self.rounds[-1]

    @property
    def seconds(self) -> float:
        """How long the run had taken by then."""
        return max(counted.seconds for counted in self.before)


class Keeper:
    """Puts one member's checkpoints on disk, each with what the member has counted in all parts of the run.

    Args:
        folder, cast, index: the run's, and which member.
        peer: its id.
        resumed: where the run was taken up again, if it was.
        flush: called first: what was recorded until then is to outlive the process too.
    """

    def __init__(
        self,
        folder: Path,
        cast: Cast,
        index: int,
        peer: PeerId,
        resumed: Resumption | None,
        flush: Callable[[], None],
    ) -> None:
        self._checkpoints = checkpoints_of(folder, cast, index, peer) if cast.scenario.checkpoints.every else None
        self._before = resumed.before[index] if resumed else Counted()
        self._flush = flush

    def write(self, kept: Keep, counted: Counted) -> None:
        """Returns when `kept` is on disk. Raises BadInput if it cannot be written."""
        assert self._checkpoints is not None  # no machine says anything to be kept where nothing is
        self._flush()
        self._checkpoints.write(kept, asdict(self._before + counted))


def checkpoints_of(folder: Path, cast: Cast, index: int, peer: PeerId) -> Checkpoints:
    """Member `index`'s checkpoints in a run's folder."""
    about = {"peer": str(peer), "scenario": scenario_digest(cast.scenario)}
    last = cast.scenario.checkpoints.keep or _enough(cast)
    return Checkpoints(folder, stem(cast.names[index]), about, last)


def scenario_digest(scenario: Scenario) -> str:
    """What a checkpoint belongs to: the scenario, but for its name, how many rounds it goes on, and the broker its
    members meet at, which may be one of each process's own."""
    said = scenario.model_dump(mode="json", exclude={"rounds", "title"})
    said["transport"] = {k: v for k, v in said["transport"].items() if k not in ("broker", "protocol")}
    return hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=16).hexdigest()


def spread(cast: Cast) -> int:
    """The most rounds by which one member can have done more than another while nobody is late.

    Where everybody waits for all its neighbours, that is the longest way between two. Where a schedule says whom to
    wait for, a directed ring is the worst: n - 1; further than the schedule's window nothing can be heard.
    """
    if isinstance(cast.machine(0, [PeerId(name) for name in cast.names]), ScheduledMachine):
        return max(1, min(cast.size - 1, WINDOW))
    graph = nx.Graph(cast.edges)
    graph.add_nodes_from(range(cast.size))
    if not nx.is_connected(graph):  # nobody waits for anybody
        return cast.scenario.rounds
    if cast.size <= 200:
        return max(1, int(nx.diameter(graph)))
    return max(1, min(cast.size - 1, 2 * int(nx.eccentricity(graph, 0))))  # no less than the diameter, and one search


def _enough(cast: Cast) -> int:
    return 5 + (spread(cast) - 1) // max(cast.scenario.checkpoints.every, 1)


def refuse_what_cannot_resume(cast: Cast) -> None:
    """Raises BadInput where checkpoints are asked for that nobody could go on from."""
    wanted, scenario = cast.scenario.checkpoints, cast.scenario
    if not wanted.every:
        return
    if scenario.faults:
        raise BadInput(
            "Faults come at their time in a run and a resumed run has none; leave out faults or checkpoints."
        )
    ids = [PeerId(name) for name in cast.names]
    if not all(isinstance(cast.machine(i, ids), Resumable) for i in {0, cast.size - 1}):
        raise BadInput(
            f"Strategy {scenario.strategy.name!r} cannot go on from a checkpoint: its peers share no rounds, so what "
            "they kept would not fit together; leave out checkpoints.every, or take another strategy."
        )
    if not all(isinstance(cast.machine(i, ids), Resumable) for i in cast.tampering):
        raise BadInput("What a tampering peer remembers is not kept; leave out checkpoints.every, or the tamper.")
    if wanted.keep and wanted.keep < _enough(cast):
        raise BadInput(
            f"checkpoints.keep = {wanted.keep} is too few: members of this mesh can be {spread(cast)} rounds apart, "
            f"and then no round is kept by all; set at least {_enough(cast)}, or leave it out."
        )


def last_cut(folder: Path, cast: Cast, ids: Sequence[PeerId], earlier: Sequence[int]) -> Resumption:
    """The last round of which every member's checkpoint is whole. Raises BadInput if there is none."""
    shelves = [checkpoints_of(folder, cast, i, peer) for i, peer in enumerate(ids)]
    everywhere = set.intersection(*(set(shelf.rounds()) for shelf in shelves))
    for round_ in sorted(everywhere, reverse=True):
        found = [shelf.read(round_) for shelf in shelves]
        whole = [one for one in found if one is not None]
        if len(whole) == len(found):
            before = tuple(Counted.of(counted) for _, counted in whole)
            return Resumption((*earlier, round_), tuple(kept for kept, _ in whole), before)
    raise BadInput(_no_cut(folder, cast, shelves))


def _no_cut(folder: Path, cast: Cast, shelves: Sequence[Checkpoints]) -> str:
    if not any(shelf.rounds() for shelf in shelves):
        return f"{folder} has no checkpoint to go on from; run with --set checkpoints.every=10, or another number."
    latest = ", ".join(
        f"{name} {shelf.rounds()[-1] if shelf.rounds() else 'none'}"
        for name, shelf in zip(cast.names, shelves, strict=True)
    )
    return f"{folder} has no round of which every member has a whole checkpoint (latest: {latest}); run it again."


def resumed_machine(machine: Machine, kept: Keep) -> Machine:
    """`machine`, as it was when it said `kept`. Raises BadInput if it says too little."""
    assert isinstance(machine, Resumable)  # or the scenario would have been refused
    try:
        machine.resume(kept)
    except KeyError as error:
        raise BadInput(f"A checkpoint lacks {error}: another version of veilmesh wrote it; run it again.") from None
    return machine
