"""What every registered attack keeps to."""

import ast
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import veilmesh.attacks
from veilmesh.attacks import ATTACKS
from veilmesh.core import BadInput

ELSEWHERE = {"client-gan"}  # needs two data owners

NETWORKS = [{"name": "mlp", "hidden": (8,)}, {"name": "convnet", "width": 4}]


@pytest.fixture(params=NETWORKS, ids=lambda n: n["name"])
def view(request, make_mesh, digits):
    x, y = digits
    mesh = make_mesh(model=request.param, batch=2, pictures=x[100:120])
    for peer, at in zip("abc", (0, 2, 4), strict=True):
        mesh.train(peer, mesh.near(peer), x[at : at + 2], y[at : at + 2])
    return mesh.view("a")


@pytest.fixture(params=["tail", "body", "peer"])
def split_view(request, make_split):
    run = make_split("held" if request.param == "peer" else request.param).train(4)
    return run.view("peer:0" if request.param == "peer" else request.param)


def _is_of_split_mode(name):
    return ATTACKS.get(name).__module__.startswith("veilmesh.attacks.smashed.")


def _reads_models(name):
    """Some read only what another sharing scheme makes of a model; they say `reads_models = False`."""
    return getattr(ATTACKS.get(name), "reads_models", True)


SWARM = [name for name in ATTACKS.names() if not _is_of_split_mode(name) and _reads_models(name)]
SHARED = [name for name in ATTACKS.names() if not _reads_models(name)]
SPLIT = [name for name in ATTACKS.names() if _is_of_split_mode(name)]


def _build(name):
    """Quick, where an attack can be."""
    fields = {f.name for f in dataclasses.fields(ATTACKS.get(name))}
    return ATTACKS.build(name, {n: k for n, k in (("iterations", 3), ("newton", 1), ("restarts", 1)) if n in fields})


@pytest.mark.parametrize("name", SWARM)
def test_guesses_have_the_right_shapes_and_ranges(view, name):
    attack = _build(name)
    guesses = list(attack.run(view, np.random.default_rng(0)))
    assert attack.reconstructs in ("pictures", "labels")
    assert [g.victim for g in guesses] == ["b", "c"]
    for g in guesses:
        assert g.round == 0
        assert g.pictures.dtype == np.float32
        assert g.pictures.shape[1:] == (1, 8, 8)
        assert len(g.pictures) <= 2
        assert ((g.pictures >= 0) & (g.pictures <= 1)).all()
        assert g.labels.dtype == np.int64
        assert g.labels.shape == (2,)
        assert ((g.labels >= 0) & (g.labels < 4)).all()
        assert isinstance(g.loss, float)
        assert np.isfinite(g.loss)


def _run(name, view, seed):
    """Its guesses, or the sentence with which it refuses this vantage."""
    try:
        return list(_build(name).run(view, np.random.default_rng(seed)))
    except BadInput as error:
        return [] if str(error).endswith(".") else pytest.fail(f"no sentence: {error}")


@pytest.mark.parametrize("name", SPLIT)
def test_guesses_at_smashed_data_have_the_right_shapes_and_ranges(split_view, name):
    labels = getattr(ATTACKS.get(name), "reconstructs", None) == "labels"
    for g in _run(name, split_view, 0):
        assert g.victim == "peer:0"
        assert 0 <= g.round < 4
        assert g.pictures.dtype == np.float32
        assert g.pictures.shape == ((0, 1, 8, 8) if labels else (10, 1, 8, 8))
        assert ((g.pictures >= 0) & (g.pictures <= 1)).all()
        assert g.labels.dtype == np.int64
        assert g.labels.shape in ((10,), (0,))
        assert ((g.labels >= 0) & (g.labels < 4)).all()
        assert isinstance(g.loss, float)
        assert np.isfinite(g.loss)


@pytest.mark.parametrize("name", SPLIT)
def test_an_attack_on_smashed_data_guesses_somewhere(make_split, name):
    seats = (("tail", "tail"), ("body", "body"), ("held", "peer:0"))
    views = [make_split(seat).train(4).view(at) for seat, at in seats]
    assert name in ELSEWHERE or any(_run(name, view, 0) for view in views)


@pytest.mark.parametrize("name", SPLIT)
def test_an_attack_on_smashed_data_is_a_function_of_its_view_and_generator(split_view, name):
    _is_a_function(lambda: _run(name, split_view, 3))


@pytest.mark.parametrize("name", SPLIT)
def test_an_attack_on_smashed_data_refuses_a_run_of_swarm_mode(view, name):
    with pytest.raises(BadInput, match="cut"):
        list(_build(name).run(view, np.random.default_rng(0)))


