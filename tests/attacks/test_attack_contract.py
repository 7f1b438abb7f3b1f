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

NETWORKS = [{"name": "mlp", "hidden": (8,)}, {"name": "convnet", "width": 4}]


@pytest.fixture(params=NETWORKS, ids=lambda n: n["name"])
def view(request, make_mesh, digits):
    x, y = digits
    mesh = make_mesh(model=request.param, batch=2, pictures=x[100:120])
    for peer, at in zip("abc", (0, 2, 4), strict=True):
        mesh.train(peer, mesh.near(peer), x[at : at + 2], y[at : at + 2])
    return mesh.view("a")


def _build(name):
    """Quick, where an attack can be."""
    fields = {f.name for f in dataclasses.fields(ATTACKS.get(name))}
    return ATTACKS.build(name, {n: k for n, k in (("iterations", 3), ("newton", 1)) if n in fields})


@pytest.mark.parametrize("name", ATTACKS.names())
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


@pytest.mark.parametrize("name", ATTACKS.names())
def test_an_attack_is_a_function_of_its_view_and_generator(view, name):
    torch.manual_seed(1)
    np.random.seed(1)  # the global generator is what is being watched
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first, second = (list(_build(name).run(view, np.random.default_rng(3))) for _ in range(2))
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
    "veilmesh.crypto.fixed", "veilmesh.crypto.frame", "veilmesh.crypto.homomorphic", "veilmesh.crypto.padding",
    "veilmesh.crypto.polynomial_shares", "veilmesh.crypto.shared_key", "veilmesh.crypto.tensors",
    "veilmesh.peer.machine", "veilmesh.peer.transcript", "veilmesh.swarm.guards", "veilmesh.swarm.messages",
    "veilmesh.swarm.sealer",
    "veilmesh.swarm.secure_messages", "veilmesh.swarm.strategies.brea", "veilmesh.swarm.strategies.brea_steps",
    "veilmesh.swarm.strategies.brea_terms", "veilmesh.swarm.strategies.butterfly",
    "veilmesh.swarm.strategies.hub.lossless",
    "veilmesh.swarm.strategies.secure_clusters", "veilmesh.swarm.strategies.secure_groups", "veilmesh.tasks.models",
)  # fmt: skip
INSIDE = "veilmesh.swarm.strategies.base"  # a tamper is a machine, and has the kit of one: its own
LIBRARIES = {
    "abc", "ast", "collections", "contextlib", "dataclasses", "functools", "hashlib", "itertools", "math", "numpy",
    "msgspec", "pydantic", "statistics", "torch", "typing",
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
