"""Every network: shapes, the flat vector, a start that depends on the seed alone."""

import numpy as np
import pytest
import torch

from veilmesh.core import BadInput, LocalError
from veilmesh.tasks import MODELS
from veilmesh.tasks.models.build import (
    build_model,
    check_fit,
    initial_vector,
    layout,
    parameters_to_vector,
    vector_to_parameters,
)

OPTIONS = {"module": {"path": "users_networks:Small"}, "module-per-pixel": {"path": "users_networks:pixels"}}
SHAPES = [(1, 8, 8), (1, 25, 25), (3, 32, 32), (3, 17, 30)]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", MODELS.names())
class TestContract:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_logits(self, name: str, shape: tuple[int, int, int]) -> None:
        model = build_model(name, OPTIONS.get(name, {}), shape, 7, seed=0)
        logits = model(torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)))
        assert logits.shape == ((2, 7, *shape[1:]) if MODELS.get(name).per_pixel else (2, 7))
        assert torch.isfinite(logits).all()

    def test_only_float32_parameters_no_buffers_train_mode(self, name: str) -> None:
        model = build_model(name, OPTIONS.get(name, {}), (3, 16, 16), 4, seed=0)
        assert not list(model.buffers())
        assert model.training
        assert all(p.dtype == torch.float32 and p.requires_grad and p.device.type == "cpu" for p in model.parameters())

    def test_vector_round_trip_and_layout(self, name: str) -> None:
        model = build_model(name, OPTIONS.get(name, {}), (1, 9, 9), 3, seed=0)
        vector = np.random.default_rng(0).normal(size=parameters_to_vector(model).shape).astype(np.float32)
        vector_to_parameters(model, vector)
        assert parameters_to_vector(model).tobytes() == vector.tobytes()
        parameters = dict(model.named_parameters())
        end = 0
        for parameter, shape, offset in layout(model):
            assert offset == end
            end += int(np.prod(shape))
            assert np.array_equal(vector[offset:end].reshape(shape), parameters[parameter].detach().numpy())
        assert end == len(vector)

    def test_the_start_depends_on_the_seed_alone(self, name: str) -> None:
        torch.manual_seed(1)
        one = initial_vector(name, OPTIONS.get(name, {}), (1, 8, 8), 10, seed=5)
        torch.manual_seed(2)
        assert one.dtype == np.float32
        assert np.array_equal(one, initial_vector(name, OPTIONS.get(name, {}), (1, 8, 8), 10, seed=5))
        assert not np.array_equal(one, initial_vector(name, OPTIONS.get(name, {}), (1, 8, 8), 10, seed=6))
        assert 0 < np.abs(one).max() < 3

    def test_global_generators_are_left_alone(self, name: str) -> None:
        torch.manual_seed(3)
        before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]  # a tuple
        build_model(name, OPTIONS.get(name, {}), (1, 8, 8), 10, seed=0)
        assert torch.equal(before, torch.get_rng_state())
        assert np.array_equal(before_numpy, np.random.get_state()[1])  # type: ignore[index]  # as above

    def test_every_parameter_gets_a_gradient_and_a_second_one(self, name: str) -> None:
        """Inversion differentiates the gradient again, with respect to the picture."""
        model = build_model(name, OPTIONS.get(name, {}), (1, 12, 12), 3, seed=0)
        x = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(0), requires_grad=True)
        loss = model(x).square().mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        assert all(g.abs().sum() > 0 for g in gradients)
        (again,) = torch.autograd.grad(torch.stack([g.square().sum() for g in gradients]).sum(), x)
        assert torch.isfinite(again).all()
        assert again.abs().sum() > 0


def test_golden_start() -> None:
    """Pins the bits of a start: peers with different releases of torch must begin with the same model."""
    vector = initial_vector("mlp", {"hidden": [4]}, (1, 2, 2), 2, seed=0)
    assert vector.shape == (30,)
    assert [round(float(v), 6) for v in vector[:4]] == [0.055864, -0.10492, 0.286148, 0.333926]


def test_options_shape_the_network() -> None:
    assert len(initial_vector("mlp", {"hidden": []}, (1, 2, 2), 3, seed=0)) == 4 * 3 + 3
    assert len(initial_vector("mlp", {"hidden": [5, 6]}, (1, 2, 2), 3, seed=0)) == 25 + 36 + 21
    assert len(initial_vector("convnet", {"width": 4, "depth": 1}, (1, 8, 8), 2, seed=0)) == 40 + 4 * 16 * 2 + 2
    kinds = {type(m) for m in build_model("convnet", {"activation": "tanh"}, (1, 8, 8), 2, seed=0).modules()}
    assert torch.nn.Tanh in kinds
    assert torch.nn.ReLU not in kinds


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mpl", {}),
        ("mlp", {"hiden": [4]}),
        ("mlp", {"hidden": [0]}),
        ("convnet", {"activation": "gelu"}),
        ("convnet", {"width": 0}),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        build_model(name, options, (1, 8, 8), 2, seed=0)


def test_a_network_too_large_is_refused_before_it_is_made() -> None:
    with pytest.raises(BadInput, match="parameters on these pictures"):
        build_model("mlp", {"hidden": [65536, 65536]}, (3, 512, 512), 10, seed=0)


def test_a_vector_that_does_not_fit_is_our_bug() -> None:
    model = build_model("mlp", {}, (1, 8, 8), 2, seed=0)
    with pytest.raises(LocalError, match="does not fit"):
        vector_to_parameters(model, np.zeros(3, dtype=np.float32))


def test_a_network_must_fit_the_task() -> None:
    check_fit("mlp", per_pixel=False)
    check_fit("segnet", per_pixel=True)
    with pytest.raises(BadInput, match="or segnet or"):
        check_fit("mlp", per_pixel=True)
    with pytest.raises(BadInput, match="convnet"):
        check_fit("segnet", per_pixel=False)
