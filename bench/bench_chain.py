"""Overlap in a chain of four real peers: steps a second with all micro-batches in flight, and with one at a time.

Peers are processes over libp2p on this machine; whatever arrives is handed on `--latency` seconds late, so every link
has that latency, one way, and as much bandwidth as there is. The runs differ in `split.in_flight` and nothing else, and
come to the same weights, which is checked. A third run does not divide the batch at all, for comparison: where latency
is all there is, micro-batches cannot beat it; they do where stages have something to do.
"""

import argparse
import contextlib
import json
import math
import tempfile
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import anyio

from veilmesh.crypto.identity import Identity
from veilmesh.peer.transports.base import TRANSPORTS, Arrival, Transport
from veilmesh.peer.transports.wrapped import Wrapped
from veilmesh.sim.cast import Cast
from veilmesh.sim.run import run_scenario
from veilmesh.sim.scenario import Scenario

__all__ = ["main"]

MARK = 2.0  # times the steps a second without overlap: what is aimed at
STEPS = 4  # in a round


class _Late(Wrapped):
    """A transport whose arrivals are handed on later, each by as much."""

    def __init__(self, inner: Transport, latency: float) -> None:
        super().__init__(inner)
        self._latency = latency

    def open(self) -> AbstractAsyncContextManager[AsyncIterator[Arrival]]:
        return self._opened()

    @contextlib.asynccontextmanager
    async def _opened(self) -> AsyncIterator[AsyncIterator[Arrival]]:
        into, out = anyio.create_memory_object_stream[tuple[float, Arrival]](math.inf)

        async def take(inbox: AsyncIterator[Arrival]) -> None:
            async for arrival in inbox:
                into.send_nowait((anyio.current_time() + self._latency, arrival))

        async def hand_on() -> AsyncIterator[Arrival]:
            async for due, arrival in out:
                await anyio.sleep_until(due)
                yield arrival

        async with self._inner.open() as inbox, anyio.create_task_group() as tasks:
            tasks.start_soon(take, inbox)
            yield hand_on()
            tasks.cancel_scope.cancel()


@TRANSPORTS.register("late-libp2p")
@dataclass(frozen=True, slots=True)
class LateLibp2p:
    """libp2p, with a latency that this machine does not have."""

    latency: float = 0.02

    backend: ClassVar[Literal["asyncio", "trio"]] = "trio"

    def prepare(self) -> None:
        TRANSPORTS.build("libp2p").prepare()

    def make(self, identity: Identity) -> Transport:
        return _Late(TRANSPORTS.build("libp2p").make(identity), self.latency)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=0.02, help="seconds, one way, of every link")
    parser.add_argument("--micro-batches", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=8, help=f"of {STEPS} steps each; the first is left out")
    options = parser.parse_args()
    found = {}
    divided = options.micro_batches
    runs = {"one at a time": (divided, 1), "all in flight": (divided, 0), "undivided": (1, 0)}
    with tempfile.TemporaryDirectory() as folder:
        for name, (parts, in_flight) in runs.items():
            rate, model = _run(Path(folder) / name, options.latency, options.rounds, parts, in_flight)
            found[name] = rate, model
            print(f"{name:14}: {rate:6.2f} steps a second", flush=True)
    slow, fast = found["one at a time"], found["all in flight"]
    ratio = fast[0] / slow[0]
    print(f"overlap: {ratio:.2f} times the steps a second (aim: {MARK:g}); same weights: {fast[1] == slow[1]}")


def _run(folder: Path, latency: float, rounds: int, parts: int, in_flight: int) -> tuple[float, bytes]:
    """Steps a second after the first round, and the weights."""
    data: dict[str, Any] = {
        "peers": 1, "rounds": rounds, "evaluate_every": rounds, "task": "digits", "strategy": "chain",
        "model": {"name": "mlp", "hidden": [256, 256, 256]}, "transport": {"name": "late-libp2p", "latency": latency},
        "training": {"batch": 64, "local_steps": STEPS, "learning_rate": 0.05},
        "split": {"micro_batches": parts, "in_flight": in_flight},
    }  # fmt: skip
    cast = Cast.prepare(Scenario.parse(data))
    run_scenario(cast, folder, lambda message: None)
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    times = [event["t"] for event in events if event["kind"] == "trained"]
    [model] = cast.models(folder / "checkpoints", cast.names)
    return STEPS * (len(times) - 1) / (times[-1] - times[0]), model.tobytes()


if __name__ == "__main__":
    main()
