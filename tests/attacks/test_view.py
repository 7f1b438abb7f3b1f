"""An adversary has what its vantage gives it, and nothing else."""

import subprocess
import sys

import numpy as np
import pytest

from veilmesh.attacks import ATTACKS
from veilmesh.core import BadInput


def _talk(make_mesh):
    mesh = make_mesh()
    mesh.gossip({p: np.ones((2, mesh.public.initial.size), np.float32) for p in mesh.public.peers})
    return mesh


def test_bodies_survive_only_at_controlled_peers(make_mesh):
    view = _talk(make_mesh).view("a")
    assert view.records
    assert all(r.at == "a" and r.body is not None and r.frame is None for r in view.records)


def test_a_tap_sees_sealed_frames_and_no_body(make_mesh):
    mesh = _talk(make_mesh)
    view = mesh.view(taps_wire=True)
    assert len(view.records) == len(mesh.records)
    assert all(r.body is None and r.frame is not None for r in view.records)


def _reads_cuts(name):
    return ATTACKS.get(name).__module__.startswith("veilmesh.attacks.smashed.")


def _reads_models(name):
    return not _reads_cuts(name) and getattr(ATTACKS.get(name), "reads_models", True)


@pytest.mark.parametrize("name", [name for name in ATTACKS.names() if _reads_models(name)])
def test_without_bodies_no_attack_guesses_anything(make_mesh, name):
    view = _talk(make_mesh).view(taps_wire=True)
    assert list(ATTACKS.build(name).run(view, np.random.default_rng(0))) == []


@pytest.mark.parametrize("name", [name for name in ATTACKS.names() if _reads_cuts(name)])
def test_an_attack_on_what_crosses_a_cut_says_so_where_nothing_does(make_mesh, name):
    """In swarm mode, and on a tap of sealed frames."""
    with pytest.raises(BadInput):
        list(ATTACKS.build(name).run(_talk(make_mesh).view(taps_wire=True), np.random.default_rng(0)))


def test_looking_at_a_view_does_not_load_torch():
    code = "import sys, veilmesh.attacks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
