"""Guards with an accountant: their noise is what they say and depends on no update, and what is shared cancels."""

import networkx as nx
import numpy as np
import pytest

from veilmesh.core import BadInput, generator
from veilmesh.core.zerosum import Pair
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.swarm.guards.base import GUARDS, RoundInfo
from veilmesh.swarm.sealer import Sealer
from veilmesh.swarm.topology import metropolis_hastings

D = 4000
INFO = RoundInfo(round=2, samples=8)


def pairs(graph: "nx.Graph[int]", peer: int) -> tuple[Pair, ...]:
    return tuple(Pair(1000 * min(peer, j) + max(peer, j), 1 if peer < j else -1) for j in sorted(graph.neighbors(peer)))


def said(graph: "nx.Graph[int]", pair: float, round_: int = 0) -> np.ndarray:
    """What the peers of `graph` say of updates of zero: (n, D), by their sealers."""
    guard = GUARDS.build("correlated-noise", {"noise": 0.5, "pair": pair, "clip": 2.0})
    sealers = [Sealer([guard], Dense(), D, 1, i, pairs(graph, i)) for i in range(len(graph))]
    return np.stack([s.guard(np.zeros(D, np.float32), RoundInfo(round_, 1)) for s in sealers]).astype(np.float64)


@pytest.mark.parametrize("name", ["private-update", "correlated-noise"])
@pytest.mark.parametrize("size", [0.0, 0.5, 1e5])
def test_the_noise_is_the_same_whatever_the_update(name: str, size: float) -> None:
    guard = GUARDS.build(name, {"clip": 2.0, "noise": 0.7})
    x = np.zeros(D, np.float32)
    x[0] = size
    out = guard.outgoing(x, INFO, generator(1, "guard")).astype(np.float64)
    of_nothing = guard.outgoing(np.zeros(D, np.float32), INFO, generator(1, "guard"))
    assert np.std(of_nothing) == pytest.approx(1.4, rel=0.05)
    np.testing.assert_allclose(out - of_nothing, np.where(np.arange(D) == 0, min(size, 2.0), 0), atol=1e-6)


def test_on_a_complete_graph_shared_noise_cancels_in_one_mean() -> None:
    graph = nx.complete_graph(6)
    loud, quiet = said(graph, 100.0), said(graph, 0.0)
    assert np.std(loud) == pytest.approx(100 * 2 * np.sqrt(5), rel=0.05)
    assert np.abs(loud.mean(0) - quiet.mean(0)).max() < 100 * 2 * 1e-6  # float32's
    assert abs(np.corrcoef(loud[0], loud[1])[0, 1] + 1 / 5) < 0.05


def test_on_a_ring_it_decays_as_the_mixing_matrix_says() -> None:
    n, pair = 16, 50.0
    graph = nx.cycle_graph(n)
    mixing = np.zeros((n, n))
    for i, row in metropolis_hastings(graph).items():
        for j, w in row.items():
            mixing[i, j] = w
    shared = said(graph, pair) - said(graph, 0.0)
    laplacian = nx.laplacian_matrix(graph).toarray()
    rms = []
    for rounds in (0, 10, 40, 160):
        mixed = np.linalg.matrix_power(mixing, rounds)
        wanted = pair * 2 * np.sqrt(np.trace(mixed @ laplacian @ mixed.T) / n)
        rms.append(float(np.sqrt(np.mean((mixed @ shared) ** 2))))
        assert rms[-1] == pytest.approx(wanted, rel=0.1, abs=1e-3)
    assert rms[0] > 100 > 10 > rms[2] > 0.1 > rms[3]


def test_a_round_that_is_guarded_twice_has_other_noise() -> None:
    def talk(rounds: list[int]) -> list[np.ndarray]:
        sealer = Sealer([GUARDS.build("private-update")], Dense(), D, 1, 0)
        return [sealer.guard(np.zeros(D, np.float32), RoundInfo(r, 1)) for r in rounds]

    outs = talk([3, 4, 3, 4, 5])
    assert all(abs(np.corrcoef(a, b)[0, 1]) < 0.1 for i, a in enumerate(outs) for b in outs[:i])
    np.testing.assert_array_equal(outs[:2], talk([3, 4]))


@pytest.mark.parametrize(
    "options",
    [{"clip": 0}, {"noise": 0}, {"delta": 0}, {"delta": 1}, {"clip": float("inf")}, {"noise": -1}, {"epsilon": 1}],
)
@pytest.mark.parametrize("name", ["private-update", "correlated-noise"])
def test_impossible_options_are_refused(name: str, options: dict[str, float]) -> None:
    with pytest.raises(BadInput):
        GUARDS.build(name, options)
