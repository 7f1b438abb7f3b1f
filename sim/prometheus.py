"""A run's figures for Prometheus. What is served is read from the run directory whenever somebody asks.

So the same command serves a mesh of real processes, a simulation and a run that ended yesterday, and none of it is in
the way of training. Names follow Prometheus' own rules: base units, `_total` for what only grows.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from veilmesh.core import BadInput
from veilmesh.sim.follow import Followed

__all__ = ["RunCollector", "serve"]

_GAUGES = {
    "loss": "Training loss of the latest round (mean over local steps).",
    "accuracy": "Test accuracy when it was measured last, 0 to 1.",
    "group": "Models that were mixed in the latest round, this peer's own included; 1 is a lone step.",
    "round": "Rounds completed.",
}
_COUNTERS = {
    "bytes_sent": "Bytes this member sent, as the run counts them.",
    "bytes_received": "Bytes this member received, as the run counts them.",
}


class RunCollector(Collector):
    """Everything numeric that a run has written so far, by member."""

    def __init__(self, folder: Path) -> None:
        self._run = Followed(folder)
        self._lock = threading.Lock()  # two scrapes may come at once
        self._latest: dict[str, dict[str, float]] = {}
        self._notes: Counter[tuple[str, str]] = Counter()
        self._refused: Counter[tuple[str, str]] = Counter()

    def collect(self) -> Iterator[Metric]:
        """Read on, and say where everything stands."""
        with self._lock:
            self._read()
            families = [*self._values(), *self._counts()]
        over = GaugeMetricFamily("veilmesh_run_ended", "1 once the run has written its summary.")
        over.add_metric([], float(self._run.over))
        yield from (*families, over)

    def _read(self) -> None:
        events = list(self._run.events.new())
        if self._run.events.restarted:
            self._notes.clear()
            self._refused.clear()
        for line in events:
            peer, kind = self._run.name(line), str(line.get("kind"))
            self._notes[peer, kind] += 1
            if kind == "refused":
                self._refused[peer, str(line.get("why"))] += 1
            if kind == "round":
                self._set(peer, "group", line.get("group"))
                self._set(peer, "round", line.get("round"), add=1)
        for line in self._run.metrics.new():
            for name in ("loss", "accuracy", "bytes_sent", "bytes_received"):
                self._set(self._run.name(line), name, line.get(name))

    def _set(self, peer: str, name: str, value: object, add: float = 0) -> None:
        if isinstance(value, int | float):
            self._latest.setdefault(peer, {})[name] = value + add

    def _values(self) -> Iterator[Metric]:
        kinds: tuple[tuple[type[GaugeMetricFamily] | type[CounterMetricFamily], dict[str, str]], ...] = (
            (GaugeMetricFamily, _GAUGES),
            (CounterMetricFamily, _COUNTERS),
        )
        for kind, names in kinds:
            for name, says in names.items():
                family = kind(f"veilmesh_{name}", says, labels=["peer"])
                for peer, values in self._latest.items():
                    if name in values:
                        family.add_metric([peer], values[name])
                yield family

    def _counts(self) -> Iterator[Metric]:
        notes = CounterMetricFamily(
            "veilmesh_notes", "Notes by kind: late, silent, refused, ...", labels=["peer", "kind"]
        )
        for (peer, kind), count in sorted(self._notes.items()):
            notes.add_metric([peer, kind], count)
        refused = CounterMetricFamily(
            "veilmesh_refusals",
            "What others sent and was refused, as noted: the first ten of a kind.",
            labels=["peer", "why"],
        )
        for (peer, why), count in sorted(self._refused.items()):
            refused.add_metric([peer, why], count)
        yield from (notes, refused)


def serve(folder: Path, port: int, address: str) -> tuple[int, Callable[[], None]]:
    """Serve `folder` at http://address:port/metrics from a thread; the port taken (0: a free one), and how to end it.

    Raises BadInput: there is no run, or the port is in use.
    """
    registry = CollectorRegistry()
    registry.register(RunCollector(folder))
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        raise BadInput(f"{address}:{port} cannot be listened on ({error.strerror}); choose another --port.") from None

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return int(server.server_port), end
