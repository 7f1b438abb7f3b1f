"""What every registered sharing scheme promises (swarm/sharing/base.py), run over all of them."""

from dataclasses import replace

import numpy as np
import pytest

from veilmesh.core import LocalError, generator
from veilmesh.swarm.sharing.base import SHARINGS, Own, Setting, Sharing
from veilmesh.tasks.models.build import initial_vector
from veilmesh.tasks.work import Evaluate, Evaluated, Settings, Train, Trained

CLASSES, SHAPE = 4, (1, 8, 8)


def pictures(name: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = generator(3, name)
    y = np.arange(n) % CLASSES
    x = rng.random((n, *SHAPE), np.float32) * 0.3
    for i, label in enumerate(y):
        x[i, 0, 2 * label : 2 * label + 2] += 0.6  # a bar, where the class says: something to be learned
    return x.clip(0, 1), y.astype(np.int64)


def setting(**settings: object) -> Setting:
    public_x, public_y = pictures("public", 40)
    given = {"batch": 8, "local_steps": 2, "learning_rate": 0.1} | settings
    model = {"name": "mlp", "hidden": [16]}
    return Setting(model, SHAPE, CLASSES, Settings(**given), 0, 2, public_x, public_y)  # type: ignore[arg-type]  # given as fields are


def own(index: int = 0, **changes: object) -> Own:
    x, y = pictures(f"own-{index}", 24)
    test_x, test_y = pictures("test", 40)
    return replace(Own(index, x, y, test_x, test_y, None, private=100 + index), **changes)  # type: ignore[arg-type]  # as above


@pytest.fixture(params=SHARINGS.names())
def sharing(request: pytest.FixtureRequest) -> Sharing:
    return SHARINGS.build(request.param)


def test_everybody_begins_with_the_same_finite_vector(sharing: Sharing) -> None:
    first, second = (sharing.initial(setting()) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.ndim == 1
    assert first.dtype == np.float32
    assert np.isfinite(first).all()
    whole = setting()
    model = {k: v for k, v in whole.model.items() if k != "name"}
    as_model = initial_vector(whole.model["name"], model, SHAPE, CLASSES, 0)
    assert not sharing.like_model or first.shape == as_model.shape


def test_an_update_moves_the_shared_vector_and_is_repeatable(sharing: Sharing) -> None:
    begin = sharing.initial(setting())
    (first,), (second,) = (sharing.learner(setting(), own()).run([Train(0, begin)]) for _ in range(2))
    assert isinstance(first, Trained)
    assert isinstance(second, Trained)
    assert first.update.shape == begin.shape
    assert first.update.dtype == np.float32
    assert np.isfinite(first.update).all()
    assert first.update.any()
    assert np.isfinite(first.loss)
    assert 0 < first.samples <= 8 * 2
    np.testing.assert_array_equal(first.update, second.update)


def test_a_vector_that_came_from_elsewhere_is_never_written_to(sharing: Sharing) -> None:
    begin = sharing.initial(setting())
    begin.setflags(write=False)
    learner = sharing.learner(setting(), own())
    trained, scored = learner.run([Train(0, begin), Evaluate(begin)])
    assert isinstance(trained, Trained)
    assert isinstance(scored, Evaluated)
    assert 0 <= scored.accuracy <= 1
    assert np.isfinite(scored.loss)


def test_two_peers_that_average_learn(sharing: Sharing) -> None:
    shared = sharing.initial(setting())
    learners = [sharing.learner(setting(), own(i)) for i in range(2)]
    for round_ in range(40):
        answers = [learner.run([Train(round_, shared)])[0] for learner in learners]
        updates = [a.update for a in answers if isinstance(a, Trained)]
        shared = (shared + np.mean(updates, axis=0)).astype(np.float32)
    scores = [learner.run([Evaluate(shared)])[0] for learner in learners]
    assert min(s.accuracy for s in scores if isinstance(s, Evaluated)) > 0.5  # chance: a quarter


def test_scores_can_be_of_ones_own_mix(sharing: Sharing) -> None:
    learner = sharing.learner(setting(), own(importance=np.array([4.0, 0, 0, 0])))
    (scored,) = learner.run([Evaluate(sharing.initial(setting()))])
    assert isinstance(scored, Evaluated)
    assert 0 <= scored.accuracy <= 1


def test_a_hub_that_has_no_data_can_score(sharing: Sharing) -> None:
    x, y = pictures("own-0", 24)
    learner = sharing.learner(setting(), own(2, x=x[:1], y=y[:1]))
    (scored,) = learner.run([Evaluate(sharing.initial(setting()))])
    assert isinstance(scored, Evaluated)


def test_what_is_no_task_is_refused(sharing: Sharing) -> None:
    with pytest.raises(LocalError):
        sharing.learner(setting(), own()).run(["train, please"])
