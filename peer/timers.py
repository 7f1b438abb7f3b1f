"""A machine's timers, by name."""

from collections.abc import Callable
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskGroup

from veilmesh.peer.machine import SetTimer, TimerFired

__all__ = ["Timers"]


@dataclass(slots=True)
class _Running:
    """A timer that runs: until when, which may be moved further away, and what ends it."""

    at: float
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)


class Timers:
    """Timers that can be moved and forgotten until the very moment the machine hears of them.

    Args:
        clock: seconds.
        fire: queues an event; the machine may still cancel the timer while that waits for its turn.
    """

    def __init__(self, clock: Callable[[], float], fire: Callable[[TimerFired], None]) -> None:
        self._clock = clock
        self._fire = fire
        self._running: dict[str, _Running] = {}
        self._rung: dict[str, TimerFired] = {}

    def set(self, timer: SetTimer, tasks: TaskGroup) -> None:
        """Start a timer, in place of one of the same name."""
        before = self._running.get(timer.name)
        if before is not None and before.at <= timer.at:  # moved away, as at every step of training: no task for that
            before.at = timer.at
            return
        self.cancel(timer.name)
        running = self._running[timer.name] = _Running(timer.at)
        tasks.start_soon(self._run, timer.name, running)

    def cancel(self, name: str) -> None:
        """Forget a timer, running or rung."""
        self._rung.pop(name, None)
        if running := self._running.pop(name, None):
            running.scope.cancel()

    def take(self, event: TimerFired) -> bool:
        """Whether `event` still counts, now that its turn has come."""
        if self._rung.get(event.name) is not event:
            return False
        del self._rung[event.name]
        return True

    async def _run(self, name: str, running: _Running) -> None:
        with running.scope:
            slept_until = None
            while slept_until != running.at:
                slept_until = running.at
                await anyio.sleep(max(0.0, slept_until - self._clock()))
            if self._running.get(name) is running:
                del self._running[name]
                self._rung[name] = fired = TimerFired(name)
                self._fire(fired)
