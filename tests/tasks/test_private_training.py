"""Private training: gradients by example are opacus's, clipping and noise are what they say, samples are Poisson."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from veilmesh.core.zerosum import Pair
from veilmesh.tasks import Settings, Train
from veilmesh.tasks.models.build import build_model, initial_vector
from veilmesh.tasks.private import clipped_sum, loss_of, noise
from veilmesh.tasks.training import Trainer
from veilmesh.tasks.work import Private, Trained, poisson_indices, sampling_rate

N = 20
SHAPE = (1, 8, 8)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def data(per_pixel: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.random((N, *SHAPE), dtype=np.float32), rng.integers(0, 3, (N, 8, 8) if per_pixel else N)


def run(settings: Settings, tasks: list[int], secret: int | None = None, pairs: tuple[Pair, ...] = ()) -> list[Trained]:
    x, y = data()
    build = partial(build_model, "mlp", {}, SHAPE, 3, 0)
    worker = Trainer(x, y, x, y, build, settings, 7, 0, secret, pairs)
    start = initial_vector("mlp", {}, SHAPE, 3, 0)
    return worker.run([Train(round_, start) for round_ in tasks])  # type: ignore[return-value]  # Train gives Trained


def by_example(model: str, per_pixel: bool = False) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A module, its inputs, and its gradients by example: (N, d), one backward pass each."""
    x, y = map(torch.from_numpy, data(per_pixel))
    module = build_model(model, {}, SHAPE, 3, 1)
    parameters = list(module.parameters())
    rows = []
    for i in range(N):
        loss = torch.nn.functional.cross_entropy(module(x[i : i + 1]), y[i : i + 1])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    return module, x, y, torch.stack(rows)


@pytest.mark.parametrize("model", ["mlp", "convnet", "lenet", "segnet", "vit-tiny", "unet-encoder"])
@pytest.mark.parametrize("clip", [0.05, 1e6])
def test_the_sum_is_of_every_examples_clipped_gradient(model: str, clip: float) -> None:
    module, x, y, rows = by_example(model, model == "segnet")
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    drawn = torch.tensor([float(i % 3 > 0) for i in range(N)])
    total, losses = clipped_sum(loss_of(module), parameters, x, y, drawn, clip)
    scale = (clip / rows.norm(dim=1)).clamp(max=1) * drawn
    torch.testing.assert_close(total, scale @ rows, rtol=1e-4, atol=1e-5)
    assert len(losses) == N


def test_gradients_by_example_are_those_of_opacus() -> None:
    grad_sample = pytest.importorskip("opacus.grad_sample")
    x, y = map(torch.from_numpy, data())
    module = build_model("convnet", {}, SHAPE, 3, 1)
    parameters = {name: p.detach().clone() for name, p in module.named_parameters()}
    watched = grad_sample.GradSampleModule(build_model("convnet", {}, SHAPE, 3, 1), loss_reduction="sum")
    torch.autograd.backward(torch.nn.functional.cross_entropy(watched(x), y, reduction="sum"))
    theirs = torch.cat([p.grad_sample.flatten(1) for p in watched.parameters()], dim=1)
    for i in range(N):
        ours, _ = clipped_sum(loss_of(module), parameters, x[i : i + 1], y[i : i + 1], torch.ones(1), 1e9)
        torch.testing.assert_close(ours, theirs[i], rtol=0, atol=1e-5)


def test_peers_can_go_through_one_vmap_together() -> None:
    module, x, y, _ = by_example("mlp")
    parameters = {name: torch.stack([p.detach(), p.detach() * 0.5]) for name, p in module.named_parameters()}
    xs, ys = torch.stack([x[:6], x[6:12]]), torch.stack([y[:6], y[6:12]])
    drawn = torch.tensor([[1.0] * 6, [1.0, 1, 1, 0, 0, 0]])
    many = torch.func.vmap(partial(clipped_sum, loss_of(module), clip=0.3), in_dims=(0, 0, 0, 0))
    totals, _ = many(parameters, xs, ys, drawn)
    for i in range(2):
        own = {name: p[i] for name, p in parameters.items()}
        count = int(drawn[i].sum())
        alone, _ = clipped_sum(loss_of(module), own, xs[i][:count], ys[i][:count], torch.ones(count), 0.3)
        torch.testing.assert_close(totals[i], alone, rtol=1e-5, atol=1e-6)


