"""Local training: an update is what it says, comes out the same every time, and teaches."""

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmesh.core import BadInput, LocalError, generator
from veilmesh.tasks import PARTITIONS, SOURCES, Evaluate, Settings, Train, batch_indices
from veilmesh.tasks.models.build import build_model, initial_vector, vector_to_parameters
from veilmesh.tasks.training import Trainer
from veilmesh.tasks.work import Evaluated, Trained


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def tiny(seed: int = 0, n: int = 12, per_pixel: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.random((n, 1, 6, 6), dtype=np.float32)
    return x, rng.integers(0, 3, (n, 6, 6) if per_pixel else n)


def trainer(settings: Settings, model: str = "mlp", per_pixel: bool = False, peer: int = 0) -> Trainer:
    x, y = tiny(per_pixel=per_pixel)
    return Trainer(x, y, x, y, partial(build_model, model, {}, (1, 6, 6), 3, 0), settings, seed=7, peer_index=peer)


def start(model: str = "mlp") -> np.ndarray:
    return initial_vector(model, {}, (1, 6, 6), 3, 0)


def train(worker: Trainer, round: int, parameters: np.ndarray) -> Trained:
    (result,) = worker.run([Train(round, parameters)])
    assert isinstance(result, Trained)
    return result


def reference_gradient(model: str, parameters: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """The gradient as plain torch accumulates it in a fresh module."""
    module = build_model(model, {}, (1, 6, 6), 3, 1)
    vector_to_parameters(module, parameters)
    loss = torch.nn.functional.cross_entropy(module(torch.from_numpy(x)), torch.from_numpy(y))
    torch.autograd.backward(loss)
    return loss.item(), np.concatenate([p.grad.numpy().ravel() for p in module.parameters() if p.grad is not None])


@pytest.mark.parametrize("model", ["mlp", "convnet", "lenet", "segnet"])
@pytest.mark.parametrize("batch", [1, 4, 50])
def test_one_step_is_exactly_minus_rate_times_gradient(model: str, batch: int) -> None:
    per_pixel = model == "segnet"
    x, y = tiny(per_pixel=per_pixel)
    lr = 1e-5  # so small that (p - lr g) - p would keep few bits of g
    result = train(trainer(Settings(batch, 1, lr), model, per_pixel), 3, start(model))
    chosen = batch_indices(7, 0, 3, 0, len(x), batch)
    loss, gradient = reference_gradient(model, start(model), x[chosen], y[chosen])
    assert result.update.dtype == np.float32
    assert np.array_equal(result.update, np.float32(-lr) * gradient)
    assert result.loss == loss
    assert result.samples == min(batch, 12)


def test_several_steps_with_momentum_follow_the_reference() -> None:
    x, y = tiny()
    options = Settings(batch=2, local_steps=4, learning_rate=0.1, momentum=0.9)
    result = train(trainer(options), 5, start())
    update, velocity, losses = np.zeros_like(start()), np.zeros_like(start()), []
    for step in range(4):
        chosen = batch_indices(7, 0, 5, step, len(x), 2, 4)
        loss, gradient = reference_gradient("mlp", start() + update, x[chosen], y[chosen])
        velocity = np.float32(0.9) * velocity + gradient
        update = update - np.float32(0.1) * velocity
        losses.append(loss)
    np.testing.assert_allclose(result.update, update, rtol=1e-4, atol=1e-7)
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert result.samples == 8


def test_a_round_depends_only_on_its_task() -> None:
    options = Settings(batch=3, local_steps=2, learning_rate=0.1, momentum=0.5)
    busy, fresh = trainer(options), trainer(options)
    first = train(busy, 0, start())
    for round in (9, 4, 1):
        busy.run([Train(round, start() + first.update), Evaluate(start())])
    kept = first.update.copy()
    again, other = train(busy, 0, start()), train(fresh, 0, start())
    assert again.update.tobytes() == other.update.tobytes() == kept.tobytes()
    assert first.update.tobytes() == kept.tobytes()  # an answer is never written to again
    assert not np.array_equal(train(trainer(options, peer=1), 0, start()).update, kept)


def test_neither_the_parameters_nor_a_global_generator_are_touched() -> None:
    vector = start()
    vector.setflags(write=False)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    trainer(Settings(2, 3, 0.1)).run([Train(0, vector), Evaluate(vector)])
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(vector, start())


def test_evaluation_counts_pictures_or_pixels() -> None:
    for model, per_pixel in [("mlp", False), ("segnet", True)]:
        (result,) = trainer(Settings(1, 1, 0.1), model, per_pixel).run([Evaluate(start(model))])
        x, y = tiny(per_pixel=per_pixel)
        module = build_model(model, {}, (1, 6, 6), 3, 0)
        named = module(torch.from_numpy(x)).argmax(1).numpy()
        loss, _ = reference_gradient(model, start(model), x, y)
        assert isinstance(result, Evaluated)
        assert result.accuracy == pytest.approx(float((named == y).mean()))
        assert result.loss == pytest.approx(loss, rel=1e-5)


def test_what_is_not_a_task_or_does_not_fit_is_our_bug() -> None:
    worker = trainer(Settings(1, 1, 0.1))
    with pytest.raises(LocalError, match="cannot do a str"):
        worker.run(["train"])
    for wrong in (np.zeros(3, dtype=np.float32), start().astype(np.float64)):
        with pytest.raises(LocalError, match="for a model of"):
            worker.run([Train(0, wrong)])  # type: ignore[arg-type]  # the wrong type is the point


def test_divergence_is_said_in_a_sentence() -> None:
    with pytest.raises(BadInput, match="lower learning rate"):
        trainer(Settings(2, 20, 1e30)).run([Train(0, start())])


@given(
    seed=st.integers(0, 5), peer=st.integers(0, 5), n=st.integers(1, 40), batch=st.integers(1, 50),
    local_steps=st.integers(1, 4),
)  # fmt: skip
@settings(max_examples=examples(50), deadline=None)
def test_batches_are_pure_and_without_replacement_in_an_epoch(
    seed: int, peer: int, n: int, batch: int, local_steps: int
) -> None:
    size = min(batch, n)
    places = [divmod(t, local_steps) for t in range(2 * (n // size))]
    drawn = [batch_indices(seed, peer, round, step, n, batch, local_steps) for round, step in places]
    assert all(len(b) == size and b.dtype == np.int64 for b in drawn)
    for epoch in (drawn[: n // size], drawn[n // size :]):
        used = np.concatenate(epoch).tolist()
        assert len(set(used)) == len(used)
        assert set(used) <= set(range(n))
    round, step = places[-1]
    assert np.array_equal(batch_indices(seed, peer, round, step, n, batch, local_steps), drawn[-1])


def test_batch_streams_differ_by_seed_peer_and_epoch() -> None:
    draws = [batch_indices(s, p, r, 0, 30, 30).tolist() for s in (0, 1) for p in (0, 1) for r in (0, 1)]
    assert len({tuple(draw) for draw in draws}) == len(draws)
    with pytest.raises(LocalError, match="no local step"):
        batch_indices(0, 0, 0, 1, 30, 1)


def gossip(name: str, model: str, options: dict[str, object], rate: float, rounds: int) -> tuple[Evaluated, Evaluated]:
    """Five peers on a complete graph, one picture each a round: the score before and after."""
    data = SOURCES.build(name).load()
    parts = PARTITIONS.build("iid").split(data.train_y, 5, generator(0, "partition"))
    build = partial(build_model, model, options, data.shape, data.classes, 0)
    workers = [
        Trainer(data.train_x[part], data.train_y[part], data.test_x, data.test_y, build, Settings(1, 1, rate), 0, peer)
        for peer, part in enumerate(parts)
    ]
    vector = initial_vector(model, options, data.shape, data.classes, 0)
    (before,) = workers[0].run([Evaluate(vector)])
    for round in range(rounds):
        vector = vector + np.mean([train(worker, round, vector).update for worker in workers], axis=0)
    (after,) = workers[0].run([Evaluate(vector)])
    assert isinstance(before, Evaluated)
    assert isinstance(after, Evaluated)
    return before, after


@pytest.mark.parametrize(
    ("name", "model", "options", "rate", "rounds", "wanted"),
    [
        ("digits", "mlp", {"hidden": [256], "activation": "tanh"}, 0.05, 300, 0.9),
        ("faces", "convnet", {"width": 16, "depth": 2}, 0.05, 200, 0.9),
    ],
)
def test_peers_that_average_single_pictures_learn(
    name: str, model: str, options: dict[str, object], rate: float, rounds: int, wanted: float
) -> None:
    before, after = gossip(name, model, options, rate, rounds)
    assert after.loss < 0.5 * before.loss
    assert after.accuracy > wanted


def test_segmentation_learns() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((20, 1, 8, 8), dtype=np.float32)
    y = (x[:, 0] > 0.5).astype(np.int64) + (x[:, 0] > 0.75)
    build = partial(build_model, "segnet", {"width": 8}, (1, 8, 8), 3, 0)
    worker = Trainer(x, y, x, y, build, Settings(4, 60, 0.1, 0.9), 0, 0)
    vector = initial_vector("segnet", {"width": 8}, (1, 8, 8), 3, 0)
    vector = vector + train(worker, 0, vector).update
    (after,) = worker.run([Evaluate(vector)])
    assert isinstance(after, Evaluated)
    assert after.accuracy > 0.8


# --- Adam, the proximal term, the correction -------------------------------------------------------------------------


def ask(settings: Settings, task: Train, model: str = "mlp") -> Trained:
    (result,) = trainer(settings, model).run([task])
    assert isinstance(result, Trained)
    return result


def gradients(parameters: np.ndarray, steps: int, batch: int, round: int, step: int) -> np.ndarray:
    x, y = tiny()
    chosen = batch_indices(7, 0, round, step, len(x), batch, steps)
    return reference_gradient("mlp", parameters, x[chosen], y[chosen])[1]


@pytest.mark.parametrize("model", ["mlp", "convnet"])
def test_adam_is_torchs(model: str) -> None:
    """Side by side with `torch.optim.Adam` on the same batches, parameter tensor by parameter tensor."""
    x, y = tiny()
    steps, rate = 7, 0.01
    result = ask(Settings(4, steps, rate, optimizer="adam"), Train(2, start(model)), model)
    module = build_model(model, {}, (1, 6, 6), 3, 0)
    vector_to_parameters(module, start(model))
    reference = torch.optim.Adam(module.parameters(), lr=rate)
    losses = []
    for step in range(steps):
        chosen = batch_indices(7, 0, 2, step, len(x), 4, steps)
        loss = torch.nn.functional.cross_entropy(module(torch.from_numpy(x[chosen])), torch.from_numpy(y[chosen]))
        reference.zero_grad()
        loss.backward()
        reference.step()
        losses.append(loss.item())
    after = np.concatenate([p.detach().numpy().ravel() for p in module.parameters()])
    np.testing.assert_allclose(start(model) + result.update, after, rtol=1e-4, atol=1e-6)
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert np.abs(result.update).max() > rate  # it went somewhere


def test_adam_begins_afresh_in_every_round() -> None:
    options = Settings(3, 4, 0.01, optimizer="adam")
    busy, fresh = trainer(options), trainer(options)
    first = train(busy, 0, start())
    busy.run([Train(5, start() + first.update), Train(2, start())])
    again, other = train(busy, 0, start()), train(fresh, 0, start())
    assert again.update.tobytes() == other.update.tobytes() == first.update.tobytes()


def test_adams_first_step_is_the_rate_in_the_gradients_sign() -> None:
    result = ask(Settings(12, 1, 0.01, optimizer="adam"), Train(0, start()))
    gradient = gradients(start(), 1, 12, 0, 0)
    large = np.abs(gradient) > 1e-4
    np.testing.assert_allclose(result.update[large], -0.01 * np.sign(gradient[large]), rtol=1e-3)


def test_adam_loads_no_compiler() -> None:
    """`torch.optim.Adam.step` would import torch's compiler, a second and many megabytes, in every worker."""
    program = (
        "import sys, numpy as np\nfrom functools import partial\n"
        "from veilmesh.tasks.models.build import build_model, initial_vector\n"
        "from veilmesh.tasks.training import Settings, Train, Trainer\n"
        "x, y = np.zeros((4, 1, 6, 6), np.float32), np.zeros(4, np.int64)\n"
        "build = partial(build_model, 'mlp', {}, (1, 6, 6), 3, 0)\n"
        "worker = Trainer(x, y, x, y, build, Settings(2, 2, 0.01, optimizer='adam'), 0, 0)\n"
        "worker.run([Train(0, initial_vector('mlp', {}, (1, 6, 6), 3, 0))])\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_proximal_term_pulls_back_to_where_the_round_began(momentum: float) -> None:
    mu, rate, steps = 0.7, 0.1, 4
    result = ask(Settings(2, steps, rate, momentum), Train(5, start(), proximal=mu))
    update, velocity = np.zeros_like(start()), np.zeros_like(start())
    for step in range(steps):
        gradient = gradients(start() + update, steps, 2, 5, step) + np.float32(mu) * update
        velocity = np.float32(momentum) * velocity + gradient
        update = update - np.float32(rate) * velocity
    np.testing.assert_allclose(result.update, update, rtol=1e-4, atol=1e-7)
    plain = ask(Settings(2, steps, rate, momentum), Train(5, start()))
    assert np.linalg.norm(result.update) < np.linalg.norm(plain.update)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_no_term_and_no_correction_are_nothing_to_the_bit(optimizer: str) -> None:
    options = Settings(2, 5, 0.1, optimizer=optimizer)
    plain = ask(options, Train(1, start()))
    same = ask(options, Train(1, start(), 0.0, None))
    assert same.update.tobytes() == plain.update.tobytes()
    once = Settings(2, 1, 0.1, optimizer=optimizer)
    assert ask(once, Train(1, start(), 3.0)).update.tobytes() == ask(once, Train(1, start())).update.tobytes()


def test_a_correction_is_added_to_every_gradient() -> None:
    rate, steps = 0.1, 3
    correction = np.random.default_rng(1).standard_normal(start().size).astype(np.float32)
    correction.setflags(write=False)
    result = ask(Settings(2, steps, rate), Train(5, start(), correction=correction))
    update = np.zeros_like(start())
    for step in range(steps):
        update = update - np.float32(rate) * (gradients(start() + update, steps, 2, 5, step) + correction)
    np.testing.assert_allclose(result.update, update, rtol=1e-4, atol=1e-6)
    once = ask(Settings(2, 1, rate), Train(5, start(), correction=correction))
    wanted = np.float32(-rate) * (gradients(start(), 1, 2, 5, 0) + correction)
    assert once.update.tobytes() == wanted.tobytes()


def test_scaffolds_variate_is_the_mean_of_the_gradients() -> None:
    """Option II reads sum_k g_k off the way gone: c_i+ = c_i - c + (x - y) / (K lr)."""
    rate, steps = 0.05, 4
    rng = np.random.default_rng(2)
    c, own = (rng.standard_normal((2, start().size)) / 10).astype(np.float32)
    result = ask(Settings(2, steps, rate), Train(1, start(), correction=c - own))
    found, update, seen = own - c - result.update / np.float32(steps * rate), np.zeros_like(start()), []
    for step in range(steps):
        seen.append(gradients(start() + update, steps, 2, 1, step))
        update = update - np.float32(rate) * (seen[-1] + c - own)
    np.testing.assert_allclose(found, np.mean(seen, axis=0), rtol=1e-3, atol=1e-5)


def test_what_cannot_be_is_our_bug() -> None:
    with pytest.raises(LocalError, match="momentum"):
        Settings(1, 1, 0.1, 0.9, "adam")
    for wrong in (np.zeros(3, dtype=np.float32), start().astype(np.float64)):
        with pytest.raises(LocalError, match="for a model of"):
            ask(Settings(1, 1, 0.1), Train(0, start(), correction=wrong))  # type: ignore[arg-type]  # that is the point
