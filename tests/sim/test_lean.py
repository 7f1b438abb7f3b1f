"""An edge device's peer without torch: what it imports, and what it takes along into its fresh interpreter."""

import pickle
import subprocess
import sys

import pytest

from veilmesh.peer.machine import PeerId
from veilmesh.sim.cast import Cast
from veilmesh.sim.lean import can_be_lean, slim
from veilmesh.sim.scenario import Scenario

_LOOKED_UP = """
import sys
import veilmesh.sim.lean
import veilmesh.sim.member_process
from veilmesh.sim.cast import AGGREGATORS, CODECS, GUARDS, SHARINGS, STRATEGIES, TOPOLOGIES
for registry in (AGGREGATORS, CODECS, GUARDS, SHARINGS, STRATEGIES, TOPOLOGIES):
    assert registry.names()
heavy = {name.split(".")[0] for name in sys.modules} & {"torch", "sklearn", "scipy", "libp2p"}
sys.exit(" ".join(sorted(heavy)) or None)
"""


def prepared(**scenario: object) -> Cast:
    return Cast.prepare(Scenario.parse({"peers": 3, "rounds": 2, **scenario}))


def test_a_peers_process_imports_nothing_that_computes() -> None:
    ran = subprocess.run([sys.executable, "-c", _LOOKED_UP], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize(
    "scenario",
    [
        {"strategy": "gossip"},
        {"strategy": "secure-groups"},
        {"strategy": "fedavg"},
        {"strategy": "choco", "codec": "top-k"},
        {"strategy": "gossip", "guards": [{"name": "clip"}]},
        {"strategy": "gossip", "sharing": "regmean"},
    ],
    ids=lambda scenario: " ".join(map(str, scenario.values())),
)
def test_the_machine_is_the_same_without_the_data(scenario: dict[str, object]) -> None:
    cast = prepared(**scenario)
    assert can_be_lean(cast, 0)
    raw = pickle.dumps(slim(cast))
    assert len(raw) < 200_000 + 8 * cast.initial.nbytes < len(pickle.dumps(cast))
    ids = [PeerId(name) for name in cast.names]
    mine, other = cast.machine(0, ids), pickle.loads(raw).machine(0, ids)
    assert type(mine) is type(other)
    assert (pickle.loads(raw).initial == cast.initial).all()
    assert pickle.loads(raw).layout == cast.layout


def test_who_computes_in_its_own_process_stays_as_it_is() -> None:
    assert not can_be_lean(Cast.prepare(Scenario.parse({"strategy": "vanilla", "peers": 1, "rounds": 2})), 0)
