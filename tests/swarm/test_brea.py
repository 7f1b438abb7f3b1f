"""BREA as a protocol: one model for all, robust against bad updates, and whole whatever is lost or late."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmesh.core import BadInput, Refusal
from veilmesh.peer.machine import PeerId, Received, TimerFired
from veilmesh.swarm import messages
from veilmesh.swarm.strategies.base import STRATEGIES
from veilmesh.swarm.strategies.brea_steps import Choice, Deal, Step, read, said
from veilmesh.swarm.strategies.brea_terms import quantised, terms
from veilmesh.swarm.topology import TOPOLOGIES

BREA: dict[str, Any] = {"strategy": "brea"}
WIDE = {"reach": 4.0}  # x the stride of 0.25: no update of a bowl is cut


def whole(lab: Any, peers: int, **options: Any) -> Any:
    rounds = options.pop("rounds", 1)
    return lab.build(peers, **BREA, options={**WIDE, **options}, rounds=rounds)


def chosen(world: Any, index: int, round_: int = 0) -> list[int]:
    peers = world[index].noted("chosen")[round_]["peers"]
    return [int(peer.removeprefix("p")) for peer in peers]


# --- what it comes to ------------------------------------------------------------------------------------------------


def test_a_round_is_the_mean_of_the_chosen_updates_in_levels(lab: Any) -> None:
    world = whole(lab, 8, f=2).start().settle()
    agreed = terms(8, 1, 2, None, False).measured(lab.dimension, None)
    levels = [quantised(player.target * lab.rate, 4 * 0.25, agreed.levels) for player in world.players.values()]
    best = chosen(world, 0)
    wanted = sum(levels[i] for i in best) * (1.0 / agreed.levels / len(best))
    assert len(best) == 6
    for player in world.players.values():
        np.testing.assert_allclose(player.outcome.parameters, wanted, rtol=1e-6)
        assert player.noted("round") == [{"round": 0, "group": 6}]
        assert not player.noted("fault")


def test_with_nobody_to_outvote_it_is_fedavg(lab: Any) -> None:
    hidden = whole(lab, 5, f=0, rounds=12).start().settle()
    star = lab.build(5, strategy="fedavg", rounds=12).start().settle()
    assert len({model.tobytes() for model in hidden.models()}) == 1
    np.testing.assert_allclose(hidden.models()[0], star.models()[0], atol=3e-4)


@pytest.mark.slow
def test_what_is_cut_or_rounded_is_said_later(lab: Any) -> None:
    coarse = lab.build(5, **BREA, options={"f": 0, "reach": 1.0, "levels": 3}, rounds=60).start().settle()
    centre = np.mean([player.target for player in coarse.players.values()], axis=0)
    assert np.abs(coarse.models()[0] - centre).max() < 0.25  # one level is 0.083
    few = lab.build(5, **BREA, options={"f": 0, "reach": 4.0, "keep": 0.25}, rounds=120).start().settle()
    assert np.abs(few.models()[0] - centre).max() < 0.6


def test_two_of_eight_that_say_the_opposite_are_outvoted(lab: Any) -> None:
    world = whole(lab, 8, f=2, rounds=15)
    honest = np.mean([world[i].target for i in range(8)], axis=0)
    for i in range(8):
        world[i].target = honest + np.float32(0.1) * world[i].target
    for i in (2, 6):
        world[i].target = -5 * world[i].target
    world.start().settle()
    assert chosen(world, 0) == [0, 1, 3, 4, 5, 7]
    centre = np.mean([world[i].target for i in (0, 1, 3, 4, 5, 7)], axis=0)
    assert np.abs(world.models()[0] - centre).max() < 0.05
    plain = lab.build(8, strategy="group-all-reduce", rounds=15)
    for i in range(8):
        plain[i].target = world[i].target
    assert np.abs(plain.start().settle().models()[0] - centre).max() > 1


@settings(max_examples=examples(8))
@given(data=st.data(), peers=st.integers(3, 6))
def test_no_order_of_delivery_changes_a_bit(lab: Any, data: st.DataObject, peers: int) -> None:
    straight = whole(lab, peers, rounds=3).start().settle()
    random = data.draw(st.randoms(use_true_random=False))
    shuffled = whole(lab, peers, rounds=3).start().settle(lambda count: random.randrange(count))
    assert [m.tobytes() for m in straight.models()] == [m.tobytes() for m in shuffled.models()]
    assert not any(player.refused for player in shuffled.players.values())


def test_nobody_says_its_update_in_the_clear(lab: Any) -> None:
    """Two runs that differ in one peer's data: no byte string of any size that the peer says is its values' own."""
    world = whole(lab, 8, f=2).start().settle()
    agreed = terms(8, 1, 2, None, False).measured(lab.dimension, None)
    mine = quantised(world[3].target * lab.rate, 1.0, agreed.levels)
    words = {(int(v) % (2**31 - 1)).to_bytes(4, "little") for v in mine}
    bodies = [m.body for sender, _, m in world.said if sender == "p3" and isinstance(m, messages.Step)]
    assert not any(word in body for word in words for body in bodies)


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", list(Step))
def test_a_peer_that_dies_in_any_step_leaves_one_model(lab: Any, step: Step) -> None:
    world = whole(lab, 8, f=1, rounds=4).start()
    while not any(s == "p3" and isinstance(m, messages.Step) and m.step == step for s, _, m in world.said):
        world.step()
    world.die(3)
    world.finish()
    models = world.models()
    assert len(models) == 7
    assert len({model.tobytes() for model in models}) == 1
    assert all(player.outcome.reason == "finished" for player in world.players.values())
    assert not any(player.noted("abandoned") or player.noted("fault") for player in world.players.values())


@pytest.mark.parametrize("step", list(Step))
def test_a_peer_that_falls_silent_in_any_step_costs_timers_and_nothing_else(lab: Any, step: Step) -> None:
    world = whole(lab, 8, f=1, rounds=3)
    world.lost = lambda sender, to, m: sender == "p3" and isinstance(m, messages.Step) and m.step >= step
    world.start().finish()
    assert len({model.tobytes() for model in world.models()}) == 1
    assert not any(player.noted("abandoned") or player.noted("fault") for player in world.players.values())
    assert world.now < 3 * 3 * 10.0  # patience is 10 s


def test_one_that_missed_rounds_finds_the_others_model(lab: Any) -> None:
    world = whole(lab, 8, f=1, rounds=12)
    away = True
    world.lost = lambda sender, to, m: away and "p3" in (sender, to)
    world.start()
    while len(world[0].noted("round")) < 4:
        world.settle()
        if len(world[0].noted("round")) < 4:
            world.ring()
    away = False
    world.finish()
    assert world[3].noted("found")
    assert len({model.tobytes() for model in world.models()}) == 1


def test_where_too_few_agree_a_round_changes_nothing_and_what_was_learnt_is_kept(lab: Any) -> None:
    world = whole(lab, 8, f=2, rounds=2, reach=16.0)
    world.lost = lambda sender, to, m: isinstance(m, messages.Step) and m.round == 0 and m.step == Step.CHOICE
    world.start().finish()
    for player in world.players.values():
        assert [note["round"] for note in player.noted("abandoned")] == [0]
        assert player.noted("round")[0] == {"round": 0, "group": 1}
    once = whole(lab, 8, f=2, reach=16.0).start().settle()
    # The second round says what both trainings came to: twice what one does.
    np.testing.assert_allclose(world.models()[0], 2 * once.models()[0], atol=1e-3)


def test_a_corrupted_share_is_noted_with_its_dealer(lab: Any) -> None:
    world = whole(lab, 8, f=2).start()
    agreed = terms(8, 1, 2, None, False).measured(lab.dimension, None)
    while world.pending:
        peer, what = world.pending[0]
        message = messages.decode(what.body) if isinstance(what, Received) else None
        if isinstance(message, messages.Step) and message.step == Step.DEAL and (what.sender, peer) == ("p5", "p2"):
            deal = read(Step.DEAL, message.body, agreed)
            assert isinstance(deal, Deal)
            bad = said(deal._replace(share=bytes(len(deal.share))))
            world.pending[0] = (peer, Received(what.sender, messages.encode(messages.Step(0, Step.DEAL, bad))))
        world.step()
    [fault] = world[2].noted("fault")
    assert fault == {"round": 0, "kind": "broken-commitment", "peer": "p5", "towards": "p2"}
    assert len({model.tobytes() for model in world.models()}) == 1
    assert not any(player.noted("abandoned") for player in world.players.values())


# --- what is refused -------------------------------------------------------------------------------------------------


def test_what_is_no_step_or_out_of_place_is_refused(lab: Any, refused: Callable[..., Refusal]) -> None:
    world = whole(lab, 8, rounds=4).start()
    machine, other = world[0].machine, PeerId("p1")
    for message, why in (
        (messages.Step(0, 7, b""), Refusal.MALFORMED),
        (messages.Step(0, Step.DEAL, b"\x95"), Refusal.MALFORMED),
        (messages.Step(9, Step.CHOICE, said(Choice(()))), Refusal.MISMATCH),
        (messages.Reveal(0, 1, bytes(16)), Refusal.MISMATCH),
    ):
        assert refused(machine, Received(other, messages.encode(message))) is why
    stranger = Received(PeerId("nobody"), messages.encode(messages.Step(0, Step.CHOICE, said(Choice(())))))
    assert refused(machine, stranger) is Refusal.MISMATCH


def test_what_is_said_far_ahead_is_not_kept(lab: Any) -> None:
    world = whole(lab, 8, rounds=1000).start()
    machine = world[0].machine
    for round_ in range(3, 1000):
        body = messages.encode(messages.Step(round_, Step.CHOICE, said(Choice(()))))
        assert machine.handle(Received(PeerId("p1"), body), 0.0) == []
    assert len(vars(machine)["_early"]) == 0
    assert machine.handle(TimerFired("step"), 0.0) == []


def test_one_copy_of_a_model_is_not_believed_where_one_may_lie(lab: Any) -> None:
    world = whole(lab, 8, f=1, rounds=4).start()
    body = messages.encode(messages.Copy(2, b""))
    assert world[0].machine.handle(Received(PeerId("p1"), body), 0.0) == []  # nobody asked


def test_a_mesh_that_cannot_keep_the_terms_is_refused() -> None:
    complete = TOPOLOGIES.build("complete")
    with pytest.raises(BadInput, match="decoded with 9 peers"):
        STRATEGIES.build("brea", {"f": 2, "colluding": 2}).weights(complete.graph(8, 0))
    with pytest.raises(BadInput, match="decoded with 3 peers"):
        STRATEGIES.build("brea").weights(complete.graph(2, 0))
    with pytest.raises(BadInput, match="topology to complete"):
        STRATEGIES.build("brea").weights(TOPOLOGIES.build("ring").graph(8, 0))


def test_levels_with_which_distances_could_wrap_are_refused(lab: Any) -> None:
    with pytest.raises(BadInput, match="exceed the field"):
        whole(lab, 4, levels=100_000)
