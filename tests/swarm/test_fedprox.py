"""FedProx: FedAvg's machines, with a term that holds clients near the global model."""

import numpy as np
import pytest

from veilmesh.core import BadInput
from veilmesh.crypto.codecs.topk import TopK
from veilmesh.swarm.strategies.base import STRATEGIES


def models(world) -> list[bytes]:
    return [model.tobytes() for model in world.models()]


@pytest.mark.parametrize(("mu", "steps"), [(0.0, 4), (0.7, 1)])
def test_without_the_term_or_with_one_step_it_is_fedavg_to_the_bit(lab, mu: float, steps: int) -> None:
    common = {"rounds": 5, "steps": steps, "codec": TopK(0.25), "samples": range(1, 9)}
    plain = lab.build(4, strategy="fedavg", **common).start().settle()
    prox = lab.build(4, strategy="fedprox", options={"mu": mu}, **common).start().settle()
    assert models(prox) == models(plain)
    assert prox.said == plain.said


def test_it_is_li_et_al_to_the_formula(lab) -> None:
    mu, steps, rounds = 0.5, 4, 6
    world = lab.build(3, strategy="fedprox", options={"mu": mu}, rounds=rounds, steps=steps).start()
    targets = np.array([world[i].target for i in range(3)], np.float64)
    x = np.zeros(lab.dimension)
    for _ in range(rounds):
        y = np.tile(x, (3, 1))
        for _ in range(steps):
            y = y - float(lab.rate) * ((y - targets) + mu * (y - x))
        x = y.mean(0)
    for found in world.settle().models():
        np.testing.assert_allclose(found, x, atol=1e-5)


def test_a_larger_term_keeps_clients_nearer(lab) -> None:
    ways = []
    for mu in (0.0, 0.5, 2.0):
        world = lab.build(2, strategy="fedprox", options={"mu": mu}, rounds=1, steps=6).start().settle()
        ways.append(float(np.linalg.norm(world.models()[0])))
    assert ways[0] > ways[1] > ways[2] > 0


@pytest.mark.parametrize("mu", [-0.1, float("nan"), float("inf"), "much"])
def test_a_weight_that_is_none_is_refused(mu: object) -> None:
    with pytest.raises(BadInput, match="mu"):
        STRATEGIES.build("fedprox", {"mu": mu})
