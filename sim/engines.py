"""Where jobs run: each in a child forked from this preloaded process, which itself never computes.

A job is data (pure, picklable): the same engine protocol serves one machine and, later, a cluster. Mapping is over
whole runs, never over the peers of one.
"""

import gc
import selectors
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from veilmesh.core import BadInput, LocalError
from veilmesh.peer.processes import Child, Link, fork

__all__ = ["Engine", "ForkEngine", "Job", "Progress", "preload"]

Progress: TypeAlias = Callable[[Mapping[str, Any]], None]
"""Told how a job goes on: plain data with a `kind`."""


class Job(Protocol):
    """One thing to run; its result is plain data."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def deadline(self) -> float:
        """Seconds after which it is given up."""
        ...

    def run(self, progress: Progress) -> Any:
        """Do it. Raises BadInput."""
        ...


class Engine(Protocol):
    """Runs jobs, and yields each with its result as it is done."""

    def map(self, jobs: Iterable[Job], progress: Callable[[Job, Mapping[str, Any]], None]) -> Iterator[tuple[Job, Any]]:
        """Raises BadInput with the sentence of the first job that fails."""
        ...


@dataclass(slots=True)
class _Running:
    job: Job
    child: Child
    until: float
    result: Any = None
    done: bool = False


class ForkEngine:
    """This machine: a forked child per job, `workers` at a time."""

    def __init__(self, workers: int = 1) -> None:
        self._workers = workers

    def map(self, jobs: Iterable[Job], progress: Callable[[Job, Mapping[str, Any]], None]) -> Iterator[tuple[Job, Any]]:
        waiting = list(jobs)[::-1]
        running: list[_Running] = []
        selector = selectors.DefaultSelector()
        try:
            while waiting or running:
                while waiting and len(running) < self._workers:
                    running.append(self._start(waiting.pop(), running, selector))
                for finished in self._turn(running, selector, progress):
                    running.remove(finished)
                    yield finished.job, finished.result
        finally:
            for left in running:
                left.child.kill()
            selector.close()

    def _start(self, job: Job, running: list[_Running], selector: selectors.BaseSelector) -> _Running:
        child = fork(job.name, lambda link: _run(job, link), [r.child.link for r in running])
        entry = _Running(job, child, time.monotonic() + job.deadline)
        selector.register(child.link.socket, selectors.EVENT_READ, entry)
        return entry

    def _turn(
        self,
        running: list[_Running],
        selector: selectors.BaseSelector,
        progress: Callable[[Job, Mapping[str, Any]], None],
    ) -> list[_Running]:
        finished = []
        ready = selector.select(timeout=1.0)
        if not ready and running:  # a long computation says nothing; whoever watches is still to see that it is alive
            progress(running[0].job, {"kind": "waiting"})
        for key, _ in ready:
            entry: _Running = key.data
            messages, alive = entry.child.link.drain()
            for message in messages:
                self._take(entry, message, progress)
            if not alive:
                selector.unregister(entry.child.link.socket)
                entry.child.kill()
                if not entry.done:
                    raise LocalError(f"{entry.job.name} {entry.child.ended()}; its own words are above")
                finished.append(entry)
        for entry in running:
            if time.monotonic() > entry.until:
                raise BadInput(f"{entry.job.name} was not done after {entry.job.deadline:g} s; raise timing.run.")
        return finished

    def _take(
        self, entry: _Running, message: Mapping[str, Any], progress: Callable[[Job, Mapping[str, Any]], None]
    ) -> None:
        if "result" in message:
            entry.result, entry.done = message["result"], True
        elif "failed" in message:
            raise BadInput(message["failed"])
        else:
            progress(entry.job, message)


def _run(job: Job, link: Link) -> None:
    try:
        link.send({"result": job.run(link.send)})
    except BadInput as error:
        link.send({"failed": str(error)})


def preload() -> None:
    """Import what children will need, and keep torch to one thread: a forked copy of its thread pool would hang.

    What is imported stays: looking for garbage in it takes a tenth of the time meanwhile, and later makes every child
    copy the pages it shares with its siblings.
    """
    if gc.get_freeze_count():  # done before
        return
    gc.disable()
    try:
        _import()
    finally:
        gc.enable()
    gc.freeze()
    sys.stdout.flush()


def _import() -> None:
    import torch

    torch.set_num_threads(1)
    # The worlds too: what a child imports late may be another program than the one whose digest keys its cell.
    import veilmesh.sim.memory
    import veilmesh.sim.mesh
    import veilmesh.sim.network  # noqa: F401  # imported for every child
    from veilmesh.attacks.extraction.base import EXTRACTIONS
    from veilmesh.attacks.hijacks.base import HIJACKS
    from veilmesh.attacks.inference.base import INFERENCES
    from veilmesh.attacks.view import ATTACKS
    from veilmesh.peer.transports.base import TRANSPORTS
    from veilmesh.split.guards.base import SPLIT_GUARDS
    from veilmesh.split.strategies.base import SPLITS
    from veilmesh.swarm.guards.base import GUARDS
    from veilmesh.swarm.sharing.base import SHARINGS
    from veilmesh.swarm.strategies.base import STRATEGIES
    from veilmesh.tasks.data.base import SOURCES
    from veilmesh.tasks.models.base import MODELS

    for registry in (
        ATTACKS,
        EXTRACTIONS,
        GUARDS,
        HIJACKS,
        INFERENCES,
        MODELS,
        SHARINGS,
        SOURCES,
        SPLIT_GUARDS,
        SPLITS,
        STRATEGIES,
        TRANSPORTS,
    ):
        registry.names()  # scanning imports