@pytest.mark.parametrize("name", SHARED)
def test_an_attack_on_another_sharing_refuses_a_run_that_shares_models(view, name):
    assert "model" not in ATTACKS.get(name).sharings
    with pytest.raises(BadInput, match="shared something else"):
        list(_build(name).run(view, np.random.default_rng(0)))


@pytest.mark.parametrize("name", SWARM)
def test_an_attack_is_a_function_of_its_view_and_generator(view, name):
    _is_a_function(lambda: list(_build(name).run(view, np.random.default_rng(3))))


def _is_a_function(guesses):
    torch.manual_seed(1)
    np.random.seed(1)  # the global generator is what is being watched
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first, second = (guesses() for _ in range(2))
    after = torch.get_rng_state(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    for a, b in zip(first, second, strict=True):
        assert a.pictures.tobytes() == b.pictures.tobytes()
        assert (a.labels == b.labels).all()
        assert a.loss == b.loss


@pytest.mark.parametrize("name", ATTACKS.names())
def test_an_unknown_option_is_refused_by_name(name):
    with pytest.raises(BadInput, match="There is no option"):
        ATTACKS.build(name, {"truth": 1})


@pytest.mark.parametrize("name", ATTACKS.names())
def test_an_attack_says_what_it_is(name):
    line, _ = ATTACKS.describe(name)
    assert line.endswith(".")


KNOWN = (
    "veilmesh.attacks", "veilmesh.core", "veilmesh.crypto.codecs", "veilmesh.crypto.cpad", "veilmesh.crypto.field",
    "veilmesh.crypto.fixed", "veilmesh.crypto.frame", "veilmesh.crypto.homomorphic", "veilmesh.crypto.linear_frames",
    "veilmesh.crypto.padding",
    "veilmesh.crypto.polynomial_shares", "veilmesh.crypto.shared_key", "veilmesh.crypto.tensors",
    "veilmesh.peer.limits.Kind", "veilmesh.peer.machine", "veilmesh.peer.transcript", "veilmesh.split.cut",
    "veilmesh.split.guards",
    "veilmesh.split.messages", "veilmesh.split.part", "veilmesh.split.work", "veilmesh.swarm.guards",
    "veilmesh.swarm.messages", "veilmesh.swarm.schedule",
    "veilmesh.swarm.sealer",
    "veilmesh.swarm.secure_messages", "veilmesh.swarm.sharing.columns",
    "veilmesh.swarm.sharing.base", "veilmesh.swarm.sharing.hyperfl", "veilmesh.swarm.sharing.public_step",
    "veilmesh.swarm.sharing.regmean",
    "veilmesh.swarm.strategies.brea", "veilmesh.swarm.strategies.brea_steps",
    "veilmesh.swarm.strategies.brea_terms", "veilmesh.swarm.strategies.butterfly",
    "veilmesh.swarm.strategies.ciphers.exact_scheme", "veilmesh.swarm.strategies.ciphers.scheme_for",
    "veilmesh.swarm.strategies.epidemic.Epidemic", "veilmesh.swarm.strategies.hub.lossless",
    "veilmesh.swarm.strategies.push_sum.FLOOR", "veilmesh.swarm.strategies.push_sum.PushSum",
    "veilmesh.swarm.strategies.secure_clusters", "veilmesh.swarm.strategies.secure_groups", "veilmesh.tasks.models",
    "veilmesh.tasks.work.Settings",
)  # fmt: skip
INSIDE = "veilmesh.swarm.strategies.base"  # a tamper is a machine, and has the kit of one: its own
LIBRARIES = {
    "abc", "ast", "collections", "contextlib", "copy", "dataclasses", "functools", "hashlib", "itertools", "math",
    "numpy", "msgspec", "pydantic", "statistics", "torch", "typing",
}  # fmt: skip
SOURCES = sorted(Path(veilmesh.attacks.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_an_attack_reaches_no_data(source):
    """Everybody has the private pictures who can load the task, or open a file, or draw a peer's batch."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name}" for name in names]
            for name in names:
                ours = name.split(".")[0] == "veilmesh"
                known = (*KNOWN, INSIDE) if "tampers" in source.parts else KNOWN
                allowed = any(name == k or name.startswith(f"{k}.") for k in known) if ours else False
                assert allowed or (not ours and name.split(".")[0] in LIBRARIES), f"{source.name} imports {name}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"open", "eval", "exec", "__import__", "compile"}
