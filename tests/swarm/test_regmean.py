"""RegMean: what is shared gives back a model, merges are regressions, and one masked sum is enough."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from veilmesh.core import LocalError, generator
from veilmesh.peer.store import load_parameters
from veilmesh.sim.cast import Cast, stem
from veilmesh.sim.run import run_scenario
from veilmesh.sim.scenario import Scenario, override
from veilmesh.swarm.sharing.base import SHARINGS, Own, Setting
from veilmesh.swarm.sharing.regmean import RegMean, pairs_of
from veilmesh.swarm.sharing.whole_model import WholeModel, network
from veilmesh.tasks.models.build import build_model
from veilmesh.tasks.work import Settings, Train, Trained

MLP = {"name": "mlp", "hidden": [12]}
CONV = {"name": "convnet", "width": 4}


def setting(model: dict[str, Any], side: int = 8) -> Setting:
    x, y = pictures(20, side)
    return Setting(model, (1, side, side), 4, Settings(batch=8, local_steps=3, learning_rate=0.1), 0, 2, x, y)


def net(where: Setting) -> nn.Module:
    return build_model(*network(where))


def pictures(n: int, side: int = 8, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = generator(seed, "pictures")
    return rng.random((n, 1, side, side), np.float32), rng.integers(0, 4, n)


def own(index: int = 0, n: int = 24, side: int = 8) -> Own:
    x, y = pictures(n, side, 10 + index)
    return Own(index, x, y, x, y, None, private=index)


@pytest.mark.parametrize("model", [MLP, CONV])
def test_the_beginning_is_the_networks_own(model: dict[str, Any]) -> None:
    where = setting(model)
    begin = RegMean().initial(where)
    np.testing.assert_allclose(pairs_of(RegMean(), net(where)).solved(begin), WholeModel().initial(where), atol=1e-6)


@pytest.mark.parametrize("model", [MLP, CONV])
@pytest.mark.parametrize("alpha", [0.1, 0.9, 1.0])
def test_a_peers_pairs_give_back_what_it_trained(model: dict[str, Any], alpha: float) -> None:
    where, scheme = setting(model), RegMean(alpha=alpha)
    begin = scheme.initial(where)
    [said] = scheme.learner(where, own()).run([Train(0, begin)])
    [plain] = WholeModel().learner(where, own()).run([Train(0, WholeModel().initial(where))])
    assert isinstance(said, Trained)
    assert isinstance(plain, Trained)
    alone = pairs_of(scheme, net(where)).solved(begin + said.update)
    np.testing.assert_allclose(alone, WholeModel().initial(where) + plain.update, atol=2e-4)


def test_the_merge_is_the_least_squares_answer_to_everybodys_inputs() -> None:
    """Of the first layer, whose inputs are the pictures: solved from the definition, by rows."""
    where, scheme = setting(MLP), RegMean(alpha=1.0, ridge=1e-4)
    begin = scheme.initial(where)
    own_ = [own(0, 120), own(1, 120)]
    for mine, half in zip(own_, (slice(0, 4), slice(4, 8)), strict=True):  # each sees another half of its pictures
        mine.x[:, :, half] = 0.5
    answers = [scheme.learner(where, mine).run([Train(0, begin)])[0] for mine in own_]
    merged = pairs_of(scheme, net(where)).solved(
        (begin + np.mean([a.update for a in answers if isinstance(a, Trained)], axis=0)).astype(np.float32)
    )
    models = [WholeModel().learner(where, mine).run([Train(0, WholeModel().initial(where))])[0] for mine in own_]
    weights = [
        (WholeModel().initial(where) + m.update)[: 12 * 64].reshape(12, 64) for m in models if isinstance(m, Trained)
    ]
    inputs = [(2 * mine.x - 1).reshape(len(mine.x), -1).astype(np.float64) for mine in own_]
    wanted = np.concatenate([x @ w.T for x, w in zip(inputs, weights, strict=True)])
    rows = np.concatenate(inputs)
    found = merged[: 12 * 64].reshape(12, 64)
    error, averaged = (np.linalg.norm(rows @ w.T - wanted) for w in (found, np.mean(weights, axis=0)))
    assert error < 0.05 * averaged


def test_a_layer_that_is_too_wide_is_averaged() -> None:
    where = setting(MLP)
    narrow = pairs_of(RegMean(widest=32), net(where))
    assert [layer.inputs for layer in narrow.layers] == [12]
    assert [layer.inputs for layer in pairs_of(RegMean(), net(where)).layers] == [64, 12]


@given(x=st.integers(0, 3))
def test_a_vector_of_another_size_is_refused(x: int) -> None:
    pairs = pairs_of(RegMean(), net(setting(MLP)))
    with pytest.raises(LocalError):
        pairs.solved(np.zeros(pairs.size + 1 + x, np.float32))


def test_corrections_of_other_protocols_are_refused() -> None:
    where = setting(MLP)
    begin = RegMean().initial(where)
    with pytest.raises(LocalError):
        RegMean().learner(where, own()).run([Train(0, begin, 0.1)])


BASE: dict[str, Any] = {
    "world": "virtual",
    "peers": 4,
    "rounds": 1,
    "model": {"name": "mlp", "hidden": [16]},
    "partition": {"name": "label-skew", "classes_per_peer": 3},
    "training": {"batch": 16, "local_steps": 20, "learning_rate": 0.1},
    "sharing": "regmean",
}


def ended(folder: Path, **changes: Any) -> list[np.ndarray]:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    torch.set_num_threads(1)
    cast = Cast.prepare(Scenario.parse(override(BASE, changes)))
    run_scenario(cast, folder, lambda message: None)
    pairs = pairs_of(cast.scenario.sharing.build(SHARINGS), net(setting_of(cast)))
    names = [stem(f"peer:{i}") for i in range(4)]
    return [pairs.solved(load_parameters(folder / "checkpoints" / f"{name}.safetensors")) for name in names]


def setting_of(cast: Cast) -> Setting:
    data, model = cast.dataset, cast.model
    settings = Settings(batch=16, local_steps=20, learning_rate=0.1)
    return Setting(model.model_dump(), data.shape, data.classes, settings, 0, 4, data.public_x, data.public_y)


def test_masked_sums_merge_as_open_ones_do(tmp_path: Path) -> None:
    """One round of a masked sum: every peer ends with the weights that plain averaging gives."""
    plain = ended(tmp_path / "plain")
    hidden = ended(tmp_path / "hidden", strategy={"name": "secure-groups", "group": 4})
    for model in (*plain[1:], *hidden):
        np.testing.assert_allclose(model, plain[0], atol=1e-3)
