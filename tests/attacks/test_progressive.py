"""Progressive layer matching: which tensors count at which stage, and that it finds a picture it can find."""

import numpy as np
import pytest
import torch

from veilmesh.attacks.inversion.progressive import Progressive, _Staged

# Three tensors, of 2, 3 and 1 numbers.
TENSOR = torch.tensor([0, 0, 1, 1, 1, 2])


@pytest.mark.parametrize("stage", [0, 1, 2, 14])
def test_a_stage_sees_the_first_tensors_only(stage: int) -> None:
    target = torch.ones(6)
    distance = _Staged(target, TENSOR)
    _, pull = distance.at(torch.zeros(1, 6), (stage + 0.5) / 15)
    assert ((pull[0] != 0) == (stage >= TENSOR)).all()
    # The j-th tensor counts 15 - j times.
    seen = stage >= TENSOR
    np.testing.assert_allclose(pull[0][seen] / pull[0][0], (15.0 - TENSOR[seen]) / 15, rtol=1e-6)


def test_its_derivative_is_the_distances() -> None:
    rng = torch.Generator().manual_seed(1)
    target, at = torch.randn(6, generator=rng).double(), torch.randn(1, 6, generator=rng).double().requires_grad_()
    distance = _Staged(target, TENSOR, torch.tensor([1, 1, 0, 1, 1, 1]))
    value, pull = distance.at(at, 1.0)
    [slope] = torch.autograd.grad(value.sum(), at)
    torch.testing.assert_close(slope, pull)
    assert distance.at(target[None], 1.0)[0] == 0


def test_a_later_stage_is_always_the_better_one() -> None:
    target = torch.ones(6)
    distance = _Staged(target, TENSOR)
    begin, _ = distance.at(torch.ones(1, 6), 0.0)
    end, _ = distance.at(torch.full((1, 6), 3.0), 1.0)
    assert end < begin


def test_it_gets_nearer_to_the_picture(make_mesh, digits) -> None:
    x, y = digits
    mesh = make_mesh(model={"name": "convnet", "width": 8, "stride": 1, "depth": 2}, batch=1, pictures=x[100:120])
    for at, peer in enumerate("abc"):
        mesh.train(peer, mesh.near(peer), x[at : at + 1], y[at : at + 1])
    near, far = (
        [g.pictures for g in Progressive(iterations=n).run(mesh.view("a"), np.random.default_rng(0))] for n in (300, 1)
    )
    for found, before, picture in zip(near, far, x[1:3], strict=True):
        assert np.square(found[0] - picture).mean() < 0.5 * np.square(before[0] - picture).mean()
