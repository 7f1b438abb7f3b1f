"""What attacks and private training need of every network; batch normalisation; the sizes that papers give."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from veilmesh.core import BadInput
from veilmesh.tasks import MODELS, Evaluate, Settings, Train
from veilmesh.tasks.models.build import build_model, initial_vector, layout, vector_to_parameters
from veilmesh.tasks.models.layers import BatchNorm
from veilmesh.tasks.private import require_apart
from veilmesh.tasks.training import Trainer
from veilmesh.tasks.work import Evaluated, Trained

SHAPE = (3, 8, 8)
OWN = [name for name in MODELS.names() if not name.startswith("module")]
CASES = [(name, {}) for name in OWN] + [
    ("convnet", {"norm": "batch", "padding": "circular", "stride": 1, "pool": "average"}),
    ("convnet", {"norm": "group", "padding": "reflect", "activation": "leaky-relu"}),
    ("convnet", {"norm": "frozen", "padding": "replicate", "width": 6}),
    *(("resnet", {"norm": norm, "depth": 8, "width": 8}) for norm in ("none", "group", "frozen")),
    ("mlp", {"activation": "square"}),
    ("module", {"path": "users_networks:Small"}),
    ("module-per-pixel", {"path": "users_networks:pixels"}),
]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def example(name: str, batch: int = 2, shape: tuple[int, int, int] = SHAPE) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(0)
    size = (batch, *shape[1:]) if MODELS.get(name).per_pixel else (batch,)
    return torch.rand(batch, *shape, generator=chance), torch.randint(4, size, generator=chance)


def directions(module: nn.Module) -> list[torch.Tensor]:
    chance = torch.Generator().manual_seed(1)
    return [torch.randn(p.shape, generator=chance) for p in module.parameters()]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
class TestDerivatives:
    def test_a_gradient_along_any_direction_has_a_gradient_to_the_picture(
        self, name: str, options: dict[str, object]
    ) -> None:
        module = build_model(name, options, SHAPE, 4, 0)
        x, y = example(name)
        x.requires_grad_()
        loss = functional.cross_entropy(module(x), y)
        gradients = torch.autograd.grad(loss, list(module.parameters()), create_graph=True)
        assert all(torch.isfinite(g).all() and g.dtype == torch.float32 for g in gradients)
        along = sum((g * v).sum() for g, v in zip(gradients, directions(module), strict=True))
        (again,) = torch.autograd.grad(along, x)
        assert torch.isfinite(again).all()
        assert (again != 0).flatten(1).any(1).all()

    def test_many_at_once_are_as_one_by_one(self, name: str, options: dict[str, object]) -> None:
        """Restarts of an inversion go through one vmap, batch normalisation included: each has a batch of its own."""
        module = build_model(name, options, SHAPE, 4, 0)
        parameters = {k: p.detach() for k, p in module.named_parameters()}
        x, y = example(name, 4)
        x, y = x.unflatten(0, (2, 2)), y.unflatten(0, (2, 2))
        ways = directions(module)

        def loss(p: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return functional.cross_entropy(functional_call(module, p, (x,)), y)

        def along(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            gradients = grad(loss)(parameters, x, y).values()
            return torch.stack([(g * v).sum() for g, v in zip(gradients, ways, strict=True)]).sum()

        together, again = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, y), vmap(grad(along))(x, y)
        assert torch.isfinite(again).all()
        for i in range(2):
            alone = functional.cross_entropy(module(x[i]), y[i])
            for a, b in zip(together.values(), torch.autograd.grad(alone, list(module.parameters())), strict=True):
                torch.testing.assert_close(a[i], b, rtol=1e-3, atol=1e-4 * (1 + float(b.abs().max())))


@pytest.mark.parametrize(
    ("name", "options", "shape", "classes", "parameters"),
    [
        ("ig-convnet", {"norm": "frozen"}, (3, 32, 32), 10, 2_904_970),  # as released
        ("ig-convnet", {"norm": "batch"}, (3, 32, 32), 10, 2_904_970 + 2 * 1600),  # with the running statistics
        ("resnet", {"norm": "frozen"}, (3, 32, 32), 10, 269_722),  # ResNet-20 of He et al., 0.27 million
        ("unet", {}, (3, 32, 32), 1, 71_401),  # the position paper's, with three channels
        ("unet", {"begin": "torch"}, (4, 32, 32), 1, 71_545),  # with its four: normals and depth
        ("unet-encoder", {}, (3, 32, 32), 10, 73_386),
        ("lenet", {"activation": "relu", "spread": 0}, (3, 32, 32), 10, 15_826),  # that paper's for classification
    ],
)
def test_networks_have_as_many_parameters_as_their_originals(
    name: str, options: dict[str, object], shape: tuple[int, int, int], classes: int, parameters: int
) -> None:
    assert len(initial_vector(name, options, shape, classes, 0)) == parameters


@pytest.mark.parametrize("name", ["unet", "unet-encoder"])
def test_a_network_for_segmentation_can_begin_as_small_as_torchs(name: str) -> None:
    he, small = (build_model(name, {"begin": begin}, SHAPE, 2, 0) for begin in ("he", "torch"))
    for (_, wide), (where, narrow) in zip(he.named_parameters(), small.named_parameters(), strict=True):
        fan = wide[0].numel()
        if wide.ndim == 4:
            assert float(wide.detach().abs().max()) <= (6 / fan) ** 0.5 + 1e-6, where
            assert float(narrow.detach().abs().max()) <= fan**-0.5 + 1e-6, where


@pytest.mark.parametrize(("pool", "same"), [("average", True), ("none", False)])
def test_circular_padding_hides_where_things_are(pool: str, same: bool) -> None:
    options = {"norm": "batch", "padding": "circular", "stride": 1, "pool": pool}
    module = build_model("convnet", options, SHAPE, 4, 0)
    x, y = example("convnet")
    gradients = [
        torch.cat(
            [g.flatten() for g in torch.autograd.grad(functional.cross_entropy(module(z), y), module.parameters())]
        )
        for z in (x, x.roll((3, 2), (2, 3)))
    ]
    assert torch.allclose(*gradients, atol=1e-5) == same


def test_a_deep_convnet_need_not_end_in_nothing() -> None:
    """With so many downsamplings, networks of any depth end in as many features."""
    for depth in (2, 5):
        module = build_model("convnet", {"width": 4, "depth": depth, "downsamplings": 2}, (3, 16, 16), 2, 0)
        layers = [layer for layer in module if isinstance(layer, nn.Conv2d)]
        assert [layer.stride[0] for layer in layers] == [2, 2] + [1] * (depth - 2)
        assert module[-1].in_features == 4 * 4 * 4


def test_pictures_too_small_for_their_padding_are_refused() -> None:
    with pytest.raises(BadInput, match="does not fit pictures of 1x8x8"):
        build_model("convnet", {"depth": 6, "padding": "reflect"}, (1, 8, 8), 2, 0)
    with pytest.raises(BadInput, match="not 6 n \\+ 2"):
        build_model("resnet", {"depth": 18}, (1, 8, 8), 2, 0)
    with pytest.raises(BadInput, match="do not divide"):
        build_model("vit-tiny", {"heads": 5}, (1, 8, 8), 2, 0)


# --- batch normalisation ---------------------------------------------------------------------------------------------

NORMAL = {"norm": "batch", "width": 4, "depth": 2}


def normalised() -> tuple[nn.Module, BatchNorm, torch.Tensor]:
    layer = BatchNorm(4)
    rng = np.random.default_rng(0)
    values = {"weight": 1.5, "bias": 0.2, "running_mean": 0.3, "running_var": 0.7}
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.fill_(values[name])
    theirs = nn.BatchNorm2d(4)
    theirs.load_state_dict({**layer.state_dict(), "num_batches_tracked": torch.tensor(0)})
    return theirs, layer, torch.from_numpy(rng.random((3, 4, 5, 5), dtype=np.float32))


@pytest.mark.parametrize("training", [True, False])
def test_batch_normalisation_answers_as_torchs_does(training: bool) -> None:
    theirs, ours, x = normalised()
    theirs.train(training)
    ours.train(training)
    torch.testing.assert_close(ours(x), theirs(x))


def test_statistics_have_a_gradient_that_leads_to_those_of_the_batch_whatever_the_loss() -> None:
    _, layer, x = normalised()
    for factor in (1.0, 1e3):
        loss = factor * layer(x).square().mean()
        mean, var = torch.autograd.grad(loss, [layer.running_mean, layer.running_var])
        torch.testing.assert_close(mean, 0.3 - x.mean((0, 2, 3)))
        torch.testing.assert_close(var, 0.7 - x.var((0, 2, 3), unbiased=False))


def test_nothing_goes_from_the_statistics_into_earlier_layers() -> None:
    theirs, layer, x = normalised()
    found = []
    for module in (theirs, layer):
        z = x.clone().requires_grad_()
        found += torch.autograd.grad(module(z).pow(3).mean(), z)
    torch.testing.assert_close(found[0], found[1])


def test_who_differentiates_again_reads_the_batchs_statistics() -> None:
    _, layer, x = normalised()
    x.requires_grad_()
    (mean,) = torch.autograd.grad(layer(x).square().mean(), layer.running_mean, create_graph=True)
    (again,) = torch.autograd.grad(mean.sum(), x)
    torch.testing.assert_close(again, torch.full_like(x, -1 / 75))


def test_sgd_makes_them_averages_and_evaluation_uses_them() -> None:
    """At rate 0.1 they are what torch's own layer keeps with its momentum of 0.1, but for its unbiased variance."""
    rng = np.random.default_rng(0)
    x, y = rng.random((4, 1, 6, 6), dtype=np.float32) * 0.3 + 0.5, rng.integers(0, 3, 4)
    build = partial(build_model, "convnet", NORMAL, (1, 6, 6), 3, 0)
    worker = Trainer(x, y, x, y, build, Settings(4, 30, 0.1), 0, 0)
    start = initial_vector("convnet", NORMAL, (1, 6, 6), 3, 0)
    (result,) = worker.run([Train(0, start)])
    assert isinstance(result, Trained)
    (score,) = worker.run([Evaluate(start + result.update)])
    module = build()
    vector_to_parameters(module, start + result.update)
    layers = [m for m in module.modules() if isinstance(m, BatchNorm)]
    assert len(layers) == 2
    seen: list[torch.Tensor] = []
    layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        logits = module.eval()(torch.from_numpy(x))
    assert isinstance(score, Evaluated)
    assert score.loss == pytest.approx(functional.cross_entropy(logits, torch.from_numpy(y)).item(), rel=1e-5)
    var, mean = torch.var_mean(seen[0], (0, 2, 3), unbiased=False)
    torch.testing.assert_close(layers[0].running_mean.detach(), mean, atol=0.1, rtol=0)
    torch.testing.assert_close(layers[0].running_var.detach(), var + (1 - var) * 0.9**30, atol=0.02, rtol=0)
    (again,) = worker.run([Train(0, start)])  # it trains again after evaluation, by the batch's statistics
    assert isinstance(again, Trained)
    assert again.update.tobytes() == result.update.tobytes()


