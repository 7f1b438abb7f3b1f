"""One turn of `bench_transports`: a sender process, a receiver process, one system between them.

`python transports_turn.py SIDE VARIANT OCTETS COUNT SMALL FOLDER [PLACE]`, where SIDE is a module beside this one that
has `run(given, main)`, `receive(given, words)` and `send(given, words, drive)`. The receiver puts every payload
together in one buffer and answers it; the sender sends the next when it has the answer. Runs in environments that have
no veilmesh too. Says `@mark` before and after the payloads that are timed, and waits for a line each time, so that
whoever started it can look at its processes; then `@result` and a line of JSON.
"""

import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

__all__ = ["SMALL_BYTES", "Drive", "Exchange", "Given", "Words", "main"]

SMALL_BYTES = 64
WARM = 2  # payloads before the clock starts: windows grow, sessions are agreed

Exchange: TypeAlias = Callable[[bytes], Awaitable[None]]
"""Sends a payload, and returns once it is answered."""

Drive: TypeAlias = Callable[[Exchange], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Given:
    """What both sides are told: which variant of the system, a folder with a certificate, and a broker's place."""

    variant: str
    folder: Path
    place: str


class Words:
    """Lines between the two processes, before they are connected."""

    def __init__(self, inward: int, outward: int) -> None:
        self._in, self._out = os.fdopen(inward), os.fdopen(outward, "w")

    def tell(self, *words: str) -> None:
        """Say a line."""
        print(*words, file=self._out, flush=True)

    def ask(self) -> list[str]:
        """Wait for a line."""
        return self._in.readline().split()


def mark() -> None:
    """Tell whoever started this, and wait until it has looked."""
    print("@mark", flush=True)
    sys.stdin.readline()


def driving(octets: int, count: int, small: int) -> Drive:
    """Warm up, `small` short messages, then `count` payloads of `octets`, and the result."""

    async def drive(exchange: Exchange) -> None:
        short, payload = os.urandom(SMALL_BYTES), os.urandom(octets)
        trips = []
        for _ in range(WARM + small):
            begun = time.perf_counter()
            await exchange(short)
            trips.append(time.perf_counter() - begun)
        result: dict[str, Any] = {"trip_ms": statistics.median(trips[WARM:]) * 1e3} if small else {}
        if count:
            for _ in range(WARM):
                await exchange(payload)
            mark()
            begun = time.perf_counter()
            for _ in range(count):
                await exchange(payload)
            seconds = time.perf_counter() - begun
            mark()
            result["mb_per_second"] = octets * count / seconds / 1e6
        print("@result", json.dumps(result), flush=True)
        os._exit(0)  # without the leisurely farewells of some libraries; the receiver is ended from outside

    return drive


def main(side: str, variant: str, octets: int, count: int, small: int, folder: Path, place: str = "") -> None:
    """Be both sides, as two processes."""
    given = Given(variant, folder, place)
    here, there = os.pipe(), os.pipe()
    if os.fork():
        words = Words(there[0], here[1])
        module = importlib.import_module(side)
        module.run(given, lambda: module.send(given, words, driving(octets, count, small)))
    else:
        words = Words(here[0], there[1])
        module = importlib.import_module(side)
        module.run(given, lambda: module.receive(given, words))


if __name__ == "__main__":
    sys.modules["transports_turn"] = sys.modules["__main__"]  # what the sides import is this
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]), Path(sys.argv[6]), *sys.argv[7:])
