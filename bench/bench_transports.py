"""Payloads of 10 and 100 MB from process to process over everything that could carry a model, and meshes on top of it.

Every row has the same shape: a sender process, a receiver process that puts a payload together in one buffer and
answers it, the next payload after the answer. MB/s are of payload; CPU seconds are of all processes of the row, daemons
and brokers too; RTT is the median of 64-byte messages, each answered. The rows take turns, so that a machine whose
speed changes changes it for all, and a row's figure is its median over the passes. What to quote is the ratios.

Brokers run on this machine. `--grpc` and `--hivemind`: interpreters of environments that have them, where this one has
not; a row that cannot be measured says why. After the table: rounds of whole meshes with models of both sizes through
the broker and over libp2p, trained, signed and sealed, in turns too. Everything that is printed is measured.
"""

import argparse
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import transports_brokers as brokers  # beside this file
import transports_mesh as meshes
from rich.console import Console
from transports_marks import Found, Mark, judged, share, table
from transports_running import Failed, Job, Measured, run

__all__ = ["main"]

MB = 1e6
OURS, BARE, NAGLE = "veilmesh over MQTT", "bare aiomqtt, 1 MiB chunks", "bare aiomqtt, without TCP_NODELAY"
SEALED, OURS_TLS, BARE_TLS = "veilmesh over MQTT, sealed", "veilmesh over MQTT, TLS", "bare aiomqtt, 1 MiB chunks, TLS"
SHARE_MARK, ROUND_MARK = 0.7, 2.0  # what is aimed at: of the bare loop's MB/s; times libp2p's round


@dataclass(frozen=True, slots=True)
class Row:
    """A system: which side plays it, in which variant, through whom."""

    name: str
    side: str
    variant: str
    through: str = ""  # "mosquitto", "mosquitto tls" or "amqtt"
    needs: str = ""  # a module of another environment
    trips_only: bool = False


ROWS = (
    Row("raw TCP", "transports_raw", "tcp"),
    Row("raw TLS", "transports_raw", "tls"),
    Row("gRPC", "transports_others", "grpc", needs="grpc"),
    Row("hivemind's p2pd", "transports_others", "hivemind", needs="hivemind"),
    Row("py-libp2p as it comes", "transports_stock", "stock"),
    Row("veilmesh over libp2p", "transports_veilmesh", "libp2p"),
    Row("veilmesh over libp2p, sealed", "transports_veilmesh", "libp2p sealed"),
    Row(NAGLE, "transports_bare", "nagle", "mosquitto", trips_only=True),
    Row(BARE, "transports_bare", "nodelay", "mosquitto"),
    Row(OURS, "transports_veilmesh", "mqtt", "mosquitto"),
    Row(SEALED, "transports_veilmesh", "mqtt sealed", "mosquitto"),
    Row(BARE_TLS, "transports_bare", "tls", "mosquitto tls"),
    Row(OURS_TLS, "transports_veilmesh", "mqtt tls", "mosquitto tls"),
    Row("veilmesh over MQTT, amqtt", "transports_veilmesh", "mqtt 3.1.1", "amqtt"),
)


@dataclass(frozen=True, slots=True)
class Bench:
    """What the rows are run with."""

    folder: Path
    through: dict[str, tuple[str, int]]  # a broker's place and process
    pythons: dict[str, Path]
    sizes: tuple[float, ...]
    octets: float  # of a pass

    def turn(self, row: Row, size: float) -> Measured:
        """One row, one size, once. Raises Failed."""
        if row.through and row.through not in self.through:
            raise Failed(f"{row.through.split()[0]} is not installed")
        if row.needs and row.needs not in self.pythons:
            raise Failed(f"no environment with {row.needs} (--{row.needs} PYTHON)")
        place, broker = self.through.get(row.through, ("", None))
        python = self.pythons.get(row.needs, Path(sys.executable))
        count = max(2, round(self.octets / size)) if size else 0
        small = 0 if size else 20 if row.variant == "nagle" else 300
        return run(Job(python, row.side, row.variant, int(size * MB), count, small, self.folder, place, broker))