def test_norms_begin_as_such_and_nothing_else_changes() -> None:
    module = build_model("resnet", {"depth": 8, "width": 4}, (1, 8, 8), 3, 0)
    for layer in (m for m in module.modules() if isinstance(m, BatchNorm)):
        assert (layer.weight == 1).all()
        assert (layer.bias == 0).all()
        assert (layer.running_mean == 0).all()
        assert (layer.running_var == 1).all()
    plain, normal = (build_model("convnet", {"norm": norm}, (1, 8, 8), 3, 0) for norm in ("none", "batch"))
    convolutions = [[m for m in n.modules() if isinstance(m, nn.Conv2d)] for n in (plain, normal)]
    for one, other in zip(*convolutions, strict=True):
        assert torch.equal(one.weight, other.weight)


def test_negative_statistics_are_survived() -> None:
    _, layer, x = normalised()
    with torch.no_grad():
        layer.running_var.fill_(-1.0)
    assert torch.isfinite(layer.eval()(x)).all()


# --- private training: examples one by one ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", OWN)
def test_private_training_is_refused_where_examples_are_not_apart(name: str) -> None:
    module = build_model(name, {}, SHAPE, 4, 0)
    if any(isinstance(m, BatchNorm) for m in module.modules()):
        with pytest.raises(BadInput, match='norm = "group"'):
            require_apart(name, module, SHAPE)
    else:
        require_apart(name, module, SHAPE)


