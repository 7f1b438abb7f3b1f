"""The encrypted protocol over machines: the unsplit model, a server that keeps its layer, and nothing in clear."""

from pathlib import Path

import numpy as np
import pytest
import torch
from split_runs import DEEP, played, prepared, unsplit
from torch import nn

from veilmesh.core import BadInput
from veilmesh.crypto import linear_frames
from veilmesh.crypto.encrypted_linear import LinearKeys
from veilmesh.crypto.encrypted_training import ask_forward
from veilmesh.split.cut import around_linear
from veilmesh.split.encrypted import LayerOwner, LayerUser, require_linear
from veilmesh.split.stage import Examples, StageOptions, Stages
from veilmesh.split.work import Backward, Finish, Forward, Key, Pass, Refused, Said
from veilmesh.tasks.work import Settings

tenseal = pytest.importorskip("tenseal", reason="TenSEAL is an extra: pip install 'veilmesh[he]'")
pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

ENCRYPTED = {"strategy": "encrypted", "rounds": 2, "evaluate_every": 2}


@pytest.mark.parametrize(
    ("model", "cuts", "micro_batches"),
    [({"name": "mlp", "hidden": [32]}, (), 1), (DEEP, (4, 5), 2), ({"name": "mlp", "hidden": [16]}, (4, 5), 1)],
)
def test_training_comes_to_the_unsplit_model(
    tmp_path: Path, model: dict[str, object], cuts: tuple[int, ...], micro_batches: int
) -> None:
    run = played(tmp_path, **ENCRYPTED, model=model, split={"cuts": list(cuts), "micro_batches": micro_batches})
    assert run.summary["finished"] == 2
    (found,) = run.models
    assert np.abs(found - unsplit(run.cast)).max() < 2e-3
    assert np.abs(found - run.cast.initial).max() > 0.01


def test_whoever_has_the_layer_leaves_it_as_it_began(tmp_path: Path) -> None:
    from veilmesh.peer.store import load_parameters

    run = played(tmp_path, **ENCRYPTED, model={"name": "mlp", "hidden": [32]})
    left = load_parameters(run.folder / "checkpoints" / "body.safetensors")
    np.testing.assert_array_equal(left, run.cast.initial[-left.size :])


@pytest.mark.parametrize(
    "changes",
    [
        {"split__cuts": (2, 4)},
        {"split__codec": "8-bit"},
        {"split__gradients": "8-bit"},
        {"peers": 2},
        {"split__cuts": (4, 9)},
    ],
)
def test_what_cannot_be_encrypted_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        prepared(**{**ENCRYPTED, "model": {"name": "mlp", "hidden": [32]}, **changes})


def test_the_layer_is_the_last_linear_one_without_cuts() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.Tanh())
    assert around_linear(network, ()) == (3, 4)
    assert around_linear(network[:4], ()) == (3, 4)
    assert around_linear(network[:4], (3, 4)) == (3, 4)
    for wrong in (nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Sequential(nn.Flatten())):
        with pytest.raises(BadInput):
            around_linear(wrong, ())
    with pytest.raises(BadInput):
        require_linear(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))


def build(stage: int) -> nn.Module:
    torch.manual_seed(stage)
    parts = [nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh()), nn.Sequential(nn.Linear(3, 2)), nn.Sequential()]
    return parts[stage]


@pytest.fixture(scope="module")
def keys() -> LinearKeys:
    return LinearKeys.generate()


def stages(me: int) -> Stages:
    rng = np.random.default_rng(0)
    x, y = rng.uniform(size=(8, 1, 2, 2)).astype(np.float32), np.array([0, 1] * 4)
    options = StageOptions(Settings(batch=4, local_steps=2, learning_rate=0.1), 0, me, [(1, 2, 2), (3,), (2,), (2,)], 2)
    return Stages(build, {} if me else {0: Examples(x, y, x, y)}, options)


def owner() -> LayerOwner:
    return LayerOwner(stages(1), 3, 2, 8, lambda: bytes(32))


def user() -> LayerUser:
    return LayerUser(stages(0), 3, 2, Settings(batch=4, local_steps=2, learning_rate=0.1))


def up(worker: LayerOwner, blob: bytes, rows: int = 4) -> object:
    (result,) = worker.run([Forward(Key(0, 1, 0, 0, 1), rows, blob)])
    return result


def test_requests_that_do_not_fit_are_refused_and_the_first_key_stays(keys: LinearKeys) -> None:
    request, _ = ask_forward(keys.public, np.zeros((4, 3)), 2)
    assert isinstance(up(owner(), b"\x00" + request), Refused)  # nobody's key
    worker = owner()
    assert isinstance(up(worker, b"\x01" + keys.public + request), Said)
    assert isinstance(up(worker, b"\x00" + request), Said)
    other = LinearKeys.generate()
    again, _ = ask_forward(other.public, np.zeros((4, 3)), 2)
    wrong = [
        b"", b"\x02" + request, b"\x01", b"\x01" + bytes(len(keys.public)) + request, b"\x00" + request[:-1],
        b"\x01" + other.public + again,
    ]  # fmt: skip
    for blob in wrong:
        assert isinstance(up(worker, blob), Refused)
    assert isinstance(up(worker, b"\x00" + request, rows=3), Refused)
    many, _ = ask_forward(keys.public, np.zeros((9, 3)), 2)
    assert isinstance(up(worker, b"\x00" + many, rows=9), Refused)
    (result,) = worker.run([Backward(Key(0, 1, 0, 0, 1), b"\x00" + request)])  # of another width
    assert isinstance(result, Refused)


def test_answers_to_nothing_and_answers_that_are_none_are_refused() -> None:
    worker = user()
    for task in (
        Finish(Key(0, 2, 0, 0, 1), 4, 4, b"nothing"),
        Backward(Key(0, 0, 0, 0, 1), b"nothing"),
        Pass(0, 2, 0, 8, b"nothing"),
    ):
        (result,) = worker.run([task])
        assert isinstance(result, Refused)
    worker.run([Forward(Key(0, 0, 0, 0, 1))])
    (result,) = worker.run([Finish(Key(0, 2, 0, 0, 1), 4, 4, b"nothing")])
    assert isinstance(result, Refused)


def test_the_key_travels_until_it_was_answered_and_then_no_more() -> None:
    mine, theirs, size = user(), owner(), linear_frames.SCHEME.public_size()
    for step, flag in ((0, 1), (1, 0)):
        (said,) = mine.run([Forward(Key(0, 0, step, 0, 1))])
        assert isinstance(said, Said)
        assert said.blob[0] == flag
        (answer,) = theirs.run([Forward(Key(0, 1, step, 0, 1), said.rows, said.blob)])
        assert isinstance(answer, Said)
        (back,) = mine.run([Finish(Key(0, 2, step, 0, 1), said.rows, said.total, answer.blob)])
        assert not isinstance(back, Refused)
    assert len(said.blob) < size
