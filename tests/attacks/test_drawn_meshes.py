"""Push-sum, epidemic learning and elected leaders: what receivers read, against what peers really did in real runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from veilmesh.attacks import ATTACKS, View, observe, observe_updates
from veilmesh.attacks.inference.models import models_seen
from veilmesh.attacks.seen.schedules import Schedule
from veilmesh.core import seed_number
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.peer.machine import PeerId
from veilmesh.peer.transcript import Record, read_transcript
from veilmesh.sim.audit import open_run
from veilmesh.sim.cast import Cast
from veilmesh.sim.observation import own_data
from veilmesh.sim.scenario import Scenario
from veilmesh.sim.score import psnr
from veilmesh.sim.virtual import run_in_virtual_time
from veilmesh.swarm import messages
from veilmesh.tasks.work import Train

PEERS, ROUNDS = 5, 6
SCENARIO: dict[str, Any] = {
    "world": "virtual", "peers": PEERS, "rounds": ROUNDS, "evaluate_every": ROUNDS, "seed": 3, "task": "digits",
    "model": {"name": "mlp", "hidden": [32], "activation": "tanh"}, "topology": "complete",
    "transcript": {"keep": "all"}, "training": {"batch": 1, "learning_rate": 0.05},
}  # fmt: skip
STRATEGIES: dict[str, Any] = {
    "epidemic": {"name": "epidemic", "s": 3},
    "push-sum": {"name": "push-sum"},
    "random push-sum": {"name": "push-sum", "graph": "random", "out": 3},
    "leader": {"name": "leader", "term": 1},
}
ALL_BUT_ONE = "+".join(f"peer:{i}" for i in range(PEERS - 1))


def ran(folder: Path, **changes: Any) -> Path:
    run_in_virtual_time(Cast.prepare(Scenario.parse({**SCENARIO, **changes})), folder, lambda *_: None)
    return folder


@pytest.fixture(scope="module", params=list(STRATEGIES))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ran(tmp_path_factory.mktemp("drawn") / "run", strategy=STRATEGIES[request.param])


def seen(run: Path, places: str) -> tuple[Cast, View]:
    cast, ids = open_run(run)
    place = cast.vantage(places, ids)
    records = read_transcript(run / "transcript")
    return cast, observe(place, records, cast.public(ids), own_data(cast, ids, place))


def trained(cast: Cast, view: View, peer: str, round_: int, start: np.ndarray) -> np.ndarray:
    """The update that `peer`, with its own pictures of that round, makes at `start`."""
    return cast.learner(view.public.peers.index(peer)).run([Train(round_, start)])[0].update


def error(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def test_all_but_one_read_every_round_of_the_last_exactly(run: Path) -> None:
    """The victim's own training at the start that was read makes the update that was read: so both are right."""
    cast, view = seen(run, ALL_BUT_ONE)
    found = observe_updates(view)
    assert [o.round for o in found] == list(range(ROUNDS))
    for o in found:
        assert o.exact
        assert o.coverage == 1
        assert not o.among
        assert error(o.update, trained(cast, view, o.victim, o.round, o.start)) < 1e-5


def test_what_one_peer_calls_exact_is_so(run: Path) -> None:
    cast, view = seen(run, "peer:0")
    found = [o for o in observe_updates(view) if o.exact]
    assert any(o.round == 0 for o in found)
    for o in found:
        members = o.among or (o.victim,)
        truth = np.mean([trained(cast, view, peer, o.round, o.start) for peer in members], axis=0)
        assert error(o.update, truth) < 1e-5
        assert o.samples == len(members)


@pytest.mark.parametrize("strategy", ["epidemic", "random push-sum"])
def test_what_was_not_heard_is_guessed_and_said_to_be(tmp_path: Path, strategy: str) -> None:
    """With half of the start heard, most of the update is right; with less, it is still nearer than nothing at all."""
    cast, view = seen(ran(tmp_path / "run", strategy=STRATEGIES[strategy], rounds=12), "peer:0")
    later = [o for o in observe_updates(view) if o.round]
    errors = [error(o.update, trained(cast, view, o.victim, o.round, o.start)) for o in later]
    half = [e for e, o in zip(errors, later, strict=True) if 0.5 <= o.coverage < 1]
    little = [e for e, o in zip(errors, later, strict=True) if o.coverage < 0.5]
    assert all(e > 1e-3 for e, o in zip(errors, later, strict=True) if not o.exact)
    assert np.median(half) < 0.6
    assert np.median(little) < 1


