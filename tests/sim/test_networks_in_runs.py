"""Networks in whole runs: batch normalisation as it is exchanged, modules by import path, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from veilmesh.core import BadInput
from veilmesh.sim.cast import Cast
from veilmesh.sim.scenario import Scenario
from veilmesh.sim.virtual import run_in_virtual_time
from veilmesh.tasks import Train
from veilmesh.tasks.models.build import build_model, vector_to_parameters
from veilmesh.tasks.models.layers import BatchNorm

SMALL: dict[str, Any] = {"world": "virtual", "peers": 3, "rounds": 12, "training": {"batch": 8, "learning_rate": 0.2}}
NORMAL = {"name": "convnet", "width": 8, "depth": 2, "norm": "batch"}
USERS = {"name": "module", "path": "users_networks:Small", "options": {"width": 8}}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def prepared(**changes: Any) -> Cast:
    return Cast.prepare(Scenario.parse({**SMALL, **changes}))


@pytest.mark.parametrize("model", [NORMAL, USERS], ids=["batch normalisation", "module"])
@pytest.mark.parametrize("strategy", ["gossip", "fedavg"])
def test_a_mesh_trains_it(model: dict[str, Any], strategy: str, tmp_path: Path) -> None:
    cast = prepared(model=model, strategy=strategy, rounds=40)
    summary = run_in_virtual_time(cast, tmp_path, lambda *_: None)
    assert summary["accuracy"] > 0.4  # a tenth by chance


def test_the_first_round_tells_a_neighbour_the_statistics_of_a_batch() -> None:
    """What a peer says of its running mean is the rate times the mean of its batch, exactly."""
    cast = prepared(model=NORMAL)
    (done,) = cast.learner(0).run([Train(0, cast.initial)])
    model = build_model("convnet", {k: v for k, v in NORMAL.items() if k != "name"}, cast.dataset.shape, 10, 0)
    vector_to_parameters(model, cast.initial)
    x = torch.from_numpy(cast.dataset.train_x[cast.drawn(0, 0)])
    layer = next(m for m in model.modules() if isinstance(m, BatchNorm))
    seen: list[torch.Tensor] = []
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    model(x)
    vector_to_parameters(model, done.update)  # type: ignore[attr-defined]  # Train gives Trained
    np.testing.assert_allclose(layer.running_mean.detach(), 0.2 * seen[0].mean((0, 2, 3)), rtol=1e-4, atol=1e-6)


def test_private_training_wants_examples_apart() -> None:
    private = {**SMALL["training"], "private": {"noise": 1.0}}
    with pytest.raises(BadInput, match='norm = "group"'):
        prepared(model=NORMAL, training=private)
    prepared(model={**NORMAL, "norm": "group"}, training=private)


def test_nobody_is_invited_to_run_a_strangers_module() -> None:
    with pytest.raises(BadInput, match="no newcomer runs what a stranger names"):
        prepared(model=USERS, door={"open": True}, world="libp2p")
