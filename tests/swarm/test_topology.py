"""Every graph is connected or refused, and every mixing matrix keeps the average."""

import networkx as nx
import numpy as np
import pytest
from examples import examples
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from veilmesh.core import BadInput
from veilmesh.swarm.topology import TOPOLOGIES, lazy, metropolis_hastings

OPTIONS = {
    "k-regular": st.fixed_dictionaries({"k": st.integers(1, 8)}),
    "erdos-renyi": st.fixed_dictionaries({"p": st.floats(0, 1)}),
    "small-world": st.fixed_dictionaries({"k": st.integers(1, 8), "p": st.floats(0, 1)}),
}


@settings(max_examples=examples(40))
@given(data=st.data(), peers=st.integers(1, 24), seed=st.integers(0, 2**40))
@pytest.mark.parametrize("name", TOPOLOGIES.names())
def test_every_graph_is_connected_or_refused(name: str, data: st.DataObject, peers: int, seed: int) -> None:
    topology = TOPOLOGIES.build(name, data.draw(OPTIONS.get(name, st.just({}))))
    try:
        graph = topology.graph(peers, seed)
    except BadInput:
        return
    assert sorted(graph.nodes) == list(range(peers))
    assert nx.is_connected(graph)
    assert not graph.is_directed()
    assert not any(a == b for a, b in graph.edges)
    again = topology.graph(peers, seed)
    assert sorted(map(sorted, again.edges)) == sorted(map(sorted, graph.edges))


@pytest.mark.parametrize("name", TOPOLOGIES.names())
def test_eight_peers_can_have_any_topology(name: str) -> None:
    assert TOPOLOGIES.build(name).graph(8, 1).number_of_nodes() == 8


@settings(max_examples=examples(50))
@given(peers=st.integers(1, 16), p=st.floats(0.05, 1), seed=st.integers(0, 10**6), step=st.floats(0.01, 1))
def test_the_mixing_matrix_is_symmetric_and_doubly_stochastic(peers: int, p: float, seed: int, step: float) -> None:
    graph = nx.gnp_random_graph(peers, p, seed=seed)
    assume(nx.is_connected(graph))
    rows = lazy(metropolis_hastings(graph), step)
    w = np.array([[rows[i].get(j, 0.0) for j in range(peers)] for i in range(peers)])
    np.testing.assert_allclose(w, w.T, atol=1e-12)
    np.testing.assert_allclose(w.sum(0), 1, atol=1e-12)
    np.testing.assert_allclose(w.sum(1), 1, atol=1e-12)
    assert (w >= 0).all()
    assert {(i, j) for i, j in np.argwhere(w).tolist() if i < j} == {tuple(sorted(e)) for e in graph.edges}
    if peers > 1:  # the second largest eigenvalue is below one: gossip comes to an agreement
        assert np.sort(np.abs(np.linalg.eigvalsh(w)))[-2] < 1 - 1e-6
    whole = metropolis_hastings(graph)
    away = {(i, j): weight for i, row in rows.items() for j, weight in row.items() if i != j}
    assert away == {(i, j): step * whole[i][j] for i, j in away}


@pytest.mark.parametrize(("peers", "degree"), [(3, 2), (9, 2), (2, 1), (1, 0)])
def test_a_ring_has_two_neighbours_each_where_there_are_so_many(peers: int, degree: int) -> None:
    graph = TOPOLOGIES.build("ring").graph(peers, 0)
    assert {d for _, d in graph.degree()} == {degree}


@pytest.mark.parametrize(
    ("name", "options", "peers"),
    [
        ("k-regular", {"k": 3}, 5),
        ("k-regular", {"k": 6}, 6),
        ("k-regular", {"k": 1}, 6),
        ("erdos-renyi", {"p": 0.0}, 4),
        ("small-world", {"k": 1}, 6),
        ("small-world", {"k": 6}, 6),
    ],
)
def test_graphs_that_cannot_be_had_are_refused_with_what_to_do(name: str, options: dict, peers: int) -> None:
    with pytest.raises(BadInput, match=r"choose|needs|denser"):
        TOPOLOGIES.build(name, options).graph(peers, 0)


def test_another_seed_gives_another_graph() -> None:
    draw = TOPOLOGIES.build("erdos-renyi").graph
    assert len({frozenset(draw(12, seed).edges) for seed in range(5)}) > 1