def test_on_the_exponential_graph_one_peer_knows_the_first_start_and_no_other(tmp_path: Path) -> None:
    """Weights say how much was not heard: all that v had, or the half that it was told by one who is controlled."""
    cast, view = seen(ran(tmp_path / "run", strategy="push-sum"), "peer:0")
    found = observe_updates(view)
    assert [o.exact for o in sorted(found, key=lambda o: o.round)] == [True] + [False] * (len(found) - 1)
    assert all(min(abs(o.coverage - c) for c in (0, 0.5, 1)) < 1e-6 for o in found)
    two = {(o.victim, o.round): o.coverage for o in observe_updates(seen(tmp_path / "run", "peer:0+peer:1")[1])}
    assert all(two.get((o.victim, o.round), 1) >= o.coverage - 1e-6 for o in found)


def test_a_leader_sees_everybody_and_the_others_see_the_rest_as_one(tmp_path: Path) -> None:
    cast, view = seen(ran(tmp_path / "run", strategy=STRATEGIES["leader"]), "peer:0")
    led = {messages.decode(r.body).round - 1 for r in view.records if _merges(r, view.public.peers[0])}
    assert 0 < len(led) < ROUNDS
    others = view.public.peers[1:]
    by_round = {t: [o for o in observe_updates(view) if o.round == t] for t in range(ROUNDS)}
    for t, found in by_round.items():
        assert [o.victim for o in found] == (list(others) if t in led else [others[0]])
        assert all(o.among == (() if t in led else others) for o in found)
    assert all(o.coverage == 1 for found in by_round.values() for o in found)


def _merges(record: Record, peer: str) -> bool:
    message = messages.decode(record.body)
    return record.sender == peer and isinstance(message, messages.Merged) and message.group > 0


def test_of_a_sum_by_another_rule_than_the_mean_nothing_is_said_to_be_exact(tmp_path: Path) -> None:
    folder = ran(tmp_path / "run", strategy=STRATEGIES["leader"], aggregator="median")
    found = observe_updates(seen(folder, "peer:0")[1])
    assert not any(o.exact for o in found if o.among)
    assert any(o.exact for o in found if not o.among)


@pytest.mark.parametrize("strategy", ["epidemic", "push-sum", "leader"])
@pytest.mark.parametrize("codec", ["8-bit", {"name": "top-k", "keep": 0.3}], ids=["8-bit", "top-k"])
def test_a_lossy_codec_is_exact_in_round_0_only(tmp_path: Path, strategy: str, codec: Any) -> None:
    cast, view = seen(ran(tmp_path / "run", strategy=STRATEGIES[strategy], codec=codec, rounds=3), ALL_BUT_ONE)
    for o in observe_updates(view):
        assert o.exact == (o.round == 0)
        truth = trained(cast, view, o.victim, o.round, o.start)
        said = np.ones(truth.size, bool) if o.said is None else o.said
        if o.round == 0 or codec == "8-bit":
            assert error(o.update[said], truth[said]) < (0.03 if codec == "8-bit" else 1e-5)
        assert not o.update[~said].any()


@pytest.mark.parametrize("task", ["digits", "faces"])
def test_where_the_reading_is_exact_a_picture_comes_out(tmp_path: Path, task: str) -> None:
    for name, strategy in STRATEGIES.items():
        cast, view = seen(ran(tmp_path / name, strategy=strategy, task=task), ALL_BUT_ONE)
        victim = view.public.peers.index(next(p for p in view.public.peers if p not in view.vantage.controls))
        guesses = {g.round: g for g in ATTACKS.build("analytic", {}).run(view, np.random.default_rng(0))}
        assert sorted(guesses) == list(range(ROUNDS))
        for t in (0, ROUNDS - 1):
            truth = cast.dataset.train_x[cast.drawn(victim, t)]
            assert psnr(guesses[t].pictures, truth)[0] > 45, (name, t)


