"""What a shared hypernetwork says of a peer: embedding, extractor and gradient exactly, and so the picture."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from veilmesh.attacks import ATTACKS, View
from veilmesh.attacks.inversion.hypernetworks import messages
from veilmesh.attacks.matching.functional import Functional, Guessed
from veilmesh.attacks.seen.hypernetwork import Reading, read
from veilmesh.core import BadInput, generator
from veilmesh.peer.machine import PeerId
from veilmesh.sim.cast import Cast
from veilmesh.sim.observation import observation
from veilmesh.sim.run import run_scenario
from veilmesh.sim.scenario import Scenario
from veilmesh.swarm.sharing.base import SHARINGS, Own, Setting
from veilmesh.tasks.generated import GeneratedTrainer
from veilmesh.tasks.models.hypernetwork import Hypernetwork, HyperOptions, hypernetwork, initial_phi, own_parts
from veilmesh.tasks.work import Settings, Train, Trained

torch.set_num_threads(1)

SHAPE, CLASSES = (1, 8, 8), 4
NETWORK = {"name": "fc-convnet", "width": 2, "hidden": 6, "pooling": False}
POOLED = {"name": "convnet", "width": 6, "depth": 2, "stride": 1, "activation": "leaky-relu", "pool": "average"}
FLAT = {**POOLED, "pool": "none"}
FORMS = [
    HyperOptions(8, 16), HyperOptions(8, 16, head_bias=False), HyperOptions(8, 16, rank=2),
    HyperOptions(8, 16, rank=1, head_bias=False), HyperOptions(8, 16, chunk=150),
    HyperOptions(8, 16, chunk=150, head_bias=False),
]  # fmt: skip


def drawn(*shape: int) -> Tensor:
    return torch.from_numpy(generator(1, "pictures").random(shape, np.float32))


class Step:
    """The gradient of one step on `x`, as everybody gets it, and what is behind it."""

    def __init__(self, options: HyperOptions, model: dict[str, Any] = NETWORK, count: int = 1) -> None:
        self.net: Hypernetwork = hypernetwork(options, model, SHAPE, CLASSES)
        self.phi = torch.from_numpy(initial_phi(self.net, 1))
        self.v, self.psi = own_parts(self.net, 5)
        self.x, y = drawn(count, *SHAPE), torch.arange(count) % CLASSES
        phi = self.phi.clone().requires_grad_()
        self.theta = self.net.generate(phi, self.v)
        leaves = {name: part.detach().requires_grad_() for name, part in self.theta.items()}
        loss = functional.cross_entropy(self.net.forward(leaves, self.psi, self.x), y)
        slopes = torch.autograd.grad(loss, list(leaves.values()))
        (self.gradient,) = torch.autograd.grad(list(self.theta.values()), phi, slopes)
        self.slope = torch.cat([slope.reshape(-1) for slope in slopes])
        self.z = self.net.hidden(self.phi, self.v)


def error(found: Tensor, true: Tensor) -> float:
    return float((found - true).norm() / true.norm())


def exact(reading: Reading, step: Step, limit: float = 1e-5) -> None:
    assert error(reading.v, step.v) <= limit
    assert error(reading.z, step.z) <= limit
    assert all(error(reading.theta[name], part.detach()) <= limit for name, part in step.theta.items())


@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize("count", [1, 3])
def test_one_step_says_embedding_extractor_and_gradient_exactly(options: HyperOptions, count: int) -> None:
    step = Step(options, count=count)
    reading = read(step.net, step.phi, step.gradient)
    exact(reading, step)
    assert reading.whole
    assert error(reading.gradient, step.slope) <= 1e-4


def test_without_the_first_layer_heads_with_a_bias_say_everything_but_the_embedding() -> None:
    step = Step(FORMS[0])
    begin = step.net.parts(torch.arange(step.net.size))["mlp.bias"].max() + 1
    step.gradient[: int(begin)] = 0  # as if it were never trained
    reading = read(step.net, step.phi, step.gradient)
    assert error(reading.z, step.z) <= 1e-5
    assert error(reading.gradient, step.slope) <= 1e-5


def test_many_small_chunks_say_projections_of_the_gradient() -> None:
    step = Step(HyperOptions(8, 16, chunk=20))
    reading = read(step.net, step.phi, step.gradient)
    exact(reading, step)
    assert not reading.whole
    assert error(reading.gradient, reading.sees(step.slope)) <= 1e-4
    other = step.slope * torch.linspace(-1, 1, len(step.slope))
    torch.testing.assert_close(reading.sees(step.slope + other), reading.sees(step.slope) + reading.sees(other))


def test_noise_averages_out_over_what_every_head_repeats() -> None:
    step = Step(HyperOptions(8, 64), {**NETWORK, "width": 8})
    noise = torch.from_numpy(generator(2, "noise").standard_normal(step.net.size).astype(np.float32))
    ratio = 0.5
    noisy = step.gradient + ratio * step.gradient.norm() / noise.norm() * noise
    reading = read(step.net, step.phi, noisy)
    assert error(reading.gradient, step.slope) < 1.3 * ratio / 65**0.5


def test_what_was_pruned_is_in_another_column() -> None:
    step = Step(FORMS[0])
    said = (step.gradient.abs() >= step.gradient.abs().quantile(0.7)).float()
    reading = read(step.net, step.phi, step.gradient * said, said)
    known = reading.known.bool()
    assert error(reading.z, step.z) <= 1e-4
    assert error(reading.gradient[known], step.slope[known]) <= 1e-4
    assert float(known.float().mean()) > 0.3 * 1.2  # more than a share of it that is drawn at random would say


@pytest.mark.parametrize(("model", "count"), [(NETWORK, 1), (NETWORK, 3), (POOLED, 1)])
def test_neither_classifier_nor_label_is_needed(model: dict[str, Any], count: int) -> None:
    step = Step(FORMS[0], model, count)
    candidates = Functional(step.net, read(step.net, step.phi, step.gradient), count, SHAPE)
    assert candidates.searched == 0
    found = candidates.predict(step.x[None], torch.zeros(1, count, dtype=torch.int64)).gradient[0]
    assert error(found, step.slope) <= 1e-3


def test_a_wide_classifier_leaves_its_pull_to_be_searched() -> None:
    step = Step(FORMS[0], FLAT)
    candidates = Functional(step.net, read(step.net, step.phi, step.gradient), 1, SHAPE)
    assert candidates.searched == 6 * 64
    alpha = torch.ones(1, 1, 6 * 64)
    assert candidates.predict(step.x[None], torch.zeros(1, 1), alpha).gradient.shape == (1, step.net.generated)


@pytest.mark.parametrize("options", FORMS)
def test_who_guesses_rightly_predicts_the_message(options: HyperOptions) -> None:
    step = Step(options)
    x = step.x[None].clone().requires_grad_()
    right = Guessed(step.net, step.phi, step.v, step.psi).predict(x, torch.zeros(1, 1, dtype=torch.int64))
    assert error(right.gradient[0], step.gradient) <= 1e-5
    (way,) = right.back(step.gradient[None], [x])
    torch.testing.assert_close(way, _recorded(step, x), rtol=1e-3, atol=1e-6)


def _recorded(step: Step, x: Tensor) -> Tensor:
    """The derivative of <gradient, what `x` would have said>, all of it recorded by torch."""
    phi = step.phi.clone().requires_grad_()
    theta = step.net.generate(phi, step.v)
    leaves = {name: part.detach().requires_grad_() for name, part in theta.items()}
    loss = functional.cross_entropy(step.net.forward(leaves, step.psi, x[0]), torch.zeros(1, dtype=torch.int64))
    slopes = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
    (said,) = torch.autograd.grad(list(theta.values()), phi, slopes, create_graph=True)
    (way,) = torch.autograd.grad(said @ step.gradient, x)
    return way


RUN = {
    "world": "virtual", "peers": 3, "rounds": 1, "evaluate_every": 1, "task": "digits", "strategy": "gossip",
    "topology": "complete", "training": {"batch": 1, "local_steps": 1, "learning_rate": 0.01},
    "model": {"name": "fc-convnet", "width": 16, "hidden": 32, "pooling": False},
    "adversary": {"vantage": "peer:0"},
}  # fmt: skip


def seen(folder: Path, **changes: Any) -> tuple[Cast, View]:
    cast = Cast.prepare(Scenario.parse({**RUN, **changes}, "test"))
    run_scenario(cast, folder, lambda message: None)
    ids = [PeerId(name) for name in cast.names]
    return cast, observation(folder, cast, ids, "peer:0")


def decibels(cast: Cast, view: View, name: str, **options: Any) -> float:
    """The mean over both victims."""
    guesses = ATTACKS.build(name, {"iterations": 150, **options}).run(view, np.random.default_rng(0))
    return float(np.mean([_psnr(cast, guess.victim, guess.pictures) for guess in guesses]))


def _psnr(cast: Cast, victim: str, pictures: np.ndarray) -> float:
    truth = cast.dataset.train_x[cast.drawn(cast.names.index(victim), 0)]
    return min(60.0, float(-10 * np.log10(np.square(pictures - truth).mean())))


HYPERFL = {"name": "hyperfl", "embedding": 16, "hidden": 16}


def test_in_a_run_the_message_says_what_stays_at_home(tmp_path: Path) -> None:
    cast, view = seen(tmp_path, sharing=HYPERFL)
    found = list(messages(view, ATTACKS.build("hyperfl"), 0))
    assert [message.observed.victim for message in found] == ["peer:1", "peer:2"]
    for index, message in enumerate(found, start=1):
        learner = cast.learner(index)
        assert isinstance(learner, GeneratedTrainer)
        v = learner.embedding  # as it was before the only round
        reading = read(message.net, message.phi, message.gradient)
        assert error(reading.v, v) <= 1e-5
        assert error(reading.z, message.net.hidden(message.phi, v)) <= 1e-5
        for name, part in message.net.generate(message.phi, v).items():
            assert error(reading.theta[name], part) <= 1e-5


def test_the_adaptive_attack_sees_what_it_sees_of_a_whole_model_and_the_naive_one_nothing(tmp_path: Path) -> None:
    whole = decibels(*seen(tmp_path / "whole", sharing="model"), "cosine-inversion")
    run = seen(tmp_path / "hyperfl", sharing=HYPERFL)
    adaptive, naive = decibels(*run, "hyperfl"), decibels(*run, "hyperfl-naive")
    assert adaptive >= whole - 1.5
    assert naive <= min(14, whole - 10)


def test_rounds_later_the_neighbour_difference_is_read_as_well(tmp_path: Path) -> None:
    cast, view = seen(tmp_path, sharing=HYPERFL, rounds=4, evaluate_every=4)
    for guess in ATTACKS.build("hyperfl", {"iterations": 150, "first": 3}).run(view, np.random.default_rng(0)):
        truth = cast.dataset.train_x[cast.drawn(cast.names.index(guess.victim), guess.round)]
        assert guess.round == 3
        assert guess.details["exact"]
        assert np.square(guess.pictures - truth).mean() < 10**-2.5


def test_momentum_decay_and_rate_are_public_so_steps_on_one_picture_are_its_gradient(make_mesh: Any) -> None:
    """At a rate at which nothing moves; decay is large, so that it would show."""
    sharing = {**HYPERFL, "learning_rate": 1e-5, "momentum": 0.9, "decay": 0.1, "classifier_rate": 1e-9}
    scheme = SHARINGS.build("hyperfl", {key: value for key, value in sharing.items() if key != "name"})
    found = []
    for steps in (1, 4):
        given = Setting(NETWORK, SHAPE, CLASSES, Settings(1, steps, 0.1), 0, 3, drawn(4, *SHAPE).numpy(), np.arange(4))
        initial = scheme.initial(given)
        mesh = make_mesh(shape=SHAPE, model=NETWORK, initial=initial, sharing=sharing, local_steps=steps)
        x, y = drawn(1, *SHAPE).numpy(), np.ones(1, np.int64)
        (trained,) = scheme.learner(given, Own(1, x, y, x, y, None, private=9)).run([Train(0, initial)])
        assert isinstance(trained, Trained)
        mesh.update("b", mesh.near("b"), 0, trained.update)
        found += list(messages(mesh.view("a"), ATTACKS.build("hyperfl"), 0))
    once, often = found
    assert error(often.gradient, once.gradient) < 1e-2
    reading = read(often.net, often.phi, often.gradient)
    assert error(reading.gradient, read(once.net, once.phi, once.gradient).gradient) < 1e-2


def test_what_is_read_of_the_wrong_sharing_is_refused(tmp_path: Path) -> None:
    _, view = seen(tmp_path, sharing="model")
    for name in ("hyperfl", "hyperfl-naive"):
        with pytest.raises(BadInput, match="something else"):
            list(ATTACKS.build(name).run(view, np.random.default_rng(0)))


@pytest.fixture(params=[{"batch": 2}, {"local_steps": 3}], ids=str)
def larger(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Cast, View]:
    training = {"batch": 1, "local_steps": 1, "learning_rate": 0.01, **request.param}
    return seen(tmp_path, sharing=HYPERFL, training=training)


@pytest.mark.parametrize("name", ["hyperfl", "hyperfl-naive"])
def test_as_many_pictures_are_guessed_as_were_trained_on_and_no_labels(larger: tuple[Cast, View], name: str) -> None:
    cast, view = larger
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again = (
        list(ATTACKS.build(name, {"iterations": 3, "restarts": 2}).run(view, np.random.default_rng(0)))
        for _ in range(2)
    )
    assert torch.equal(before, torch.get_rng_state())
    for guess, same in zip(first, again, strict=True):
        truth = cast.drawn(cast.names.index(guess.victim), 0)
        assert guess.pictures.shape == (len(truth), *SHAPE)
        assert guess.pictures.dtype == np.float32
        assert guess.pictures.min() >= 0
        assert guess.pictures.max() <= 1
        assert len(guess.labels) == 0
        assert np.isfinite(guess.loss)
        assert guess.pictures.tobytes() == same.pictures.tobytes()
        assert guess.loss == same.loss
