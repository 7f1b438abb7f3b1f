"""A mesh that is broken off anywhere, and goes on from the last round that everybody kept, ends as if nothing had been.

Messages and work come in any order, so members are at different rounds when the mesh breaks off.
"""

import random
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from veilmesh.core import BadInput
from veilmesh.crypto.codecs.base import CODECS
from veilmesh.peer.machine import Keep, Resumable
from veilmesh.swarm.guards.base import GUARDS
from veilmesh.swarm.strategies.base import STRATEGIES
from veilmesh.swarm.topology import TOPOLOGIES

PEERS, ROUNDS = 5, 7


@pytest.fixture(params=STRATEGIES.names())
def strategy(request: pytest.FixtureRequest, lab: Any) -> str:
    """Every protocol that has rounds which all peers share; the others are refused before a run."""
    machines = [player.machine for player in lab.build(PEERS, strategy=request.param).players.values()]
    if not any(isinstance(machine, Resumable) for machine in machines):
        pytest.skip(f"{request.param} takes no checkpoints")
    return str(request.param)


def rows(strategy: str, topology: str) -> Any:
    made = STRATEGIES.build(strategy)
    try:
        return made.weights(TOPOLOGIES.build(topology).graph(PEERS, 0)) or None
    except BadInput:  # it needs more links than a ring has
        return made.weights(TOPOLOGIES.build("complete").graph(PEERS, 0))


def mesh(lab: Any, strategy: str, codec: str = "top-k", topology: str = "ring", **others: Any) -> Any:
    options: dict[str, Any] = {"rounds": ROUNDS, "keep_every": 1, "evaluate_every": 3, **others}
    guards = [GUARDS.build("clip"), GUARDS.build("noise")]
    wiring = rows(strategy, topology)
    return lab.build(PEERS, strategy=strategy, codec=CODECS.build(codec), guards=guards, rows=wiring, **options)


def broken_off(world: Any, steps: int, order: random.Random) -> Any:
    world.start()
    for _ in range(steps):
        if world.pending:
            world.step(order.randrange(len(world.pending)))
    return world


def cut(world: Any) -> int | None:
    """The last round that everybody kept."""
    common = set.intersection(*({k.round for k in player.kept} for player in world.players.values()))
    return max(common, default=None)


def gone_on(world: Any, broken: Any, round_: int, order: random.Random) -> Any:
    for peer, player in world.players.items():
        [kept] = [k for k in broken.players[peer].kept if k.round == round_]
        player.machine.resume(kept)
    return world.start().settle(order.randrange)


def ends(world: Any) -> list[Any]:
    return [(p.outcome.parameters.tobytes(), p.outcome.rounds, p.outcome.accuracy, p.outcome.reason)
            for p in world.players.values()]  # fmt: skip


@pytest.mark.parametrize("codec", ["dense", "top-k", "8-bit"])
@settings(max_examples=examples(13), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.integers(1, 400), seed=st.integers(0, 2**32))
def test_a_resumed_mesh_ends_as_one_that_was_never_broken_off(
    lab: Any, strategy: str, codec: str, steps: int, seed: int
) -> None:
    order = random.Random(seed)
    broken = broken_off(mesh(lab, strategy, codec), steps, order)
    if (round_ := cut(broken)) is None:
        return
    resumed = gone_on(mesh(lab, strategy, codec), broken, round_, order)
    whole = mesh(lab, strategy, codec, keep_every=0).start().settle()
    assert ends(resumed) == ends(whole)
    assert not any(player.refused for player in resumed.players.values())
    for one, other in zip(resumed.players.values(), whole.players.values(), strict=True):
        for kind in ("trained", "round"):  # what is noted again is what was noted
            assert one.noted(kind) == [data for data in other.noted(kind) if data["round"] >= round_]
        assert all(data in other.noted("accuracy") for data in one.noted("accuracy"))  # scored in any order here


