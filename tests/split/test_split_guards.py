"""What every guard of split mode promises, and what each of them is for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from veilmesh.core import BadInput, generator
from veilmesh.split.guards.base import SPLIT_GUARDS as GUARDS
from veilmesh.split.guards.base import About, Alarm, Gradient, Inspecting, Labelling, Outgoing, Penalty
from veilmesh.split.guards.gradient_scrutiny import similarity
from veilmesh.split.guards.laplace import Laplace
from veilmesh.split.guards.marvell import Classes, Marvell, Variances, best_variances, largest_auc, sum_kl
from veilmesh.split.guards.nopeek import distance_correlation, unbiased_distance_correlation

torch.set_num_threads(1)

SHAPES: list[tuple[int, ...]] = [(6, 4, 4), (24,)]
NOISY = ["gaussian", "laplace", "shredder"]


def about(
    activation: tuple[int, ...] = (24,), classes: int = 2, batch: int = 16, seed: int = 3, side: int = 8
) -> About:
    return About((1, side, side), activation, classes, batch, generator(seed, "guard"))


def started(name: str, options: dict[str, Any] | None = None, **facts: Any) -> Any:
    return GUARDS.build(name, options).start(about(**facts))


def batch(activation: tuple[int, ...], count: int = 16, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Activations, pictures and labels of two classes, in turn."""
    rng = generator(seed, "batch")
    z = torch.from_numpy(rng.standard_normal((count, *activation)).astype(np.float32))
    x = torch.from_numpy(rng.random((count, 1, 8, 8)).astype(np.float32))
    return z, x, torch.arange(count) % 2


def everything(name: str, activation: tuple[int, ...], *, steps: int = 3, seed: int = 3) -> list[Tensor]:
    """All that a guard says in a few steps of training, and the gradients that pass through it."""
    guard, said = started(name, activation=activation, seed=seed), []
    for step in range(steps):
        z, x, y = batch(activation, seed=step)
        z.requires_grad_()
        if isinstance(guard, Outgoing):
            out = guard.outgoing(z, x)
            said += [out.detach(), *torch.autograd.grad((out * out).sum(), z)]
        if isinstance(guard, Penalty):
            value = guard.penalty(z, x)
            said += [value.detach(), *torch.autograd.grad(value, z)]
        if isinstance(guard, Gradient):
            said.append(guard.gradient(z.detach(), y))
        given = guard.labels(y, step + 100) if isinstance(guard, Labelling) else y
        said.append(given)
        if isinstance(guard, Inspecting):
            alarm = guard.inspect(z.detach(), y, given, step + 100)
            said.append(torch.tensor(0.0 if alarm is None else alarm.score))
    return said


@pytest.fixture
def untouched() -> Iterator[None]:
    """Fails a test that draws from the whole process' generators."""
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    yield
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("activation", SHAPES)
@pytest.mark.parametrize("name", GUARDS.names())
class TestContract:
    def test_does_something_where_it_says(self, name: str, activation: tuple[int, ...]) -> None:
        guard = started(name, activation=activation)
        parts = {"head": (Outgoing, Penalty, Labelling, Inspecting), "labels": (Gradient,)}[GUARDS.get(name).at]
        assert any(isinstance(guard, part) for part in parts)
        assert isinstance(guard, Gradient) == (GUARDS.get(name).at == "labels")

    def test_keeps_shapes_and_is_finite(self, name: str, activation: tuple[int, ...]) -> None:
        guard = started(name, activation=activation)
        z, x, y = batch(activation)
        if isinstance(guard, Outgoing):
            assert guard.outgoing(z, x).shape == z.shape
            assert guard.outgoing(z, x).dtype == z.dtype
        if isinstance(guard, Penalty):
            assert guard.penalty(z, x).shape == ()
        if isinstance(guard, Gradient):
            assert guard.gradient(z, y).shape == z.shape
            assert guard.gradient(z, y).dtype == z.dtype
        if isinstance(guard, Labelling):
            assert guard.labels(y, 1000).shape == y.shape
            assert guard.labels(y, 1000).dtype == y.dtype
        assert all(bool(torch.isfinite(part).all()) for part in everything(name, activation))

    def test_the_same_generator_says_the_same(self, name: str, activation: tuple[int, ...]) -> None:
        first, second = everything(name, activation), everything(name, activation)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    def test_bears_what_can_happen(self, name: str, activation: tuple[int, ...]) -> None:
        """Batches of one, of one class, of zeros, and without gradients."""
        guard = started(name, activation=activation)
        for count in (1, 2):
            z, x, y = batch(activation, count)
            for zeros in (z, z * 0):
                for labels in (y, y * 0):
                    with torch.no_grad():
                        found = self._said(guard, zeros, x, labels)
                    assert all(bool(torch.isfinite(part).all()) for part in found)

    @staticmethod
    def _said(guard: object, z: Tensor, x: Tensor, y: Tensor) -> list[Tensor]:
        found = []
        if isinstance(guard, Outgoing):
            found.append(guard.outgoing(z, x))
        if isinstance(guard, Penalty):
            found.append(guard.penalty(z, x))
        if isinstance(guard, Gradient):
            found.append(guard.gradient(z, y))
        if isinstance(guard, Inspecting):
            guard.inspect(z, y, 1 - y, 1000)
        return found