def measure(bench: Bench, rows: Sequence[Row], passes: int, say: Callable[[str], None]) -> dict[str, Found]:
    """Every row in turn, `passes` times; one that failed is not tried again."""
    found = {row.name: Found() for row in rows}
    for number in range(passes):
        for row in rows:
            for size in (0.0, *(() if row.trips_only else bench.sizes)):
                if found[row.name].why:
                    break
                say(f"pass {number + 1} of {passes}: {row.name}, {size:g} MB")
                try:
                    found[row.name].passes.setdefault(size, []).append(bench.turn(row, size))
                except Failed as error:
                    found[row.name].why = str(error)
    return found


def marks(found: Mapping[str, Found], sizes: Sequence[float], rounds: Mapping[str, float | None]) -> list[Mark]:
    """What is aimed at, and what is worth knowing beside it; every one a ratio of two rows of the same passes."""
    made = []
    for ours, bare in ((OURS, BARE), (OURS_TLS, BARE_TLS)):
        for size in sizes:
            made.append(Mark(f"{ours}, {size:g} MB: MB/s of {bare}", share(found, ours, bare, size), SHARE_MARK))
    for size in sizes:
        made.append(Mark(f"{SEALED}, {size:g} MB: MB/s of {BARE}", share(found, SEALED, BARE, size)))
    made.append(Mark(f"RTT of {NAGLE}: of that with it", share(found, NAGLE, BARE, 0.0, "trip")))
    for what, ratio in rounds.items():
        made.append(Mark(f"a round over MQTT, {what}: of that over libp2p", ratio, ROUND_MARK, at_most=True))
    return made


@contextlib.contextmanager
def environment(asked: argparse.Namespace) -> Iterator[Bench]:
    """A folder, brokers, and the interpreters of the others."""
    pythons = {name: path for name in ("grpc", "hivemind") if (path := getattr(asked, name)) and path.exists()}
    for name in ("grpc", "hivemind"):
        if name not in pythons and find_spec(name):
            pythons[name] = Path(sys.executable)
    with tempfile.TemporaryDirectory(prefix="bench-transports-") as place:
        folder = Path(place)
        brokers.certificate(folder)
        with brokers.mosquitto(folder) as real, brokers.amqtt() as embedded:
            through = {}
            if real:
                through = {"mosquitto": (real.place, real.process), "mosquitto tls": (real.tls_place, real.process)}
            if embedded:
                through["amqtt"] = (embedded.place, embedded.process)
            yield Bench(folder, through, pythons, tuple(asked.megabytes), asked.per_pass)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5, help="passes over all rows")
    parser.add_argument("--megabytes", type=float, nargs="+", default=[10.0, 100.0], help="sizes of payloads")
    parser.add_argument("--per-pass", type=float, default=300.0, help="megabytes a row carries in a pass")
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--grpc", type=Path, help="the interpreter of an environment with grpcio")
    parser.add_argument("--hivemind", type=Path, help="the interpreter of an environment with hivemind")
    parser.add_argument("--rounds", type=int, default=6, help="rounds of a mesh; 0: no meshes")
    parser.add_argument("--mesh-repeat", type=int, default=3, help="passes over all meshes")
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # on the way out, brokers and processes are ended too
    console, load = Console(width=132), os.getloadavg()[0]
    with environment(asked) as bench:
        rows = [row for row in ROWS if asked.only in row.name]
        with Console(stderr=True).status("") as status:  # a thread: none may be there when a mesh forks its peers
            found = measure(bench, rows, asked.repeat, status.update)
        console.print(table(found, bench.sizes))
        rounds: dict[str, float | None] = {}
        if asked.rounds and "mosquitto" in bench.through:
            place, _ = bench.through["mosquitto"]
            seconds = meshes.measure(bench.folder, place, asked.rounds, asked.mesh_repeat)
            console.print(meshes.table(seconds))
            rounds = meshes.ratios(seconds)
        console.print(judged(marks(found, bench.sizes, rounds)))
    console.print(f"{os.cpu_count()} processors; load {load:.1f} before, {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
