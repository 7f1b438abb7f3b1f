"""Blind proxies: exact where nothing goes wrong, sums and no parts for anybody, and nothing where too few spoke."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import networkx as nx
import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tenseal")

from veilmesh.core import BadInput, Refusal
from veilmesh.crypto.codecs.topk import TopK
from veilmesh.crypto.homomorphic import Lanes
from veilmesh.peer.machine import PeerId, PeersChanged, Received, Send, Work, WorkDone
from veilmesh.swarm import messages
from veilmesh.swarm.aggregators.base import AGGREGATORS
from veilmesh.swarm.strategies.base import STRATEGIES
from veilmesh.swarm.strategies.blind_proxy import AHEAD
from veilmesh.swarm.strategies.ciphers import fingerprint
from veilmesh.swarm.strategies.proxies import Table

BLIND = {"strategy": "blind-proxy"}
BITS = 14
STEP = Lanes(BITS, 3, 4.0).step


def public_key(world: Any, index: int) -> bytes:
    return next(m.blob for sender, _, m in world.said if sender == world.ids[index] and isinstance(m, messages.Key))


def proxies(world: Any, index: int) -> list[str]:
    """Who adds for a peer, by round."""
    table = Table(len(world.ids), 5, 0)
    return [world.ids[table.proxy(r, index)] for r in range(10)]


def groups(world: Any, index: int) -> list[object]:
    return [data["group"] for data in world[index].noted("round")]


# --- who adds for whom -----------------------------------------------------------------------------------------------


@given(peers=st.integers(3, 30), near=st.integers(0, 30), seed=st.integers(0, 9), round_=st.integers(0, 99))
def test_everybody_adds_for_one_other_who_is_not_its_neighbour_if_that_can_be(peers, near, seed, round_) -> None:
    near -= near % 2
    table = Table(peers, seed, near)
    around = [set(table.neighbours(place)) for place in range(peers)]
    assert {len(some) for some in around} == {min(near or peers, peers - 1)}
    assert all(
        place in around[other] and place not in around[place] for place in range(peers) for other in around[place]
    )
    served = [table.served(round_, place) for place in range(peers)]
    assert sorted(served) == list(range(peers))
    for place in range(peers):
        assert table.proxy(round_, served[place]) == place != served[place]
        assert (place in around[served[place]]) == (len(around[place]) == peers - 1)


def test_the_proxy_goes_round() -> None:
    assert {Table(6, 3, 0).proxy(round_, 2) for round_ in range(5)} == {0, 1, 3, 4, 5}
    assert len({Table(8, 3, 2).proxy(round_, 2) for round_ in range(5)}) == 5


# --- what it comes to ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peers", [3, 5])
def test_a_round_is_the_exact_average_of_the_rounded_models(lab, peers: int) -> None:
    world = lab.build(peers, **BLIND, rounds=1).start().settle()
    half = np.array([player.target * lab.rate for player in world.players.values()])
    step = Lanes(BITS, max(2, peers - 1), 4.0).step
    levels = np.rint(half.astype(np.float64) / step)
    for index, model in enumerate(world.models()):
        kept = half[index] - levels[index] * step
        np.testing.assert_allclose(model, levels.sum(0) * step / peers + kept, atol=1e-7)
        assert groups(world, index) == [peers]


def test_it_is_the_all_reduce_of_one_group_up_to_rounding(lab) -> None:
    blind = lab.build(4, **BLIND, rounds=5).start().settle()
    plain = lab.build(4, strategy="group-all-reduce", options={"group": 64}, rounds=5).start().settle()
    np.testing.assert_allclose(blind.models(), plain.models(), atol=3 * STEP)
    np.testing.assert_allclose(
        np.mean(blind.models(), 0), np.mean(plain.models(), 0), atol=1e-6
    )  # what is cut off stays
    assert not any(player.refused or player.noted("late") for player in blind.players.values())


def test_what_cannot_be_said_stays_with_the_peer_and_is_noted(lab) -> None:
    world = lab.build(3, **BLIND, rounds=4, options={"limit": 0.1}).start()
    learnt = np.zeros(lab.dimension)
    while world.pending:
        peer, what = world.pending[0]
        if isinstance(what, Work) and what.name.startswith("train"):
            learnt += world.players[peer].work(what.task).update
        world.step()
    np.testing.assert_allclose(np.sum(world.models(), 0), learnt, atol=1e-5)
    assert all(player.noted("clipped") for player in world.players.values())


def test_a_few_neighbours_are_enough_to_come_together(lab) -> None:
    world = lab.build(6, **BLIND, rounds=12, options={"neighbours": 2}).start().settle()
    bottom = np.mean([world[i].target for i in range(6)], axis=0)
    apart = [np.linalg.norm(model - bottom) for model in world.models()]
    assert max(apart) < 0.6 * min(np.linalg.norm(world[i].target - bottom) for i in range(6))
    assert all(groups(world, i) == [3] * 12 for i in range(6))


@pytest.mark.parametrize(("near", "rekey"), [(0, 0), (2, 2)])
@settings(max_examples=examples(3))
@given(random=st.randoms(use_true_random=False))
def test_no_order_of_delivery_changes_a_bit(lab, random, near: int, rekey: int) -> None:
    built = {**BLIND, "options": {"neighbours": near, "rekey": rekey}, "rounds": 3}
    straight = lab.build(5, **built).start().settle()
    shuffled = lab.build(5, **built).start().settle(lambda count: random.randrange(count))
    assert [m.tobytes() for m in straight.models()] == [m.tobytes() for m in shuffled.models()]
    assert not any(player.refused for player in shuffled.players.values())
    assert [player.outcome.reason for player in shuffled.players.values()] == ["finished"] * 5


def test_keys_change_when_they_are_to(lab) -> None:
    world = lab.build(3, **BLIND, rounds=5, options={"rekey": 2}).start().settle()
    said = {(m.round, m.blob) for sender, _, m in world.said if sender == "p0" and isinstance(m, messages.Key)}
    assert sorted(round_ for round_, _ in said) == [0, 2, 4]
    assert all(groups(world, i) == [3] * 5 for i in range(3))


# --- who learns what -------------------------------------------------------------------------------------------------


def test_nobody_but_the_proxy_is_told_a_part_and_nobody_but_the_receiver_has_its_key(lab) -> None:
    world = lab.build(4, **BLIND, rounds=3).start().settle()
    assert {type(m) for _, _, m in world.said} == {messages.Key, messages.Encrypted, messages.Summed}
    for sender, to, message in world.said:
        if isinstance(message, messages.Encrypted):
            assert to == proxies(world, message.to)[message.round]
            assert message.key == fingerprint(public_key(world, message.to))
        if isinstance(message, messages.Summed):
            assert sender == proxies(world, world.ids.index(to))[message.round]
    secrets = [player.machine._keys.own(0)._secret for player in world.players.values()]
    assert len(set(secrets)) == 4
    assert not any(secret[-200:] in messages.encode(m) for _, _, m in world.said for secret in secrets)


def test_a_receiver_and_its_proxy_together_read_every_part(lab) -> None:
    world = lab.build(4, **BLIND, rounds=1).start().settle()
    keys, proxy = world[0].machine._keys.own(0), proxies(world, 0)[0]
    scheme = Lanes(BITS, 3, 4.0)
    parts = [(s, m) for s, to, m in world.said if isinstance(m, messages.Encrypted) and to == proxy and m.to == 0]
    assert {sender for sender, _ in parts} == set(world.ids) - {"p0", proxy}
    for sender, part in parts:
        half = world.players[sender].target * lab.rate
        np.testing.assert_allclose(scheme.decrypt(keys, part.blob, lab.dimension, 1), half, atol=STEP)


# --- losses, deaths --------------------------------------------------------------------------------------------------


def test_a_lost_part_leaves_the_others_in_the_sum(lab) -> None:
    world = lab.build(4, **BLIND, rounds=2)
    world.lost = lambda s, to, m: isinstance(m, messages.Encrypted) and (s, m.to, m.round) == (speaker, 0, 0)
    speaker = next(p for p in world.ids if p not in ("p0", proxies(world, 0)[0]))
    world.start().finish()
    half = {p: player.target * lab.rate for p, player in world.players.items()}
    others = sum(half[p] for p in world.ids if p not in ("p0", speaker))
    wanted = half[world.ids[0]] + (others - 2 * half[world.ids[0]]) / 4
    assert groups(world, 0) == [3, 4]
    [first] = [m for _, to, m in world.said if to == "p0" and isinstance(m, messages.Summed) and m.round == 0]
    assert world.ids.index(speaker) not in first.places
    again = lab.build(4, **BLIND, rounds=1)
    again.lost = world.lost
    again.start().finish()
    np.testing.assert_allclose(again[0].outcome.parameters, wanted, atol=2 * STEP)


def test_a_sum_of_one_is_refused_by_the_proxy(lab) -> None:
    world = lab.build(3, **BLIND, rounds=1)
    proxy = proxies(world, 0)[0]
    world.lost = lambda s, to, m: isinstance(m, messages.Encrypted) and m.to == 0
    world.start().finish()
    [told] = [m for _, to, m in world.said if to == "p0" and isinstance(m, messages.Summed)]
    assert (told.places, told.blob) == ((), b"")
    assert world.players[proxy].noted("too-few") == [{"round": 0, "for": "p0", "parts": 1}]
    np.testing.assert_array_equal(world[0].outcome.parameters, world[0].target * lab.rate)
    assert groups(world, 0) == [1]


def test_without_a_sum_a_peer_goes_on_alone_and_the_next_proxy_is_another(lab) -> None:
    world = lab.build(4, **BLIND, rounds=3)
    world.lost = lambda s, to, m: isinstance(m, messages.Summed) and (to, m.round) == ("p0", 0)
    world.start().finish()
    assert groups(world, 0) == [1, 4, 4]
    assert world[0].noted("late") == [{"round": 0, "peers": [proxies(world, 0)[0]]}]
    assert world.now < 10 * 1.6


def test_a_dead_proxy_costs_one_round_of_being_alone(lab) -> None:
    world = lab.build(4, **BLIND, rounds=3).start()
    dead = world.ids.index(PeerId(proxies(world, 0)[0]))
    while any(player.machine._phase.name == "KEYING" for player in world.players.values()):
        world.step()
    world.die(dead)
    world.settle()
    left = [i for i in range(4) if i != dead]
    everybody = {i: [proxies(world, i)[r] == f"p{dead}" for r in range(3)] for i in left}
    assert everybody[0][0]
    for index in left:
        assert groups(world, index) == [1 if gone else 3 for gone in everybody[index]]
        assert world[index].outcome.reason == "finished"
        assert not world[index].refused


def test_all_others_dead_is_training_alone(lab) -> None:
    world = lab.build(3, **BLIND, rounds=3).start()
    world.die(1)
    world.die(2)
    world.settle()
    assert groups(world, 0) == [1, 1, 1]
    assert world[0].outcome.reason == "finished"


def test_a_lost_key_is_asked_for_once_and_everybody_goes_on(lab) -> None:
    world, lost = lab.build(3, **BLIND, rounds=3), []
    world.lost = lambda s, to, m: (
        isinstance(m, messages.Key) and (s, to) == ("p1", "p2") and not lost and not lost.append(m)
    )
    world.start().finish()
    assert [(s, to) for s, to, m in world.said if isinstance(m, messages.Ask)] == [("p2", "p1")]
    assert groups(world, 1)[-1] == 3
    for _ in range(5):
        world[1].machine.handle(Received(PeerId("p2"), messages.encode(messages.Ask(0))), 0.0)
    assert len([m for s, to, m in world.said if (s, to) == ("p1", "p2") and isinstance(m, messages.Key)]) == 2


@settings(max_examples=examples(4))
@given(random=st.randoms(use_true_random=False), peers=st.integers(3, 5))
def test_it_ends_whatever_is_lost(lab, random, peers: int) -> None:
    world = lab.build(peers, **BLIND, rounds=3)
    world.lost = lambda sender, to, message: random.random() < 0.3
    world.start().finish()
    assert [p.outcome.reason for p in world.players.values()] == ["finished"] * peers
    assert np.isfinite(world.models()).all()
    told = [m.places for _, _, m in world.said if isinstance(m, messages.Summed)]
    assert all(len(places) != 1 for places in told)


# --- lies, and what is refused ---------------------------------------------------------------------------------------


def test_messages_that_do_not_fit_are_refused_and_change_nothing(lab, refused: Callable[..., Refusal]) -> None:
    world = lab.build(4, **BLIND, rounds=50).start()
    while world[0].machine._phase.name == "KEYING":
        world.step()
    machine, table, scheme = world[0].machine, Table(4, 5, 0), Lanes(BITS, 3, 4.0)
    receiver, proxy = table.served(0, 0), world.ids[table.proxy(0, 0)]
    public = public_key(world, receiver)
    part = messages.Encrypted(
        0, receiver, fingerprint(public), scheme.encrypt(public, np.ones(lab.dimension, np.float32))
    )
    speaker = next(p for i, p in enumerate(world.ids) if i not in (0, receiver))
    other = next(p for p in world.ids if p not in ("p0", proxy))
    total = messages.Summed(0, (1, 2), part.blob)
    cases = {
        "a stranger's": (PeerId("p9"), part),
        "its own": (PeerId("p0"), part),
        "for somebody else": (speaker, replace_(part, to=(receiver + 1) % 4)),
        "from the receiver itself": (world.ids[receiver], part),
        "too far ahead": (speaker, replace_(part, round=AHEAD)),
        "under another key": (speaker, replace_(part, key=b"k" * 32)),
        "of another dimension": (speaker, replace_(part, blob=scheme.encrypt(public, np.ones(5, np.float32)))),
        "a second key": (speaker, messages.Key(0, public)),
        "a key of no round": (speaker, messages.Key(1, public_key(world, world.ids.index(speaker)))),
        "a sum from another than the proxy": (other, total),
        "a sum with ourselves in it": (proxy, replace_(total, places=(0, 1))),
        "a sum of one": (proxy, replace_(total, places=(1,))),
        "a sum of strangers": (proxy, replace_(total, places=(1, 9))),
        "a sum of no form": (proxy, replace_(total, blob=b"")),
        "an update": (speaker, messages.Update(0, 1, part.blob)),
    }
    for what, (sender, message) in cases.items():
        why = refused(machine, Received(sender, messages.encode(message)))
        assert why in (Refusal.MISMATCH, Refusal.TRUNCATED, Refusal.OVERSIZED), what
    machine.handle(Received(speaker, messages.encode(part)), 0.0)
    assert refused(machine, Received(speaker, messages.encode(part))) == Refusal.MISMATCH


def replace_(message: Any, **changes: Any) -> Any:
    return type(message)(**{name: changes.get(name, getattr(message, name)) for name in message.__struct_fields__})


def test_a_spoilt_sum_is_noted_and_the_model_lives(lab) -> None:
    world = lab.build(3, **BLIND, rounds=2).start()
    proxy = PeerId(proxies(world, 0)[0])
    while not any(to == "p0" and isinstance(m, messages.Summed) for _, to, m in world.said):
        world.step()
    honest = next(m for _, to, m in world.said if to == "p0" and isinstance(m, messages.Summed))
    spoilt = messages.encode(replace_(honest, blob=honest.blob[:-40] + bytes(40)))
    world.pending = [
        (
            to,
            Received(proxy, spoilt)
            if isinstance(what, Received) and to == "p0" and what.body[1:8] == b"\xa6summed"
            else what,
        )
        for to, what in world.pending
    ]
    world.settle()
    assert world[0].noted("unreadable") == [{"round": 0}]
    assert groups(world, 0) == [1, 3]
    assert np.abs(world[0].outcome.parameters).max() < 10


@settings(max_examples=examples(30))
@given(body=st.binary(max_size=80), sender=st.sampled_from(["p1", "p2", "p7"]))
def test_arbitrary_bytes_never_break_a_machine(lab, body: bytes, sender: str) -> None:
    world = lab.build(3, **BLIND).start()
    world.feed(PeerId("p0"), Received(PeerId(sender), body))


def test_nothing_is_said_to_the_dead(lab) -> None:
    world = lab.build(4, **BLIND, rounds=2).start()
    while not any(isinstance(what, Work) and what.name == "train-0" and p == "p0" for p, what in world.pending):
        world.step()
    world.feed(PeerId("p0"), PeersChanged(frozenset({PeerId("p1"), PeerId("p2")})))
    machine, said = world[0].machine, []
    [train] = [what for peer, what in world.pending if peer == "p0" and isinstance(what, Work)]
    for effect in machine.handle(WorkDone(train.name, world[0].work(train.task)), 0.0):
        if isinstance(effect, Work):
            said += machine.handle(WorkDone(effect.name, effect.task.run()), 0.0)
    assert {e.to for e in said if isinstance(e, Send)} <= {"p1", "p2"}


def test_what_does_not_go_together_is_refused_with_what_to_do(lab) -> None:
    made = STRATEGIES.build("blind-proxy")
    with pytest.raises(BadInput, match="topology to complete"):
        made.weights(nx.cycle_graph(5))
    with pytest.raises(BadInput, match="no proxy would ever add"):
        made.weights(nx.complete_graph(2))
    with pytest.raises(BadInput, match="even number"):
        STRATEGIES.build("blind-proxy", {"neighbours": 3}).weights(nx.complete_graph(7))
    with pytest.raises(BadInput, match="leave codec out"):
        lab.build(3, **BLIND, codec=TopK(0.5))
    kit = lab.build(3, **BLIND)[0].machine._kit
    with pytest.raises(BadInput, match="leave aggregator out"):
        made.machine(replace(kit, aggregator=AGGREGATORS.build("median")))
