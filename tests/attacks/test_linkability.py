"""Linking updates to peers: by what their data has in common, against guessing."""

import numpy as np
import pytest

from veilmesh.attacks.inference.linkability import link, link_once, similarities
from veilmesh.core import BadInput
from veilmesh.sim.cast import Cast
from veilmesh.sim.scenario import Scenario
from veilmesh.tasks.work import Train

PEERS = 10


def _said(partition, rounds=6):
    """(rounds, d) updates of each peer, all from the common beginning, on other batches each time."""
    scenario = {
        "task": "digits", "peers": PEERS, "partition": partition, "topology": "ring", "seed": 4,
        "training": {"batch": 32, "local_steps": 1, "learning_rate": 0.05},
    }  # fmt: skip
    cast = Cast.prepare(Scenario.parse(scenario, "test"))
    trainers = [cast.learner(i) for i in range(PEERS)]
    return {
        f"peer:{i}": np.stack([one.update for one in t.run([Train(r, cast.initial) for r in range(rounds)])])
        for i, t in enumerate(trainers)
    }


def _accuracy(said, choose):
    right = [choose(np.stack([u[r] for u in said.values()]), {p: u[:3] for p, u in said.items()}) for r in (3, 4, 5)]
    return np.mean([[a == b for a, b in zip(one, said, strict=True)] for one in right])


def test_peers_with_few_classes_each_are_known_by_their_updates():
    said = _said({"name": "label-skew", "classes_per_peer": 2})
    assert _accuracy(said, link) > 0.6  # guessing: 0.1
    assert _accuracy(said, link_once) >= _accuracy(said, link)


def test_under_exchanged_names_it_is_the_others_who_are_found():
    said = _said({"name": "label-skew", "classes_per_peer": 2})
    others = [*list(said)[1:], next(iter(said))]
    assert _accuracy(said, lambda x, known: link(x, dict(zip(others, known.values(), strict=True)))) < 0.2


def test_what_all_have_in_common_does_not_count():
    rng = np.random.default_rng(0)
    common = 100 * rng.standard_normal(50)
    own = {p: rng.standard_normal(50) for p in "abcd"}
    known = {p: (common + u + 0.1 * rng.standard_normal((3, 50))) for p, u in own.items()}
    anonymous = np.stack([common + own[p] + 0.1 * rng.standard_normal(50) for p in "dbca"])
    assert link(anonymous, known) == list("dbca")
    assert link(anonymous[:1], known) == ["d"]
    assert similarities(anonymous, known).shape == (4, 4)


def test_two_updates_of_different_peers_are_not_linked_to_one():
    known = {"a": np.array([[1.0, 0.0, 0.0]]), "b": np.array([[0.0, 1.0, 0.0]]), "c": np.array([[0.0, 0.0, 1.0]])}
    anonymous = np.array([[1.0, 0.1, 0.0], [0.9, 0.5, 0.0], [0.0, 0.0, 1.0]])
    assert sorted(link_once(anonymous, known)) == ["a", "b", "c"]


@pytest.mark.parametrize("known", [{}, {"a": np.ones((2, 3))}])
def test_what_cannot_be_compared_is_refused(known):
    with pytest.raises(BadInput, match="To link updates"):
        link(np.ones((1, 4)), known)
    with pytest.raises(BadInput, match="cannot be of"):
        link_once(np.ones((2, 3)), {"a": np.ones((2, 3))})