@pytest.mark.parametrize("norm", ["none", "frozen", "group"])
def test_these_keep_examples_apart(norm: str) -> None:
    for name, options in (("resnet", {"depth": 8}), ("convnet", {})):
        require_apart(name, build_model(name, {**options, "norm": norm}, SHAPE, 4, 0), SHAPE)


def test_a_users_module_is_looked_at_too() -> None:
    with pytest.raises(BadInput, match="over the batch"):
        require_apart("module", build_model("module", {"path": "users_networks:Small"}, SHAPE, 4, 0), SHAPE)
    require_apart("module", build_model("module", {"path": "users_networks:lazy"}, SHAPE, 4, 0), SHAPE)


# --- modules by import path -------------------------------------------------------------------------------------------


def test_a_users_module_begins_as_its_constructor_says_from_the_seed() -> None:
    options = {"path": "users_networks:Small", "options": {"width": 3}}
    module = build_model("module", options, SHAPE, 4, 5)
    assert [shape for _, shape, _ in layout(module)][0] == (3, 3, 3, 3)
    assert (next(m for m in module.modules() if isinstance(m, nn.BatchNorm2d)).weight == 1).all()
    assert len(initial_vector("module", {"path": "users_networks:lazy"}, SHAPE, 4, 0)) == 4 * 192 + 4


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("no_such_place:Small", "no module 'no_such_place'"),
        ("users_networks:Smaller", "has no 'Smaller'"),
        ("users_networks", "pattern"),
        ("os:system", "annotated to return one"),
        ("users_networks:says_nothing", "annotated to return one"),
        ("users_networks:not_callable", "annotated to return one"),
        ("users_networks:another", "made a str"),
        ("users_networks:buffered", "track_running_stats=False"),
        ("users_networks:chancy", "drop dropout"),
        ("users_networks:frozen", "does not train its parameter '0.weight'"),
        ("users_networks:narrow", r"with \(2, 1\)"),
        ("users_networks:empty", "no parameters"),
        ("users_networks:brittle", "failed with RuntimeError"),
        ("users_networks:Idle", "does not use its parameter 'idle'"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_a_sentence(path: str, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        build_model("module", {"path": path}, (1, 8, 8), 4, 0)


def test_a_module_takes_no_options_it_does_not_know_and_is_no_part_of_another() -> None:
    with pytest.raises(BadInput, match="wide"):
        build_model("module", {"path": "users_networks:Small", "options": {"wide": 3}}, SHAPE, 4, 0)
    with pytest.raises(BadInput, match="cannot stand behind another"):
        MODELS.build("module", {"path": "users_networks:Small"}).build(SHAPE, 4)
