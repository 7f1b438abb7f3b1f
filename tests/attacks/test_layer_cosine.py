"""One cosine a tensor: its value, its derivative, and that a short layer's gradient is not drowned by a long one's."""

import numpy as np
import torch

from veilmesh.attacks.inversion.layer_cosine import LayerCosine, LayerCosineInversion
from veilmesh.attacks.matching.distance import Cosine

SIZES = [2, 3, 1]


def _drawn(seed: int, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed)).double()


def test_it_is_the_mean_of_the_tensors_cosines() -> None:
    target, here = _drawn(1)[0], _drawn(2, 3)
    values, _ = LayerCosine(target, SIZES).at(here)
    for value, row in zip(values, here, strict=True):
        pairs = zip(row.split(SIZES), target.split(SIZES), strict=True)
        torch.testing.assert_close(value, torch.stack([1 - torch.cosine_similarity(a, b, 0) for a, b in pairs]).mean())


def test_its_derivative_is_the_distances() -> None:
    for mask in (None, torch.tensor([1.0, 1, 0, 1, 1, 1]).double()):
        here = _drawn(3, 2).requires_grad_()
        distance = LayerCosine(_drawn(1)[0], SIZES, mask)
        value, pull = distance.at(here)
        [slope] = torch.autograd.grad(value.sum(), here)
        torch.testing.assert_close(slope, pull)


def test_a_short_tensor_counts_as_much_as_a_long_one() -> None:
    target = torch.tensor([1e-4, 2e-4, 5.0, 3.0, 1.0, 4.0])
    wrong = torch.tensor([[-2e-4, 1e-4, 5.0, 3.0, 1.0, 4.0]])
    assert float(Cosine(target).at(wrong)[0]) < 1e-6
    assert float(LayerCosine(target, SIZES).at(wrong)[0]) > 0.3


def test_a_tensor_of_which_nothing_is_known_does_not_count() -> None:
    target = torch.tensor([0.0, 0.0, 5.0, 3.0, 1.0, 4.0])
    value, pull = LayerCosine(target, SIZES).at(torch.tensor([[7.0, 1.0, 5.0, 3.0, 1.0, 4.0]]))
    assert abs(float(value)) < 1e-6
    assert not pull[0, :2].any()


def test_it_gets_nearer_to_the_picture(make_mesh, digits) -> None:
    x, y = digits
    network = {"name": "convnet", "width": 8, "stride": 1, "depth": 2}
    mesh = make_mesh(model=network, batch=1, pictures=x[100:120])
    for at, peer in enumerate("abc"):
        mesh.train(peer, mesh.near(peer), x[at : at + 1], y[at : at + 1])
    near, far = (
        [
            g.pictures
            for g in LayerCosineInversion(iterations=n, labels="inferred", tv=1e-3).run(
                mesh.view("a"), np.random.default_rng(0)
            )
        ]
        for n in (150, 1)
    )
    for found, before, picture in zip(near, far, x[1:3], strict=True):
        assert np.square(found[0] - picture).mean() < 0.5 * np.square(before[0] - picture).mean()
