"""Local updates between masked proxies, and pictures of which some places are masked."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from veilmesh.attacks.inversion.masked_analytic import MaskedAnalytic, completed
from veilmesh.attacks.seen.observed import observe_updates
from veilmesh.core import generator
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.swarm.sharing.columns import Columns
from veilmesh.tasks.models.build import build_model, layout


def columns_of(mesh: Any) -> Columns:
    public = mesh.public
    options = {k: v for k, v in public.model.items() if k != "name"}
    network = build_model(str(public.model["name"]), options, public.shape, public.classes, 0)
    return Columns.in_layout(tuple(layout(network)))


@pytest.fixture
def owners(make_mesh: Any) -> Any:
    """Three owners on a complete graph who mix what is shown, as `masked-proxy` has it, for some rounds."""

    def build(rounds: int, dropped: float) -> tuple[Any, dict[tuple[str, int], np.ndarray], Columns]:
        mesh = make_mesh(sharing={"name": "masked-proxy"})
        columns, rng = columns_of(mesh), generator(2, "owners")
        begun = mesh.public.initial
        mesh.public = replace(mesh.public, initial=np.append(begun, np.ones(columns.total, np.float32)))
        models, copies = dict.fromkeys("abc", begun), dict.fromkeys("abc", mesh.public.initial)
        updates = {}
        for round_ in range(rounds):
            for p in "abc":
                updates[p, round_] = (0.1 * rng.normal(size=begun.size)).astype(np.float32)
                models[p] = models[p] + updates[p, round_]
                mask = columns.drawn(dropped, rng)
                said = np.append(np.where(columns.spread(mask), models[p], 0), mask).astype(np.float32)
                mesh.update(p, mesh.near(p), round_, said - copies[p], Dense())
                copies[p] = copies[p] + (said - copies[p])
            masks = {p: columns.spread(copies[p][begun.size :] > 0.5) for p in "abc"}
            values = {p: copies[p][: begun.size] for p in "abc"}
            moves = {(p, q): np.where(masks[q], values[q] - models[p], 0) / np.float32(3) for p in "abc" for q in "abc"}
            models = {p: models[p] + sum(moves[p, q] for q in "abc" if q != p) for p in "abc"}
        return mesh, updates, columns

    return build


def test_without_masks_updates_are_read_as_they_were(owners: Any) -> None:
    mesh, updates, _ = owners(4, 0.0)
    found = observe_updates(mesh.view("a"))
    assert [(one.victim, one.round) for one in found] == [(p, r) for p in "bc" for r in range(4)]
    for one in found:
        assert one.coverage == 1
        np.testing.assert_allclose(one.update, updates[one.victim, one.round], atol=1e-5)


def test_what_is_not_shown_before_and_after_is_not_said(owners: Any) -> None:
    mesh, updates, columns = owners(2, 0.4)
    found = {(one.victim, one.round): one for one in observe_updates(mesh.view("a"))}
    first, second = found["b", 0], found["b", 1]
    np.testing.assert_allclose(first.update[first.said], updates["b", 0][first.said], atol=1e-5)
    np.testing.assert_allclose(second.update[second.said], updates["b", 1][second.said], atol=1e-5)
    assert second.said.sum() < first.said.sum()
    assert not second.update[~second.said].any()
    assert not first.exact
    assert columns.total == columns.shown(np.ones(columns.of.size, np.float32)).sum()


def test_places_that_are_not_seen_are_put_in_as_public_pictures_have_them(digits: Any) -> None:
    x, _ = digits
    there = np.ones(64, np.bool_)
    there[generator(0, "places").permutation(64)[:20]] = False
    pictures = x[500:540].copy()
    pictures.reshape(40, -1)[:, ~there] = 0
    found = completed(pictures, there, x[:300])
    np.testing.assert_allclose(found.reshape(40, -1)[:, there], pictures.reshape(40, -1)[:, there], atol=1e-6)
    as_mean = np.where(there, pictures.reshape(40, -1), x[:300].reshape(300, -1).mean(axis=0))
    truth = x[500:540].reshape(40, -1)
    error, floor = (np.square(guess - truth).mean() for guess in (found.reshape(40, -1), as_mean))
    assert error < 0.7 * floor
    np.testing.assert_array_equal(completed(pictures, np.ones(64, np.bool_), x[:300]), pictures)


def test_a_masked_picture_is_seen_where_its_columns_are(make_mesh: Any, digits: Any) -> None:
    x, y = digits
    for sharing in ({"name": "model"}, {"name": "served-proxy", "taught": "shown"}):
        mesh = make_mesh(model={"name": "mlp", "hidden": (16,)}, pictures=x[100:160], sharing=sharing)
        if sharing["name"] != "model":
            columns = columns_of(mesh)
            kept = columns.spread(columns.drawn(0.3, generator(1, "mask")))
            mesh.public = replace(mesh.public, initial=np.where(kept, mesh.public.initial, 0).astype(np.float32))
        mesh.train("b", mesh.near("b"), x[:1], y[:1])
        (guess,) = MaskedAnalytic().run(mesh.view("a"), np.random.default_rng(0))
        error = float(np.abs(guess.pictures - x[:1]).max())
        assert error < 1e-3 if sharing["name"] == "model" else error > 1e-2