@pytest.mark.parametrize("name", NOISY)
def test_noise_is_another_one_every_time_and_for_every_example(name: str) -> None:
    guard = started(name)
    z, x, _ = batch((24,))
    first, second = guard.outgoing(z, x) - z, guard.outgoing(z, x) - z
    assert not torch.equal(first, second)
    assert len({tuple(row) for row in first.tolist()}) == len(first)


@pytest.mark.parametrize(
    ("name", "options", "std"), [("laplace", {"scale": 0.3}, 0.3 * 2**0.5), ("gaussian", {"std": 0.3}, 0.3)]
)
def test_noise_has_the_size_it_is_asked_for(name: str, options: dict[str, Any], std: float) -> None:
    z = torch.zeros(400, 24)
    noise = started(name, options).outgoing(z, z)
    assert float(noise.std()) == pytest.approx(std, rel=0.05)
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)


def test_a_bound_clips_before_the_noise_and_gives_an_epsilon() -> None:
    z = torch.full((300, 24), 9.0)
    out = started("laplace", {"scale": 0.1, "bound": 2.0}).outgoing(z, z)
    assert float(out.mean()) == pytest.approx(2.0, abs=0.02)
    assert Laplace(scale=4.0, bound=0.5).epsilon(10) == pytest.approx(2.5)
    assert Laplace(scale=4.0).epsilon(10) == float("inf")


