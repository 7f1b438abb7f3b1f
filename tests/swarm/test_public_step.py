"""GradientHide's public step: two hand-made steps of SGD, and a choice that is the peer's own."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from veilmesh.core import BadInput, generator
from veilmesh.swarm.sharing.base import SHARINGS, Own, Setting
from veilmesh.swarm.sharing.public_step import PublicStep
from veilmesh.tasks.models.build import build_model, vector_to_parameters
from veilmesh.tasks.work import Settings, Train, Trained, batch_indices

__all__: list[str] = []

torch.set_num_threads(1)

SHAPE, RATE = (1, 8, 8), 0.1
MODEL = {"name": "mlp", "hidden": [16]}


def pictures(name: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = generator(5, name)
    return rng.random((n, *SHAPE), np.float32), rng.integers(0, 4, n)


def setting(**changes: Any) -> Setting:
    given = Settings(**{"batch": 4, "local_steps": 1, "learning_rate": RATE} | changes)
    return Setting(MODEL, SHAPE, 4, given, 0, 2, *pictures("public", 40))


def own(index: int = 0, private: int = 7) -> Own:
    return Own(index, *pictures(f"own-{index}", 12), *pictures("test", 8), None, private)


def build(**options: Any) -> PublicStep:
    scheme = SHARINGS.build("public-step", {"aligner": "given", **options})
    assert isinstance(scheme, PublicStep)
    return scheme


def step(w: np.ndarray, x: np.ndarray, y: np.ndarray, rate: float) -> np.ndarray:
    """One step of SGD, by hand."""
    network = build_model("mlp", {"hidden": [16]}, SHAPE, 4, 0)
    vector_to_parameters(network, w)
    loss = functional.cross_entropy(network(torch.from_numpy(x)), torch.from_numpy(y))
    slopes = torch.autograd.grad(loss, list(network.parameters()))
    return w - np.float32(rate) * np.concatenate([s.numpy().reshape(-1) for s in slopes])


def trained(scheme: PublicStep, where: Setting, who: Own, task: Train) -> Trained:
    (found,) = scheme.learner(where, who).run([task])
    assert isinstance(found, Trained)
    return found


def by_hand(scheme: PublicStep, where: Setting, who: Own, w: np.ndarray, round_: int, *, turns: bool) -> np.ndarray:
    """Where a peer ends, by steps on the pictures that it drew."""
    settings = where.settings
    chosen = scheme.drawn(where, who.private, who.index, round_).reshape(-1, scheme.batch)
    public = [(where.public_x[c], where.public_y[c], scheme.rate * RATE) for c in chosen]
    private = []
    for s in range(settings.local_steps):
        at = batch_indices(where.seed, who.index, round_, s, len(who.x), settings.batch, settings.local_steps)
        private.append((who.x[at], who.y[at], RATE))
    steps = [one for pair in zip(private, public, strict=True) for one in pair] if turns else private + public
    for x, y, rate in steps:
        w = step(w, x, y, rate)
    return w


@pytest.mark.parametrize(
    ("options", "local_steps"),
    [({"batch": 1}, 1), ({"batch": 8, "rate": 3.0}, 1), ({"batch": 3, "steps": 4}, 2)],
)
def test_an_update_is_that_of_private_and_then_public_steps(options: dict[str, Any], local_steps: int) -> None:
    scheme, where, who = build(**options), setting(local_steps=local_steps), own()
    w = scheme.initial(where)
    found = trained(scheme, where, who, Train(3, w))
    np.testing.assert_allclose(w + found.update, by_hand(scheme, where, who, w, 3, turns=False), atol=1e-6)
    assert found.samples == 4 * local_steps  # of the public ones nobody is told


def test_in_turns_every_private_step_has_a_public_one_behind_it() -> None:
    scheme, where, who = build(batch=2, mixing="interleaved"), setting(local_steps=3), own()
    w = scheme.initial(where)
    found = trained(scheme, where, who, Train(1, w))
    np.testing.assert_allclose(w + found.update, by_hand(scheme, where, who, w, 1, turns=True), atol=1e-6)
    assert found.samples == 12


def test_what_a_protocol_asks_of_training_it_asks_of_private_steps() -> None:
    where, who = setting(local_steps=2), own()
    w = build().initial(where)
    correction = np.full_like(w, 0.01)
    for mixing, times in (("sequential", 1), ("interleaved", 1)):
        scheme = build(mixing=mixing, rate=1e-9)  # as good as no public step
        plain = trained(scheme, where, who, Train(0, w)).update
        moved = trained(scheme, where, who, Train(0, w, correction=correction)).update
        np.testing.assert_allclose((moved - plain).mean(), -2 * times * RATE * 0.01, rtol=0.1)
        pulled = trained(scheme, where, who, Train(0, w, proximal=5.0)).update
        assert np.linalg.norm(pulled) < np.linalg.norm(plain)


def test_two_peers_choose_differently_and_the_public_seed_says_nothing() -> None:
    scheme, where = build(batch=4, pool=20), setting()
    drawn = [scheme.drawn(where, private, 0, 0).tolist() for private in (7, 8)]
    assert drawn[0] != drawn[1]
    assert scheme.drawn(replace(where, seed=99), 7, 0, 0).tolist() == drawn[0]
    rounds = [scheme.drawn(where, 7, 0, r) for r in range(5)]
    pools = [{int(c) for r in range(5) for c in scheme.drawn(where, private, 0, r)} for private in (7, 8)]
    assert len(np.unique(np.concatenate(rounds))) == 20  # an epoch of the pool, every picture once
    assert pools[0] != pools[1]


def test_only_pictures_whose_label_is_sure_are_chosen() -> None:
    where, strict = setting(), build(aligner={"name": "class-means", "labelled": 0.2}, threshold=1.0)
    sure, labels = strict.labelled(where)
    assert 0 < len(sure) < 40
    np.testing.assert_array_equal(labels[sure], where.public_y[sure])
    assert set(strict.drawn(where, 7, 0, 0)) <= set(sure)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"aligner": "clop"}, "clip"),
        ({"aligner": {"labelled": 1}}, "name"),
        ({"aligner": {"name": "given", "a": 1}}, "a"),
    ],
)
def test_an_aligner_that_is_none_is_refused_when_it_is_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        build(**options)


def test_turns_are_for_plain_sgd() -> None:
    with pytest.raises(BadInput, match="momentum"):
        build(mixing="interleaved").initial(setting(momentum=0.9))
