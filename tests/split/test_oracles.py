"""What split runs are held against: training with nothing cut, and FedAvg over the whole model."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from split_runs import DEEP, played, prepared, unsplit

from veilmesh.core import RemoteError
from veilmesh.peer.transcript import read_transcript
from veilmesh.sim.cast import Cast
from veilmesh.split import messages
from veilmesh.tasks.work import Train

CHAIN = {"strategy": "chain", "model": DEEP}
ADAM = {"training__optimizer": "adam", "training__learning_rate": 0.003}
CONV = {"model": {"name": "convnet", "width": 4}, "rounds": 2, "training__local_steps": 2}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"strategy__labels": "held"},
        {"strategy": "u-shaped"},
        CHAIN,
        {**CHAIN, "strategy": {"name": "chain", "labels": "own"}},
        {**CHAIN, "strategy": {"name": "chain", "labels": "held", "standbys": 1}},
        {**CHAIN, "strategy": {"name": "chain", "middles": 1, "standbys": 2}},
        CONV,
        {**CONV, "strategy": "u-shaped"},
        {"split__cuts": [1]},  # a head without parameters
        {"training__local_steps": 1},
        {"training__momentum": 0.9},
        {**CHAIN, "training__momentum": 0.9},
        ADAM,
        {**ADAM, "strategy": "u-shaped"},
        {**ADAM, **CHAIN},
    ],
)
def test_one_data_owners_split_run_is_unsplit_training_to_the_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    run = played(tmp_path, **changes)
    assert set(run.ended.values()) == {"finished"}
    [model] = run.models
    assert model.tobytes() == unsplit(run.cast).tobytes()
    whole = {name: value for name, value in changes.items() if not name.startswith(("strategy", "split"))}
    alone = played(tmp_path / "alone", **whole, strategy="alone")
    assert run.summary["accuracy"] == alone.summary["accuracy"]
    assert [n["loss"] for n in run.noted("trained")] == [n["loss"] for n in alone.noted("trained")]


@pytest.mark.parametrize("changes", [{}, {"strategy": "u-shaped"}, CHAIN, {**ADAM, **CHAIN}])
@pytest.mark.parametrize("in_flight", [0, 1, 2])
def test_micro_batches_come_to_the_same_up_to_rounding(tmp_path: Path, changes: dict[str, Any], in_flight: int) -> None:
    run = played(tmp_path, **changes, split__micro_batches=4, split__in_flight=in_flight)
    [model] = run.models
    np.testing.assert_allclose(model, unsplit(run.cast), atol=2e-5 if "training__optimizer" in changes else 1e-6)


def test_how_many_micro_batches_are_on_their_way_changes_no_bit(tmp_path: Path) -> None:
    models = [
        played(tmp_path / str(n), **CHAIN, split__micro_batches=4, split__in_flight=n).models[0] for n in (0, 1, 3)
    ]
    assert models[0].tobytes() == models[1].tobytes() == models[2].tobytes()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_splitfed_is_fedavg_over_the_whole_model(tmp_path: Path, momentum: float) -> None:
    common = {"peers": 4, "rounds": 5, "training__momentum": momentum}
    split = played(tmp_path / "split", strategy="splitfed", **common)
    star = played(tmp_path / "star", strategy="fedavg", **common)
    assert len({len(shard) for shard in star.cast.shards}) <= 2
    served = star.cast.models(star.folder / "checkpoints", ["server"])[0]
    for model in split.models:
        np.testing.assert_allclose(model, served, atol=2e-6)
    assert abs(split.summary["accuracy"] - star.summary["accuracy"]) < 0.01


@pytest.mark.parametrize(
    ("strategy", "same_tail"),
    [({"name": "splitfed"}, True), ({"name": "splitfed", "version": 2}, True), ("round-robin", True)],
)
def test_all_data_owners_end_with_one_network(tmp_path: Path, strategy: Any, same_tail: bool) -> None:
    run = played(tmp_path, strategy=strategy, peers=3)
    size = run.cast.sizes[0]  # type: ignore[attr-defined]  # it is a SplitCast
    assert len({model[size:].tobytes() for model in run.models}) == 1 or not same_tail
    if strategy != "round-robin":
        heads = [model[:size] for model in run.models]
        np.testing.assert_allclose(heads[0], heads[1], atol=1e-6)
    assert run.summary["accuracy"] > 0.5


def test_with_one_epoch_each_round_robin_is_sequential_training(tmp_path: Path) -> None:
    """A round of every owner in turn, from where the one before left off."""
    run = played(tmp_path, strategy="round-robin", peers=3, rounds=2)
    trainers, x = [Cast.learner(run.cast, i) for i in range(3)], np.array(run.cast.initial)
    for round_ in range(2):
        for trainer in trainers:
            [trained] = trainer.run([Train(round_, x)])
            x = x + trained.update  # type: ignore[attr-defined]  # a Trained
    assert run.models[2].tobytes() == x.tobytes()


GOLDEN = {
    "vanilla": "23c793668e78cc9e8b78d705bf70b6db",
    "u-shaped": "7d21ae8633a5e9edeb0305c3a4948b0a",
    "chain": "025b4a46deb99a0d2c725f263b9ce087",
    "round-robin": "5e05d59d330d18c4dd0011d8562d72c8",
    "splitfed 1": "4fd43d5ef0c5ec5e6120ffc7862a4141",
    "splitfed 2": "8531a93bed68b603bb03de7a79cec7cc",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "vanilla": {"split__codec": "8-bit"},
    "u-shaped": {"strategy": "u-shaped", "split__gradients": "top-k"},
    "chain": {**CHAIN, "split__micro_batches": 3},
    "round-robin": {"strategy": "round-robin", "peers": 3},
    "splitfed 1": {"strategy": "splitfed", "peers": 3},
    "splitfed 2": {"strategy": {"name": "splitfed", "version": 2}, "peers": 3},
}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_seeded_run_says_the_same_messages(tmp_path: Path, name: str) -> None:
    """Golden hashes of who says how much to whom, in which order: what a change of a protocol's meaning moves. The
    figures of training depend on the processor and are held against unsplit training above."""
    run = played(tmp_path, **SETTINGS[name], rounds=2, evaluate_every=1, transcript__keep="all")
    assert traffic(run.folder) == GOLDEN[name]


def traffic(folder: Path) -> str:
    said = []
    for record in read_transcript(folder / "transcript"):
        if record.at == record.sender and not is_swarms(record.body or b""):
            m = messages.decode(record.body or b"")
            values = [getattr(m, name) for name in m.__struct_fields__]
            numbers = [len(v) if isinstance(v, bytes) else v for v in values if not isinstance(v, float)]
            said.append((round(record.now, 4), record.sender, record.to, type(m).__name__, *numbers))
    return hashlib.blake2b(repr(said).encode(), digest_size=16).hexdigest()


def is_swarms(body: bytes) -> bool:
    """Whether heads say this to each other."""
    try:
        messages.decode(body)
    except RemoteError:
        return True
    return False


def test_a_cast_is_the_same_every_time() -> None:
    first, second = (prepared(strategy="chain", model=DEEP) for _ in range(2))
    assert first.initial.tobytes() == second.initial.tobytes()
