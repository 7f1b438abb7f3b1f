"""Proxies averaged: what masks and rounding of single rounds leave out comes back, what is hidden for good does not."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from veilmesh.attacks.extraction.base import EXTRACTIONS, Extracted
from veilmesh.attacks.extraction.proxy_averaging import ProxyAveraging
from veilmesh.attacks.inference.base import registry_of
from veilmesh.core import BadInput, generator
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.crypto.codecs.normal_float import NormalFloat
from veilmesh.swarm import messages
from veilmesh.swarm.sharing.columns import Columns
from veilmesh.tasks.models.build import build_model, layout

HIDDEN, DROPPED = 0.25, 0.25


@pytest.fixture
def star(make_mesh: Any) -> Any:
    """A server `s` whose model stands still, and the clients a and b, told another proxy of it in each round."""

    def build(rounds: int, **options: Any) -> tuple[Any, np.ndarray, np.ndarray]:
        sharing = {"name": "served-proxy", **options}
        mesh = make_mesh(peers=("a", "b", "s"), weights={}, server="s", strategy="fedavg", sharing=sharing)
        columns = columns_of(mesh)
        rng = generator(5, "server")
        model = mesh.public.initial + 0.3 * rng.normal(size=columns.of.size).astype(np.float32)
        secret = columns.drawn(HIDDEN, rng)
        for round_ in range(rounds):
            for to in ("a", "b"):
                proxy = model * columns.scale(columns.drawn(DROPPED, rng, secret))
                mesh.say("s", to, messages.Model(round_, table.encode(NormalFloat(), proxy, rng)))
                taught = np.full(model.size, 0.01 * (1 if to == "a" else 3), np.float32)
                mesh.say(to, "s", messages.Update(round_, 1, table.encode(Dense(), taught, rng)))
        return mesh, model, ~columns.spread(secret)

    return build


def columns_of(mesh: Any) -> Columns:
    public = mesh.public
    options = {k: v for k, v in public.model.items() if k != "name"}
    network = build_model(str(public.model["name"]), options, public.shape, public.classes, 0)
    return Columns.in_layout(tuple(layout(network)))


def one(mesh: Any, *controls: str, **options: Any) -> Extracted:
    (found,) = ProxyAveraging(**options).run(mesh.view(*controls), np.random.default_rng(0))
    return found


def error(guess: np.ndarray, truth: np.ndarray, where: np.ndarray) -> float:
    return float(np.linalg.norm((guess - truth)[where]) / np.linalg.norm(truth[where]))


def test_masks_of_single_rounds_and_rounding_are_undone(star: Any) -> None:
    mesh, model, hidden = star(24)
    found = one(mesh, "a")
    alone = one(star(1)[0], "a")
    assert found.victim == "s"
    assert error(found.parameters, model, ~hidden) < 0.1  # to four bits
    assert error(alone.parameters, model, ~hidden) > 0.3
    assert found.seen[~hidden].all()
    assert not found.seen[hidden].any()
    assert found.rounds > 4  # the model stands still: the further back the better


def test_colluders_need_fewer_rounds(star: Any) -> None:
    mesh, model, hidden = star(3)
    both, single = one(mesh, "a", "b"), one(mesh, "a")
    assert both.words > single.words
    assert error(both.parameters, model, ~hidden) < error(single.parameters, model, ~hidden)


def test_of_what_is_hidden_for_good_no_coalition_sees_anything(star: Any) -> None:
    mesh, _, hidden = star(24, taught="shown")
    found = one(mesh, "a", "b", guess="likeliest")
    np.testing.assert_array_equal(found.parameters[hidden], mesh.public.initial[hidden])
    assert not one(mesh, "a", "b", guess="nothing").parameters[hidden].any()


def test_clients_know_what_they_taught(star: Any) -> None:
    """The paper's averaging: a client's update counts in columns that it never saw."""
    mesh, _, hidden = star(10, taught="all")
    found = one(mesh, "a", "b", guess="likeliest")
    expected = mesh.public.initial + 10 * np.float32(0.02)
    np.testing.assert_allclose(found.parameters[hidden], expected[hidden], atol=1e-5)


def test_the_best_guess_is_chosen_by_public_pictures(star: Any, digits: Any) -> None:
    mesh, _, hidden = star(10, taught="all")
    x, y = digits
    mesh.public = replace(mesh.public, pictures=x[:40], picture_labels=y[:40])
    found = one(mesh, "a")
    options = [one(mesh, "a", guess=guess).parameters[hidden] for guess in ("likeliest", "nothing")]
    options.append(mesh.public.initial[hidden])
    assert any(np.allclose(found.parameters[hidden], option) for option in options)


def test_among_peers_masks_are_read_from_what_is_said(make_mesh: Any) -> None:
    mesh = make_mesh(sharing={"name": "masked-proxy"})
    columns, rng = columns_of(mesh), generator(6, "peers")
    initial = np.append(mesh.public.initial, np.ones(columns.total, np.float32))
    mesh.public = replace(mesh.public, initial=initial)
    models = {p: mesh.public.initial[: columns.of.size] + np.float32(i) for i, p in enumerate("abc")}
    secrets = {p: columns.drawn(HIDDEN, rng) for p in "abc"}
    copies = dict.fromkeys("abc", initial)
    for round_ in range(12):
        for p in "abc":
            mask = columns.drawn(DROPPED, rng, secrets[p])
            said = np.append(np.where(columns.spread(mask), models[p], 0), mask).astype(np.float32)
            mesh.update(p, mesh.near(p), round_, said - copies[p])
            copies[p] = copies[p] + (said - copies[p])
    found = list(ProxyAveraging(guess="likeliest").run(mesh.view("a"), np.random.default_rng(0)))
    assert [f.victim for f in found] == ["b", "c"]
    for f in found:
        there = columns.spread(secrets[f.victim])
        np.testing.assert_array_equal(f.seen, there)
        np.testing.assert_allclose(f.parameters[there], models[f.victim][there], atol=1e-4)


# --- every registered extraction -----------------------------------------------------------------------------------


@pytest.fixture(params=EXTRACTIONS.names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_an_extraction_is_a_function_of_its_view_and_generator(name: str, star: Any) -> None:
    mesh, model, _ = star(4)
    first, second = (list(EXTRACTIONS.build(name).run(mesh.view("a"), np.random.default_rng(1))) for _ in range(2))
    assert [f.parameters.tobytes() for f in first] == [f.parameters.tobytes() for f in second]
    for f in first:
        assert f.victim != "a"
        assert f.parameters.shape == f.last.shape == f.seen.shape == model.shape
        assert f.parameters.dtype == np.float32
        assert np.isfinite(f.parameters).all()


def test_an_extraction_says_what_it_is_and_refuses_other_runs(name: str, make_mesh: Any) -> None:
    assert EXTRACTIONS.describe(name)[0].endswith(".")
    assert registry_of(name) is EXTRACTIONS
    assert EXTRACTIONS.get(name).extracts == "model"
    with pytest.raises(BadInput):
        EXTRACTIONS.build(name, {"truth": 1})
    with pytest.raises(BadInput, match="proxies"):
        list(EXTRACTIONS.build(name).run(make_mesh().view("a"), np.random.default_rng(0)))


def test_who_got_nothing_extracts_nothing(name: str, star: Any) -> None:
    mesh, _, _ = star(2)
    assert not list(EXTRACTIONS.build(name).run(mesh.view(), np.random.default_rng(0)))