def test_a_mesh_can_be_broken_off_again_and_again(lab: Any, strategy: str) -> None:
    order = random.Random(strategy)
    world = broken_off(mesh(lab, strategy), 60, order)
    while (round_ := cut(world)) is None or round_ < ROUNDS:
        following = mesh(lab, strategy)
        for peer, player in following.players.items():
            if round_ is not None:
                player.machine.resume(next(k for k in world.players[peer].kept if k.round == round_))
        world = broken_off(following, 80, order)
    last = gone_on(mesh(lab, strategy), world, ROUNDS, order)  # only the last score is still to be taken
    assert ends(last) == ends(mesh(lab, strategy, keep_every=0).start().settle())


@pytest.mark.parametrize("topology", ["complete", "ring"])
@settings(max_examples=examples(13), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.integers(1, 900), seed=st.integers(0, 2**32), every=st.integers(1, 3))
def test_the_last_few_checkpoints_of_all_have_a_round_in_common(
    lab: Any, strategy: str, topology: str, steps: int, seed: int, every: int
) -> None:
    """The figure that `sim/resume.py` keeps: members are at most S rounds apart, whatever the order of things."""
    world = broken_off(mesh(lab, strategy, "dense", topology, keep_every=every), steps, random.Random(seed))
    if not all(player.kept for player in world.players.values()):
        return
    if strategy in ("push-sum", "epidemic"):
        apart = PEERS - 1
    elif strategy == "alone":  # nobody waits for anybody
        apart = ROUNDS
    else:
        apart = 2 if topology == "ring" or STRATEGIES.build(strategy).centralised else 1
    done = [player.kept[-1].round for player in world.players.values()]
    if strategy != "epidemic":  # whom a peer waits for is drawn there: further apart is possible, if hardly likely
        assert max(done) - min(done) <= apart + every - 1
    last = 3 + (apart - 1) // every
    held = [{k.round for k in player.kept[-last:]} for player in world.players.values()]
    assert set.intersection(*held)


def test_what_is_kept_is_not_written_to_afterwards(lab: Any, strategy: str) -> None:
    """A checkpoint is written while its machine goes on, and is no copy."""
    world = mesh(lab, strategy).start()
    seen: list[tuple[Keep, object]] = []
    while world.pending:
        world.step()
        known = {id(kept) for kept, _ in seen}
        for player in world.players.values():
            seen += [(kept, lab.snapshot(kept.state)) for kept in player.kept if id(kept) not in known]
    assert len(seen) == ROUNDS * len(world.players)
    assert all(lab.snapshot(kept.state) == before for kept, before in seen)


def test_all_machines_of_a_strategy_can_go_on_or_none(lab: Any, strategy: str) -> None:
    assert all(isinstance(p.machine, Resumable) for p in lab.build(3, strategy=strategy).players.values())


def test_a_protocol_without_rounds_takes_no_checkpoints(lab: Any) -> None:
    world = mesh(lab, "async-gossip")
    assert not any(isinstance(player.machine, Resumable) for player in world.players.values())


def test_nothing_is_kept_unless_it_is_asked_for(lab: Any, strategy: str) -> None:
    world = mesh(lab, strategy, keep_every=0).start().settle()
    assert not any(player.kept for player in world.players.values())


def test_a_copy_that_was_missing_at_the_cut_is_asked_for_at_once(lab: Any) -> None:
    """One update is lost, and everybody breaks off before it was mended: nobody would say it again by itself."""
    world = mesh(lab, "gossip", "dense")
    a, b = world.ids[0], world.ids[1]
    world.lost = lambda sender, to, message: (sender, to) == (a, b) and type(message).__name__ in ("Update", "Copy")
    world.start().settle()
    while not world.players[b].kept:
        world.ring()
        world.settle()
    round_ = cut(world)
    assert round_ is not None
    resumed = mesh(lab, "gossip", "dense")
    for peer, player in resumed.players.items():
        player.machine.resume(next(k for k in world.players[peer].kept if k.round == round_))
    resumed.start()
    assert (b, a, "Ask") in [(sender, to, type(message).__name__) for sender, to, message in resumed.said]
    resumed.settle()
    assert all(player.outcome.rounds == ROUNDS for player in resumed.players.values())  # and no timer had to fire
    assert np.isfinite(resumed.models()).all()