@pytest.mark.parametrize(
    ("name", "options"),
    [("laplace", {"scale": 0}), ("nopeek", {"alpha": -1}), ("disco", {"ratio": 1}), ("marvell", {"auc": 0.4}),
     ("gradient-noise", {"kind": "pink"}), ("splitguard", {"probability": 1.5}), ("gaussian", {"sigma": 1})],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        GUARDS.build(name, options)


class TestNoPeek:
    def test_is_1_for_what_is_only_turned_and_scaled_and_smaller_for_what_is_independent(self) -> None:
        rng = generator(1, "nopeek")
        x = torch.from_numpy(rng.standard_normal((64, 3))).float()
        turned = x @ torch.linalg.qr(torch.from_numpy(rng.standard_normal((3, 3))).float())[0] * 5 + 2
        other = torch.from_numpy(rng.standard_normal((64, 3))).float()
        assert float(distance_correlation(turned, x)) == pytest.approx(1, abs=1e-3)
        assert float(unbiased_distance_correlation(turned, x)) == pytest.approx(1, abs=1e-3)
        assert float(distance_correlation(other, x)) < 0.4
        assert abs(float(unbiased_distance_correlation(other, x))) < 0.1

    def test_nearly_1_for_a_linear_layer_on_pictures(self) -> None:
        x = torch.from_numpy(load_digits().images[:64] / 16).float()[:, None]
        weight = torch.from_numpy(generator(0, "layer").standard_normal((64, 64))).float()
        guard = started("nopeek", {"alpha": 1.0})
        z = x.flatten(1) @ weight
        assert float(guard.penalty(z, x)) > 0.9
        mixed = z[torch.from_numpy(generator(0, "mix").permutation(64))]
        assert float(guard.penalty(mixed, x)) < float(guard.penalty(z, x)) - 0.2

    def test_sees_what_is_not_linear(self) -> None:
        x = torch.linspace(-1, 1, 101)[:, None]
        assert abs(float(torch.corrcoef(torch.cat([x, x**2], dim=1).T)[0, 1])) < 1e-6
        assert float(distance_correlation(x, x**2)) > 0.4

    @pytest.mark.parametrize("unbiased", [False, True])
    def test_its_gradient_lowers_it(self, unbiased: bool) -> None:
        x = torch.from_numpy(load_digits().images[:48] / 16).float()[:, None]
        weight = torch.from_numpy(generator(0, "layer").standard_normal((64, 16)) / 8).float().requires_grad_()
        guard = started("nopeek", {"alpha": 1.0, "unbiased": unbiased})
        step = torch.optim.Adam([weight], 0.02)
        values = []
        for _ in range(60):
            value = guard.penalty((x.flatten(1) @ weight).relu(), x)
            values.append(value.item())
            step.zero_grad()
            value.backward()
            step.step()
        assert values[-1] < values[0] - 0.15

    def test_coinciding_examples_have_finite_gradients(self) -> None:
        x = torch.ones(8, 5)
        z = torch.cat([torch.ones(4, 5), torch.zeros(4, 5)]).requires_grad_()
        for pictures in (x, z.detach().clone()):
            assert bool(torch.isfinite(torch.autograd.grad(distance_correlation(z, pictures), z)[0]).all())


class TestLearning:
    """DISCO and Shredder learn from the gradients that come back, and from nothing else."""

    def test_disco_drops_the_share_it_is_asked_to_and_only_whole_channels(self) -> None:
        z, x, _ = batch((6, 4, 4))
        out = started("disco", {"ratio": 0.5}, activation=(6, 4, 4)).outgoing(z, x)
        kept = (out != 0).flatten(2).any(dim=2)
        assert bool((kept.sum(dim=1) == 3).all())
        assert torch.equal(out, z * kept[:, :, None, None])
        assert torch.equal(started("disco", {"ratio": 0}, activation=(6, 4, 4)).outgoing(z, x), z)

    def test_disco_drops_what_its_adversary_reads(self) -> None:
        kept = self._taught(alpha=1.0, wanted=0)
        assert kept[0] < 0.2
        assert kept[1:].min() > 0.6

    def test_disco_keeps_what_the_task_needs(self) -> None:
        assert self._taught(alpha=0.0, wanted=0)[0] > 0.9

    @staticmethod
    def _taught(alpha: float, wanted: int) -> np.ndarray:
        """How often each of four channels is kept: channel 0 has the picture, the others noise; the task wants one."""
        guard = started("disco", {"ratio": 0.25, "alpha": alpha, "rate": 3e-3}, activation=(4, 8, 8))
        images = torch.from_numpy(load_digits().images / 16).float()[:, None]
        rng, kept = generator(5, "disco"), []
        for _ in range(300):
            x = images[torch.from_numpy(rng.integers(0, len(images), 32))]
            z = torch.cat([x, torch.from_numpy(rng.random((32, 3, 8, 8))).float()], dim=1).requires_grad_()
            out = guard.outgoing(z, x)
            kept.append((out.detach() != 0).flatten(2).any(dim=2).float().mean(dim=0).numpy())
            (-out[:, wanted].mean()).backward()
        return np.mean(kept[-50:], axis=0)

    def test_shredder_is_loud_where_the_task_does_not_listen(self) -> None:
        guard = started("shredder", {"loudness": 0.05, "rate": 0.05}, activation=(2,))
        rng, noise = generator(6, "shredder"), []
        for _ in range(300):
            z = torch.from_numpy(rng.standard_normal((64, 2))).float().requires_grad_()
            out = guard.outgoing(z, z)
            noise.append((out - z).detach())
            wrong = (out - z.detach())[:, 0].square().mean()  # coordinate 0 has to be right, 1 is not looked at
            torch.autograd.grad(wrong, z)  # as stages do: no parameter but the head's is asked about
        std = torch.cat(noise[-20:]).std(dim=0)
        assert float(std[1]) > 5 * float(std[0])
        assert float(std[0]) < 0.5

    @pytest.mark.parametrize("name", ["disco", "shredder"])
    def test_nothing_is_learned_without_gradients(self, name: str) -> None:
        guard = started(name, activation=(24,))
        z, x, _ = batch((24,))
        seen = [guard.outgoing(z, x) for _ in range(3)]
        if name == "disco":
            assert torch.equal(seen[0], seen[2])
        assert not any(out.requires_grad for out in seen)

    @pytest.mark.parametrize("name", ["disco", "shredder"])
    def test_gradients_may_come_late_in_any_order_or_never(self, name: str) -> None:
        guard = started(name, activation=(24,))
        outs = []
        for step in range(6):
            z, x, _ = batch((24,), seed=step)
            outs.append(guard.outgoing(z.requires_grad_(), x))
        for out in (outs[4], outs[1]):
            out.sum().backward()
        assert bool(torch.isfinite(guard.outgoing(z, x)).all())


def leaks(g: Tensor, labels: Tensor) -> tuple[float, float]:
    """Area under the ROC curve of the norm attack and of the cosine attack with one known positive (Li et al. 2022)."""
    norm = float(roc_auc_score(labels, g.norm(dim=1)))
    known = g[labels == 1][0]
    cosine = float(roc_auc_score(labels, functional.cosine_similarity(g, known[None])))
    return max(norm, 1 - norm), max(cosine, 1 - cosine)


def binary_gradients(count: int = 1024, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(count, 32), (count,): a label owner's, of a half-trained network that tells digit 0 from the others."""
    bunch, rng = load_digits(), generator(seed, "binary")
    x, y = torch.from_numpy(bunch.data / 16).float(), torch.from_numpy((bunch.target == 0).astype(np.int64))
    layers = [torch.from_numpy(rng.standard_normal(s) / 8).float().requires_grad_() for s in ((64, 32), (32, 1))]
    chosen = torch.from_numpy(rng.permutation(len(x))[:count])
    for _ in range(20):
        loss = functional.binary_cross_entropy_with_logits(((x @ layers[0]).relu() @ layers[1])[:, 0], y.float())
        for layer, gradient in zip(layers, torch.autograd.grad(loss, layers), strict=True):
            layer.data -= 0.5 * gradient
    z = (x[chosen] @ layers[0]).relu().detach().requires_grad_()
    logits = (z @ layers[1].detach())[:, 0] + 0.1 * z.square().mean(dim=1)
    loss = functional.binary_cross_entropy_with_logits(logits, y[chosen].float(), reduction="sum")
    return torch.autograd.grad(loss, z)[0], y[chosen]


class TestMarvell:
    CASES = (
        Classes((0.5, 2.0), 3.0, 16, 0.3),
        Classes((2.0, 0.5), 3.0, 16, 0.3),
        Classes((0.0, 1.0), 1.0, 8, 0.5),
        Classes((1.0, 1.0), 4.0, 1, 0.1),
        Classes((0.0, 0.0), 2.0, 32, 0.2),
    )

    @pytest.mark.parametrize("classes", CASES)
    @pytest.mark.parametrize("power", [0.3, 3.0, 40.0])
    def test_no_noise_of_this_power_does_better(self, classes: Classes, power: float) -> None:
        best = best_variances(classes, power)
        assert self._power(classes, best) == pytest.approx(power, rel=1e-6)
        reached = sum_kl(classes, best)
        rng = generator(2, "marvell")
        for _ in range(3000):
            along = rng.exponential(size=2) ** 2
            across = rng.random(2) * along * rng.integers(0, 2, 2) / classes.size
            noise = Variances((along[0], along[1]), (across[0], across[1]))
            by = power / self._power(classes, noise)
            scaled = Variances((along[0] * by, along[1] * by), (across[0] * by, across[1] * by))
            assert sum_kl(classes, scaled) >= reached * (1 - 1e-6) - 1e-9

    @staticmethod
    def _power(classes: Classes, noise: Variances) -> float:
        each = [a + (classes.size - 1) * b for a, b in zip(noise.along, noise.across, strict=True)]
        return (1 - classes.share) * each[0] + classes.share * each[1]

    def test_the_divergence_is_that_of_gaussians(self) -> None:
        """Against torch's own formula, in two dimensions."""
        classes, noise = Classes((0.5, 2.0), 9.0, 2, 0.3), Variances((1.0, 3.0), (0.25, 0.0))
        normal, diagonal = torch.distributions.MultivariateNormal, torch.diag
        first = normal(torch.tensor([0.0, 0.0]), diagonal(torch.tensor([1.5, 0.75])))
        second = normal(torch.tensor([3.0, 0.0]), diagonal(torch.tensor([5.0, 2.0])))
        both = torch.distributions.kl_divergence(first, second) + torch.distributions.kl_divergence(second, first)
        assert sum_kl(classes, noise) == pytest.approx(float(both), rel=1e-5)

    def test_an_auc_that_is_asked_for_is_reached(self) -> None:
        for classes in self.CASES:
            assert largest_auc(sum_kl(classes, Marvell(auc=0.6).variances(classes))) <= 0.6
        assert largest_auc(0) == 0.5
        assert largest_auc(4) == 1

    def test_lowers_what_norms_and_directions_leak(self) -> None:
        g, y = binary_gradients()
        before = leaks(g, y)
        after = leaks(started("marvell", {"power": 4.0}).gradient(g, y), y)
        bound = leaks(started("marvell", {"auc": 0.6}).gradient(g, y), y)
        assert min(before) > 0.95
        assert max(after) < 0.75
        assert max(bound) < 0.65

    def test_leaks_less_than_the_same_power_in_every_direction(self) -> None:
        g, y = binary_gradients()
        noisy = started("marvell", {"power": 4.0}).gradient(g, y)
        power = float((noisy - g).square().sum(dim=1).mean() / g.norm(dim=1).max() ** 2)
        even = started("gradient-noise", {"power": power}).gradient(g, y)
        assert max(leaks(noisy, y)) < max(leaks(even, y))

    def test_keeps_the_mean(self) -> None:
        g, y = binary_gradients(256)
        guard = started("marvell", {"power": 1.0})
        mean = torch.stack([guard.gradient(g, y) for _ in range(400)]).mean(dim=0)
        assert float((mean - g).norm() / (guard.gradient(g, y) - g).norm()) == pytest.approx(400**-0.5, rel=0.2)

    def test_refuses_more_than_two_classes(self) -> None:
        with pytest.raises(BadInput, match="two classes"):
            started("marvell", classes=10)

    def test_a_batch_of_one_class_is_not_told_apart(self) -> None:
        g, y = binary_gradients(256)
        guard = started("marvell")
        assert float(guard.gradient(g[y == 1], y[y == 1]).abs().max()) == 0
        guard.gradient(g, y)
        alone = guard.gradient(g[y == 1], y[y == 1])
        assert not torch.equal(alone, g[y == 1])
        assert float(alone.abs().max()) > 0


class TestGradientNoise:
    def test_isotropic_noise_is_as_large_as_the_largest_gradient(self) -> None:
        g, y = binary_gradients()
        noise = started("gradient-noise", {"power": 2.0}).gradient(g, y) - g
        assert float(noise.square().sum(dim=1).mean()) == pytest.approx(2 * float(g.norm(dim=1).max()) ** 2, rel=0.05)

    def test_max_norm_evens_norms_out_and_keeps_directions(self) -> None:
        g, y = binary_gradients()
        guard = started("gradient-noise", {"kind": "max-norm"})
        out = guard.gradient(g, y)
        assert bool((functional.cosine_similarity(out, g).abs() > 0.999).all())
        squares = torch.stack([guard.gradient(g, y).square().sum(dim=1) for _ in range(300)]).mean(dim=0)
        largest = float(g.norm(dim=1).max()) ** 2
        assert float(squares.median()) == pytest.approx(largest, rel=0.15)
        assert leaks(out, y)[0] < leaks(g, y)[0] - 0.1


@dataclass
class Lesson:
    """A head on digits, taught by an honest tail, or by a feature-space hijacker who has no use for labels."""

    server: Literal["honest", "hijacker"]
    seed: int = 0
    steps: int = 250
    alarms: list[tuple[int, Alarm]] = field(default_factory=list)
    false: int = 0

    def run(self, *guards: Any) -> "Lesson":
        bunch, rng = load_digits(), generator(self.seed, "lesson")
        x, y = torch.from_numpy(bunch.images / 16).float()[:, None], torch.from_numpy(bunch.target)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            head, teach = head_of_digits(), {"honest": honest, "hijacker": hijacker}[self.server]()
        step_head = torch.optim.SGD(head.parameters(), 0.1)
        for step in range(self.steps):
            own, public = rng.integers(0, 1200, 64), rng.integers(1200, 1797, 64)
            labels = given = y[torch.from_numpy(own)]
            for guard in guards:
                given = guard.labels(given, step) if isinstance(guard, Labelling) else given
            z = head(x[torch.from_numpy(own)])
            g = teach(z.detach().requires_grad_(), given, x[torch.from_numpy(public)])
            for guard in guards:
                if (alarm := guard.inspect(g, labels, given, step)) is not None:
                    self.alarms.append((step, alarm))
            self.false += int(not torch.equal(given, labels))
            if torch.equal(given, labels):
                step_head.zero_grad()
                z.backward(g)
                step_head.step()
        return self

    @property
    def stopped(self) -> bool:
        return any(alarm.certain for _, alarm in self.alarms)


Teach = Callable[[Tensor, Tensor, Tensor], Tensor]


def head_of_digits() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU())


def honest() -> Teach:
    tail = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10))
    step = torch.optim.SGD(tail.parameters(), 0.1)

    def teach(z: Tensor, given: Tensor, public: Tensor) -> Tensor:
        step.zero_grad()
        functional.cross_entropy(tail(z), given).backward()
        step.step()
        assert z.grad is not None
        return z.grad

    return teach


