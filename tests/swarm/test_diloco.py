"""DiLoCo without a server: gossip, with an outer Nesterov step on what mixing moved."""

from dataclasses import replace

import numpy as np
import pytest

from veilmesh.core import BadInput
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.crypto.codecs.topk import TopK
from veilmesh.swarm.aggregators.median import Median
from veilmesh.swarm.strategies.base import STRATEGIES
from veilmesh.swarm.topology import TOPOLOGIES


def models(world) -> list[bytes]:
    return [model.tobytes() for model in world.models()]


def rows(strategy: str, topology: str, peers: int, **options: object):
    return STRATEGIES.build(strategy, options).weights(TOPOLOGIES.build(topology).graph(peers, 0))


@pytest.mark.parametrize(("codec", "step"), [(Dense(), 1.0), (TopK(0.25), 0.3)])
@pytest.mark.parametrize("topology", ["complete", "ring"])
def test_without_an_outer_optimizer_it_is_gossip_to_the_bit(lab, codec: object, step: float, topology: str) -> None:
    common = {"rounds": 6, "steps": 3, "codec": codec, "rows": rows("gossip", topology, 5, step=step)}
    plain = lab.build(5, strategy="gossip", options={"step": step}, **common).start().settle()
    options = {"outer_lr": 1, "outer_momentum": 0, "step": step}
    outer = lab.build(5, strategy="diloco", options=options, **common).start().settle()
    assert models(outer) == models(plain)
    assert outer.said == plain.said


def test_on_a_complete_graph_it_is_diloco(lab) -> None:
    """Douillard et al. 2023, algorithm 1, with the outer optimizer that torch has."""
    torch = pytest.importorskip("torch")
    n, steps, rounds = 4, 5, 12
    world = lab.build(n, strategy="diloco", rounds=rounds, steps=steps).start()
    targets = np.array([world[i].target for i in range(n)], np.float64)
    theta = torch.nn.Parameter(torch.zeros(lab.dimension, dtype=torch.float64))
    outer = torch.optim.SGD([theta], lr=0.7, momentum=0.9, nesterov=True)
    for _ in range(rounds):
        local = np.tile(theta.detach().numpy(), (n, 1))
        for _ in range(steps):
            local = local - float(lab.rate) * (local - targets)
        theta.grad = theta.detach() - torch.from_numpy(local.mean(0))
        outer.step()
    for found in world.settle().models():
        np.testing.assert_allclose(found, theta.detach().numpy(), atol=1e-5)


def test_on_a_complete_graph_all_stay_alike_however_long_it_goes(lab) -> None:
    """What rounding drives apart, the outer optimizer does not amplify."""
    found = np.array(lab.build(5, strategy="diloco", rounds=400, steps=2).start().settle().models())
    np.testing.assert_allclose(found, np.tile(found[0], (5, 1)), atol=1e-5)


def test_on_a_ring_every_peer_has_an_outer_optimizer_of_its_own(lab) -> None:
    n, steps, rounds, lr, momentum = 5, 3, 8, 0.5, 0.6
    w = rows("diloco", "ring", n)
    options = {"outer_lr": lr, "outer_momentum": momentum}
    world = lab.build(n, strategy="diloco", options=options, rounds=rounds, steps=steps, rows=w).start()
    targets = np.array([world[i].target for i in range(n)], np.float64)
    matrix = np.array([[w[i].get(j, 0.0) for j in range(n)] for i in range(n)])
    x, velocity = np.zeros((n, lab.dimension)), np.zeros((n, lab.dimension))
    for _ in range(rounds):
        local = x
        for _ in range(steps):
            local = local - float(lab.rate) * (local - targets)
        move = matrix @ local - x
        velocity = momentum * velocity + move
        x = x + lr * (move + momentum * velocity)
    np.testing.assert_allclose(world.settle().models(), x, atol=1e-5)


@pytest.mark.parametrize("topology", ["ring", "complete"])
def test_peers_come_together_at_the_optimum(lab, topology: str) -> None:
    """Local steps that shrink to nothing: what is left is consensus, and the outer momentum lets it come about."""
    world = lab.build(6, strategy="diloco", rounds=150, rows=rows("diloco", topology, 6))
    for player in world.players.values():
        player.work = lambda task, player=player, work=player.work: _shrinking(work(task), task)
    found = np.array(world.start().settle().models())
    assert np.linalg.norm(found - found.mean(0), axis=1).max() < 1e-3
    assert np.linalg.norm(found.mean(0)) > 0.1


def _shrinking(result, task):
    if not hasattr(task, "round"):
        return result
    return type(result)(result.update * np.float32(0.9**task.round), result.loss, result.samples)


def test_the_aggregator_of_the_scenario_is_what_mixes(lab) -> None:
    world = lab.build(3, strategy="diloco", rounds=3)
    for player in world.players.values():
        player.machine._kit = replace(player.machine._kit, aggregator=Median())
    plain = lab.build(3, strategy="diloco", rounds=3).start().settle()
    assert models(world.start().settle()) != models(plain)


@pytest.mark.parametrize(
    "options", [{"outer_lr": 0}, {"outer_lr": float("inf")}, {"outer_momentum": 1}, {"outer_momentum": -0.1}, {"mu": 1}]
)
def test_options_that_are_none_are_refused(options: dict) -> None:
    with pytest.raises(BadInput, match=next(iter(options))):
        STRATEGIES.build("diloco", options)
