"""How right an observer of times is: figures that anybody can check by hand, and floors that a blind one reaches."""

import json
from pathlib import Path

import numpy as np
import pytest

from veilmesh.attacks.traffic_cover import Suspicions
from veilmesh.peer.machine import PeerId
from veilmesh.peer.transcript import Record
from veilmesh.sim.traffic_scores import Truth, auc, scores, truth

PEERS = tuple(PeerId(p) for p in "abcdef")
PAIRS = [(v, w) for v in PEERS for w in PEERS if v != w]
RING = frozenset(p for i in range(6) for p in ((PEERS[i], PEERS[(i + 1) % 6]), (PEERS[(i + 1) % 6], PEERS[i])))
TIMES = np.arange(60) * 0.1
SAID = [(1.0 * k + 0.01, 1.0 * k + 0.21) for k in range(6)]  # two slots in ten are full
FULL = np.array([any(begin <= t <= end for begin, end in SAID) for t in TIMES])


def suspicions(sure: float) -> Suspicions:
    """Of an observer who knows everything, or, with 0, nothing."""
    return Suspicions(
        times=dict.fromkeys(PAIRS, TIMES),
        full={"late": dict.fromkeys(PAIRS, sure * FULL.astype(float))},
        slow={"late": {p: sure * (p == "c") for p in PEERS}},
        near={"frames": {pair: sure * (pair in RING) for pair in PAIRS}},
        round=1.0 if sure else None,
    )


OF = Truth(dict.fromkeys(PAIRS, SAID), RING, frozenset("c"), 1.0, PEERS, covered=True)


def test_who_knows_everything_is_right_and_the_floor_is_not():
    told = scores(suspicions(1.0), OF)
    assert (told["full"]["got"], told["near"]["got"], told["slow"]["got"], told["round"]["off"]) == (1, 1, 1, 0)
    assert told["full"]["floor"] < 0.8
    assert told["near"]["floor"] < 0.9
    assert told["slow"]["floor"] == pytest.approx(1 / 6, abs=1e-3)


def test_who_knows_nothing_is_right_by_chance():
    told = scores(suspicions(0.0), OF)
    assert told["full"]["got"] == told["full"]["floor"] == told["near"]["got"] == told["near"]["floor"] == 0.5
    assert told["slow"]["got"] == told["slow"]["floor"] == pytest.approx(1 / 6, abs=1e-3)
    assert (told["round"]["guess"], told["round"]["off"]) == (None, None)
    assert told["round"]["off_by_slots"] == pytest.approx(0.9)


def test_a_suspicion_that_is_always_wrong_tells_as_much():
    assert scores(suspicions(-1.0), OF)["full"]["got"] == 1


def test_where_there_is_nothing_to_tell_there_is_no_figure():
    nothing = Truth({}, frozenset(PAIRS), frozenset(), None, PEERS, covered=True)
    assert scores(suspicions(1.0), nothing) == dict.fromkeys(("full", "near", "slow", "round"))


def test_auc_counts_ties_half():
    true = np.array([True, False, True, False])
    assert auc(np.array([2.0, 1.0, 2.0, 1.0]), true) == 1
    assert auc(np.array([1.0, 1.0, 1.0, 1.0]), true) == 0.5
    assert auc(np.array([2.0, 1.0, 1.0, 1.0]), true) == 0.75


def test_the_truth_is_read_off_taps_and_events(tmp_path: Path):
    a, b = PEERS[:2]
    records = [Record(1.0, a, a, b, 0, None, b"x"), Record(1.2, b, a, b, 500, None, b"x")]
    lines = [{"t": t, "peer": 0, "kind": "round", "round": n} for n, t in enumerate((1.0, 1.5, 2.5))]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = truth(records, tmp_path / "events.jsonl", PEERS, [(a, b)], ["c"], covered=True)
    assert found.said == {(a, b): [(1.0, 1.2)]}
    assert found.round == 0.75