def hijacker() -> Teach:
    """FSHA (Pasquini et al. 2021), small: the head is drawn to where a pilot's features of public pictures are."""
    pilot, decoder = head_of_digits(), nn.Linear(48, 64)
    critic = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 1))
    steps = [
        torch.optim.Adam([*pilot.parameters(), *decoder.parameters()], 1e-3),
        torch.optim.Adam(critic.parameters(), 1e-3),
    ]

    def descend(which: int, loss: Tensor) -> None:
        steps[which].zero_grad()
        loss.backward()
        steps[which].step()

    def doubt(features: Tensor, real: int) -> Tensor:
        return functional.binary_cross_entropy_with_logits(
            critic(features), torch.full((len(features), 1), float(real))
        )

    def teach(z: Tensor, given: Tensor, public: Tensor) -> Tensor:
        features = pilot(public)
        descend(0, (decoder(features) - public.flatten(1)).square().mean())
        descend(1, doubt(features.detach(), 1) + doubt(z.detach(), 0))
        return torch.autograd.grad(doubt(z, 1), z)[0]

    return teach


class TestInspectors:
    @pytest.mark.parametrize("seed", [0, 1])
    @pytest.mark.parametrize("name", ["gradient-scrutiny", "splitguard"])
    def test_honest_training_is_left_alone(self, name: str, seed: int) -> None:
        lesson = Lesson("honest", seed).run(started(name, activation=(48,), classes=10, seed=seed))
        assert not lesson.stopped
        assert len(lesson.alarms) <= (0 if name == "gradient-scrutiny" else 1)

    @pytest.mark.parametrize("seed", [0, 1])
    @pytest.mark.parametrize("name", ["gradient-scrutiny", "splitguard"])
    def test_hijacking_is_noticed(self, name: str, seed: int) -> None:
        lesson = Lesson("hijacker", seed).run(started(name, activation=(48,), classes=10, seed=seed))
        assert lesson.stopped
        assert lesson.alarms[0][0] < 200
        assert all(0 <= alarm.score <= 1 and alarm.reason for _, alarm in lesson.alarms)

    def test_false_labels_are_as_frequent_as_asked_for_and_all_false(self) -> None:
        guard = started("splitguard", {"probability": 0.3, "begin": 5}, classes=10)
        labels = torch.arange(64) % 10
        changed = [guard.labels(labels, step) for step in range(400)]
        assert all(torch.equal(given, labels) for given in changed[:5])
        false = [given for given in changed if not torch.equal(given, labels)]
        assert 80 < len(false) < 160
        assert all(bool((given != labels).all()) and 0 <= int(given.min()) <= int(given.max()) < 10 for given in false)
        often = started("splitguard", {"probability": 0.5, "begin": 0}, classes=10)
        told = [[torch.equal(often.labels(labels, step), labels) for _ in range(3)] for step in range(30)]
        assert {len(set(micro)) for micro in told} == {1}
        part = started("splitguard", {"probability": 0.9, "begin": 0, "share": 0.25}, classes=10)
        assert {int((part.labels(labels, step) != labels).sum()) for step in range(50)} == {0, 16}

    def test_similarity_is_that_of_pairs(self) -> None:
        g = torch.tensor([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
        found = similarity(g, torch.tensor([0, 0, 1, 1]))
        assert found is not None
        assert (found.same, found.other) == (1, 0)
        assert similarity(g, torch.tensor([0, 0, 0, 0])) is None

    @pytest.mark.parametrize("name", ["gradient-scrutiny", "splitguard"])
    def test_pixels_with_classes_are_refused(self, name: str) -> None:
        guard = started(name)
        labels = torch.zeros(4, 8, 8, dtype=torch.long)
        with pytest.raises(BadInput, match="one class a picture"):
            guard.labels(labels, 50) if isinstance(guard, Labelling) else guard.inspect(labels, labels, labels, 50)