def test_one_example_more_or_less_moves_the_sum_by_the_clip_at_most() -> None:
    module, x, y, _ = by_example("mlp")
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    ones = torch.ones(N)
    everybody, _ = clipped_sum(loss_of(module), parameters, x, y, ones, 0.2)
    for i in range(N):
        without = ones.clone()
        without[i] = 0
        others, _ = clipped_sum(loss_of(module), parameters, x, y, without, 0.2)
        assert (everybody - others).norm() <= 0.2 * (1 + 1e-4)


def test_samples_are_poisson() -> None:
    draws = [poisson_indices(1, 0, round_, 0, N, 5) for round_ in range(2000)]
    sizes = np.array([len(d) for d in draws])
    often = np.bincount(np.concatenate(draws), minlength=N) / len(draws)
    assert sampling_rate(N, 5) == 0.25
    np.testing.assert_allclose(often, 0.25, atol=0.05)
    assert sizes.mean() == pytest.approx(5, rel=0.05)
    assert sizes.var() == pytest.approx(N * 0.25 * 0.75, rel=0.15)  # a fixed size would have none
    assert len(poisson_indices(1, 0, 0, 0, N, 100)) == N
    np.testing.assert_array_equal(draws[3], poisson_indices(1, 0, 3, 0, N, 5))


def test_a_step_is_the_noisy_mean_over_the_batch_that_was_expected() -> None:
    settings = Settings(5, 1, 0.1, private=Private(clip=0.4, noise=1e-9))
    [result] = run(settings, [0])
    x, y = map(torch.from_numpy, data())
    module = build_model("mlp", {}, SHAPE, 3, 0)
    torch.nn.utils.vector_to_parameters(torch.from_numpy(initial_vector("mlp", {}, SHAPE, 3, 0)), module.parameters())
    drawn = torch.from_numpy(poisson_indices(7, 0, 0, 0, N, 5))
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    total, losses = clipped_sum(loss_of(module), parameters, x[drawn], y[drawn], torch.ones(len(drawn)), 0.4)
    np.testing.assert_allclose(result.update, -0.1 * total.numpy() / 5, rtol=1e-4, atol=1e-7)
    assert result.loss == pytest.approx(float(losses.mean()), rel=1e-5)


def test_noise_is_as_large_as_it_says_and_never_drawn_twice() -> None:
    settings = Settings(5, 1, 0.1, private=Private(clip=0.4, noise=50.0))
    first, second, again = run(settings, [0, 1, 0])
    d = first.update.size
    assert np.linalg.norm(first.update) == pytest.approx(0.1 * 50 * 0.4 / 5 * np.sqrt(d), rel=0.1)
    for one, other in ((first, second), (first, again), (first, run(settings, [0], secret=8)[0])):
        assert abs(np.corrcoef(one.update, other.update)[0, 1]) < 0.15
    np.testing.assert_array_equal(first.update, run(settings, [0])[0].update)


def test_how_many_were_drawn_is_not_said() -> None:
    settings = Settings(2, 3, 0.1, private=Private(1.0, 1.0))
    results = run(settings, list(range(12)))
    sizes = {sum(len(poisson_indices(7, 0, r, s, N, 2)) for s in range(3)) for r in range(12)}
    assert len(sizes) > 1
    assert any(not len(poisson_indices(7, 0, r, s, N, 2)) for r in range(12) for s in range(3))  # none at all is fine
    assert {r.samples for r in results} == {6}
    assert all(np.isfinite(r.loss) for r in results)


def test_shared_noise_cancels_between_two_peers() -> None:
    private = Private(clip=2.0, noise=1.0, pair=100.0)
    mine, theirs = (
        noise(private, 400, secret, [Pair(5, sign)], p, 0, 0, 0) for p, secret, sign in ((0, 1, 1), (1, 2, -1))
    )
    own = [noise(replace(private, pair=0.0), 400, s, [], p, 0, 0, 0) for p, s in ((0, 1), (1, 2))]
    assert float(mine.std()) == pytest.approx(200, rel=0.15)
    torch.testing.assert_close(mine + theirs, own[0] + own[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_what_an_optimizer_makes_of_it_is_post_processing(optimizer: str) -> None:
    settings = Settings(8, 4, 0.05, optimizer=optimizer, private=Private(1.0, 1e-6))  # type: ignore[arg-type]  # one of the two
    [result] = run(settings, [0])
    assert np.isfinite(result.update).all()
    assert np.linalg.norm(result.update) > 0


def test_everyday_training_draws_what_it_always_drew() -> None:
    plain = Settings(5, 2, 0.1)
    np.testing.assert_array_equal(run(plain, [3])[0].update, run(plain, [3], secret=99)[0].update)
