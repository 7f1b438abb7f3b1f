"""Pictures of peers one never talks to: a line of peers, the attacker at its end, one picture each.

The setting of El Mrini et al. (ICML 2024, arXiv 2402.10001, figure 4a): D-PSGD on a path of `--peers` peers, as many
rounds, one CIFAR-10 picture and one step of SGD a peer and round, mixing by I - L / d_max. The network begins with a
fully connected layer. For each learning rate, and each precision of what is said (float64 as in the original, float32
as this project's wire has it), how many of the others are recovered above 20 dB: by the linear system, which supposes
that gradients stay the same, and by playing peers again, which does not. Seconds are of the attack alone, CPU time of
one thread. `--data`: a parquet file as Hugging Face stores it.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import networkx as nx
import numpy as np
import torch

from veilmesh.attacks.seen.knowledge import System
from veilmesh.attacks.seen.non_neighbour import rounding_of, solve_unheard
from veilmesh.attacks.seen.replay import Replay
from veilmesh.attacks.seen.replica import Replica
from veilmesh.attacks.view import Public
from veilmesh.peer.machine import PeerId
from veilmesh.swarm.topology import metropolis_hastings
from veilmesh.tasks.data.base import SOURCES
from veilmesh.tasks.models.build import initial_vector

__all__ = ["main"]

PICTURES = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10-train-8000.parquet"
GOOD = 20.0  # dB
HIDDEN = 64
Rows = dict[PeerId, dict[PeerId, float]]


def laplacian(graph: "nx.Graph[int]") -> Rows:
    """I - L / d_max, as in the paper."""
    most = max(degree for _, degree in graph.degree)
    rows = {i: {j: 1 / most for j in graph[i]} | {i: 1 - graph.degree[i] / most} for i in graph}
    return _named(rows)


def metropolis(graph: "nx.Graph[int]") -> Rows:
    """As this project's gossip mixes."""
    return _named(metropolis_hastings(graph))


def _named(rows: dict[int, dict[int, float]]) -> Rows:
    return {PeerId(f"{i:03}"): {PeerId(f"{j:03}"): w for j, w in row.items()} for i, row in rows.items()}


def public_of(rows: Rows, rate: float, activation: str) -> Public:
    """What everybody knows of such a run."""
    model = {"name": "mlp", "hidden": (HIDDEN,), "activation": activation}
    options = {k: v for k, v in model.items() if k != "name"}
    initial = initial_vector("mlp", options, (3, 32, 32), 10, 3)
    return Public(
        task="cifar10", shape=(3, 32, 32), classes=10, model=model, initial=initial, learning_rate=rate, batch=1,
        local_steps=1, strategy="gossip", codec={"name": "dense"}, guards=(), weights=rows, peers=tuple(sorted(rows)),
    )  # fmt: skip


def gossip(
    system: System, public: Public, x: np.ndarray, y: np.ndarray, rounds: int, kind: type[np.floating]
) -> dict[int, list[np.ndarray]]:
    """What those near the attacker say, (d,) a round, as differences to the beginning; states are rounded to `kind`."""
    victims = Replica(public, len(y))
    for i in range(len(y)):
        victims.place(i, victims.seen(x[i]), int(y[i]))
    start = public.initial.astype(np.float64)
    z = np.zeros((len(y), victims.size))
    noise = np.zeros((len(y), start.size))  # what rounding has added to each so far
    heard: dict[int, list[np.ndarray]] = {i: [] for i in system.heard}
    for _ in range(rounds):
        half = np.stack([z[i] + victims.update(i, z[i]) for i in range(len(y))])
        noise = _rounded(victims, half, noise, start, kind)
        for i in system.heard:
            heard[i].append(victims.whole(half[i]) + noise[i])
        z, noise = system.weights @ half, system.weights @ noise
        noise = _rounded(victims, z, noise, start, kind)
    return heard


def _rounded(
    victims: Replica, states: np.ndarray, noise: np.ndarray, start: np.ndarray, kind: type[np.floating]
) -> np.ndarray:
    if kind is np.float64:
        return noise
    exact = [victims.whole(state) for state in states]
    return np.stack([(start + x + n).astype(kind) - (start + x) for x, n in zip(exact, noise, strict=True)])


def linear(
    system: System, public: Public, heard: dict[int, list[np.ndarray]], rounding: float
) -> dict[int, np.ndarray]:
    """Pictures by the linear system."""
    reader = Replica(public, 1)
    found = {}
    for one in solve_unheard(system, heard, rounding).solved:
        found[system.peers.index(one.peer)] = reader.read(one.update, reader.labels(one.update)[:1]).picture
    return found | {v: reader.read(heard[v][0], reader.labels(heard[v][0])[:1]).picture for v in system.told}


def played(
    system: System, public: Public, heard: dict[int, list[np.ndarray]], rounding: float
) -> dict[int, np.ndarray]:
    """Pictures by playing peers again."""
    run = Replay(system, heard, Replica(public, len(system.peers)), rounding).run()
    return {peer: one.reading.picture for peer, one in run.items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=PICTURES)
    parser.add_argument("--peers", type=int, default=31)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 1e-2])
    parser.add_argument("--activation", default="relu")
    parser.add_argument("--mixing", choices=["laplacian", "metropolis"], default="laplacian")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    data = SOURCES.build("cifar10", {"path": given.data, "limit": 2 * given.peers}).load()
    rows = {"laplacian": laplacian, "metropolis": metropolis}[given.mixing](nx.path_graph(given.peers))
    system = System.of(rows, [PeerId("000")])
    x, y = data.train_x[: given.peers], data.train_y[: given.peers]
    condition = np.linalg.cond(system.knowledge(given.peers))
    print(f"{given.peers} peers in a line, {given.mixing} mixing, {given.activation}; cond(K) = {condition:.1e}")
    print(f"{'rate':>8} {'said in':>8} {'attack':>8} {'above 20 dB':>12} {'median dB':>10} {'CPU s':>7}")
    for rate in given.rates:
        public = public_of(rows, rate, given.activation)
        for kind in (np.float64, np.float32):
            heard = gossip(system, public, x, y, given.peers, kind)
            rounding = rounding_of(public.initial, kind)
            for name, attack in (("linear", linear), ("replay", played)):
                began = time.process_time()
                found = attack(system, public, heard, rounding)
                seconds = time.process_time() - began
                _row(rate, kind, name, [_psnr(found.get(i), x[i]) for i in range(1, given.peers)], seconds)


def _row(rate: float, kind: type[np.floating], name: str, psnrs: list[float], seconds: float) -> None:
    good = f"{sum(p > GOOD for p in psnrs)} of {len(psnrs)}"
    print(f"{rate:8g} {kind.__name__:>8} {name:>8} {good:>12} {np.median(psnrs):10.1f} {seconds:7.1f}", flush=True)


def _psnr(guess: np.ndarray | None, truth: np.ndarray) -> float:
    """In dB, at most 160; a peer that was not recovered is taken for gray."""
    guess = np.full_like(truth, 0.5) if guess is None else guess
    return min(160.0, -10 * float(np.log10(max(float(np.mean(np.square(guess.astype(np.float64) - truth))), 1e-16))))


if __name__ == "__main__":
    main()