@pytest.mark.parametrize("name", ["cosine-inversion", "label-recovery"])
def test_searches_and_labels_work_on_what_was_read(run: Path, name: str) -> None:
    cast, view = seen(run, "peer:0")
    attack = ATTACKS.build(name, {"iterations": 3} if name == "cosine-inversion" else {})
    guesses = list(attack.run(view, np.random.default_rng(0)))
    right = []
    for g in (g for g in guesses if g.round == 0):
        members = [view.public.peers.index(peer) for peer in g.among or (g.victim,)]
        truth = sorted(int(cast.dataset.train_y[i]) for m in members for i in cast.drawn(m, 0))
        right.append(len(set(truth) & {int(label) for label in g.labels}) / len(set(truth)))
    assert right
    assert np.mean(right) > 0.7


def test_models_for_membership_are_the_local_ones_and_none_is_marginalised_by_a_row_that_nobody_mixes_by(
    run: Path,
) -> None:
    cast, view = seen(run, ALL_BUT_ONE)
    found = models_seen(view, rounds=ROUNDS)
    local = [one for one in found if one.model == "local"]
    assert [one.round for one in local] == list(range(ROUNDS))
    assert not [one for one in found if one.model == "marginalised"]
    exact = {o.round: o for o in observe_updates(view)}
    for one in local:
        np.testing.assert_allclose(one.vector, exact[one.round].start + exact[one.round].update, atol=1e-6)


def test_what_everybody_draws_from_is_what_peers_have_and_not_the_seed_of_the_run() -> None:
    """From the run's seed follow the victims' batches, and the noise that guards them."""
    cast = Cast.prepare(Scenario.parse({**SCENARIO, "strategy": "epidemic"}))
    ids = [PeerId(name) for name in cast.names]
    assert cast.public(ids).draws == seed_number(cast.scenario.seed, "public") != cast.scenario.seed


def test_without_the_public_seed_only_the_first_round_is_read(tmp_path: Path) -> None:
    _, view = seen(ran(tmp_path / "run", strategy=STRATEGIES["epidemic"]), ALL_BUT_ONE)
    blind = replace(view, public=replace(view.public, draws=None))
    assert not Schedule(blind.public, 3).known
    assert [o.round for o in observe_updates(blind)] == [0]


def _messages(strategy: str) -> st.SearchStrategy[bytes]:
    rounds, blobs = st.integers(0, 3), st.binary(max_size=60)
    dense = st.lists(st.floats(-1e9, 1e9, width=32), min_size=6, max_size=6).map(
        lambda x: table.encode(Dense(), np.array(x, np.float32), np.random.default_rng(0))
    )
    weight = st.floats(-1, 1e3, width=32).map(
        lambda w: table.encode(Dense(), np.array([w], np.float32), np.random.default_rng(0))
    )
    kinds: dict[str, Any] = {
        "epidemic": st.builds(messages.Update, rounds, st.just(1), blobs | dense),
        "push-sum": st.builds(messages.Share, rounds, st.just(1), blobs | dense, blobs | weight),
        "leader": st.builds(messages.Merged, rounds, st.integers(1, 3), st.integers(0, 9), blobs | dense)
        | st.builds(messages.Update, rounds, st.just(1), blobs | dense),
    }
    return st.binary(max_size=40) | kinds[strategy].map(messages.encode)


@pytest.mark.parametrize("strategy", ["epidemic", "push-sum", "leader"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=examples(30))
@given(data=st.data())
def test_whatever_others_say_a_reading_is_finite_and_of_the_right_size(make_mesh, strategy, data) -> None:
    mesh = make_mesh(initial=np.zeros(6, np.float32), strategy=strategy, draws=5)
    bodies = data.draw(st.lists(st.tuples(st.sampled_from("abc"), _messages(strategy)), max_size=8))
    mesh.records = [Record(0.0, "a", sender, "a", len(body), None, body) for sender, body in bodies]
    for o in observe_updates(mesh.view("a")):
        assert o.victim in ("b", "c")
        assert o.update.shape == o.start.shape == (6,)
        assert o.update.dtype == o.start.dtype == np.float32
        assert np.isfinite(o.update).all()
        assert 0 <= o.coverage <= 1
