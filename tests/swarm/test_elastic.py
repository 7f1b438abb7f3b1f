"""Gossip in a mesh that lives: newcomers, deaths, returns, partitions, and those who lie about any of it."""

import pickle
import random

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from living import PATIENCE, D, Living

from veilmesh.core import Refusal, RemoteError
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import CODECS, Codec
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.crypto.codecs.quantised import EightBit
from veilmesh.crypto.codecs.topk import TopK
from veilmesh.peer.machine import PeerId
from veilmesh.swarm import messages
from veilmesh.swarm.aggregators.base import AGGREGATORS
from veilmesh.swarm.strategies.copies import AHEAD, VOUCHED
from veilmesh.swarm.strategies.joining import ATTEMPTS

CLOSE = 1e-5
FAST, SLOW = [f"p{i}" for i in range(4)], [f"p{i}" for i in range(4, 8)]


def peers(count: int) -> list[str]:
    return [f"p{i}" for i in range(count)]


def blob(value: float = 1.0) -> bytes:
    return table.encode(Dense(), np.full(D, value, np.float32), np.random.default_rng(0))


def no_one_was_refused(mesh: Living) -> None:
    assert [life.refused for life in mesh.lives.values() if life.refused] == []


# --- founders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("strategy", "step", "codec"), [("gossip", 1.0, "dense"), ("choco", 0.2, "top-k")])
def test_without_a_change_it_is_the_fixed_mesh_to_the_bit(strategy: str, step: float, codec: str) -> None:
    options = {"rounds": 30, "strategy": strategy, "step": step, "codec": CODECS.build(codec)}
    fixed = Living(peers(6), elastic=False, **options).finish()
    elastic = Living(peers(6), **options).finish()
    assert [life.x.tobytes() for life in elastic.lives.values()] == [life.x.tobytes() for life in fixed.lives.values()]
    assert elastic.said == fixed.said


# --- coming and going ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("notice", [0.002, 0.1], ids=["seen before it speaks", "speaks before it is seen"])
@pytest.mark.parametrize("topology", ["complete", "ring"])
def test_a_newcomer_finds_the_model_and_takes_part(topology: str, notice: float) -> None:
    mesh = Living(peers(6), topology=topology, notice=notice).run(2.0)
    round_ = mesh["p0"].round
    new = mesh.join("p9")
    mesh.run(1.0)
    [joined] = new.noted("joined")
    assert joined["verified"] is True
    assert len(joined["from"]) == (6 if topology == "complete" else 2)
    assert round_ <= joined["round"] <= round_ + 8
    assert mesh.spread() <= 1
    assert mesh.distance() < CLOSE or topology == "ring"  # where models stay apart as far as data and graph have it
    group = 7 if topology == "complete" else 3
    assert all(life.noted("round")[-1]["group"] == group for life in mesh.lives.values())
    assert not any(life.noted("late") for life in mesh.lives.values())
    no_one_was_refused(mesh)
    together = Living([*peers(6), "p9"], topology=topology).run(3.0)
    for name in mesh.run(2.0).lives:
        np.testing.assert_allclose(mesh[name].x, together[name].x, atol=1e-4)


def test_the_model_follows_the_newcomers_data() -> None:
    mesh = Living(peers(3)).run(3.0)
    mesh.join("p9")
    mesh.run(3.0)
    mean = np.mean([life.target for life in mesh.lives.values()], axis=0)
    np.testing.assert_allclose(mesh["p0"].x, mesh["p9"].x, atol=CLOSE)
    # Everybody mixes after a step: the fixed point is the mean of all the bowls.
    np.testing.assert_allclose(mesh["p9"].x, mean, atol=1e-3)


@pytest.mark.parametrize("codec", [TopK(keep=0.5), EightBit()], ids=lambda c: type(c).__name__)
def test_a_lossy_mesh_takes_newcomers_in_too(codec: Codec) -> None:
    mesh = Living(peers(5), strategy="choco", step=0.2, codec=codec).run(10.0)
    new = mesh.join("p9")
    mesh.run(10.0)
    assert new.noted("joined")[0]["verified"] is True
    assert mesh.spread() <= 1
    for a in mesh.lives.values():
        for p, copy in vars(a.machine)["_held"].copies.items():
            held, theirs = vars(a.machine)["_held"], vars(mesh[p].machine)["_held"]
            if held.position(p) == theirs.said:
                assert copy.tobytes() == theirs.copies[p].tobytes()
    no_one_was_refused(mesh)


def test_one_that_leaves_blocks_nobody_and_is_forgotten() -> None:
    mesh = Living(peers(5)).run(1.0)
    mesh.kill("p2")
    mesh.run(1.0)
    assert not any(life.noted("late") for life in mesh.lives.values())
    assert mesh["p0"].noted("round")[-1]["group"] == 4
    gone = PeerId("p2")
    for life in mesh.lives.values():
        held = vars(life.machine)["_held"]
        assert not any(gone in part for part in (held.copies, held.next, held.inbox, held.digests))
    mesh.finish()


@pytest.mark.parametrize("notice", [0.002, 0.1], ids=["noticed", "before anybody noticed"])
def test_one_that_comes_back_with_nothing_but_its_name(notice: float) -> None:
    mesh = Living(peers(5), notice=notice).run(1.0)
    mesh.kill("p2")
    mesh.run(0.03)
    back = mesh.join("p2")
    mesh.run(1.0)
    assert back.noted("joined")[0]["verified"] is True
    assert not any(life.noted("late") for life in mesh.lives.values())
    assert mesh.spread() <= 1
    assert mesh.distance() < CLOSE
    assert {life.noted("round")[-1]["group"] for life in mesh.lives.values()} == {5}
    no_one_was_refused(mesh)


def test_two_newcomers_do_not_wait_for_each_other() -> None:
    mesh = Living(peers(3)).run(1.0)
    for name in ("p8", "p9"):
        mesh.join(name)
    mesh.run(0.5)
    assert mesh["p8"].noted("joined")
    assert mesh["p9"].noted("joined")
    assert mesh.distance() < CLOSE


def test_one_who_comes_at_the_very_end_ends_with_the_others() -> None:
    mesh = Living(peers(3), rounds=40).run(0.97)
    assert mesh["p0"].round == 38
    mesh.join("p9")
    mesh.finish()
    assert {life.outcome.reason for life in mesh.lives.values()} == {"finished"}


@pytest.mark.slow
def test_churn_without_a_stall_in_flat_memory() -> None:
    """Sixteen peers, of whom every fifth round one dies and another comes."""
    mesh, sizes = Living(peers(16), rounds=100_000).run(1.0), []
    for turn in range(40):
        before = mesh["p15"].round
        mesh.kill(next(p for p in mesh.lives if p != "p15"))
        mesh.join(f"p{turn + 16}")
        mesh.run(0.125)
        assert mesh["p15"].round >= before + 3
        sizes.append(len(pickle.dumps(vars(vars(mesh["p15"].machine)["_held"]))))
    mesh.run(0.5)
    assert len(mesh.lives) == 16
    assert not any(life.noted("late") for life in mesh.lives.values())
    assert mesh.spread() <= 1
    assert mesh.distance() < CLOSE
    assert max(sizes[20:]) <= 1.1 * max(sizes[:20])
    kept = vars(mesh["p15"].machine)
    assert len(kept["_held"].copies) == 16
    assert all(len(found) <= VOUCHED for found in kept["_held"].digests.values())
    assert len(vars(kept["_answers"])["_given"]) <= 16
    no_one_was_refused(mesh)


# --- losing sight of each other ------------------------------------------------------------------------------------


def halves(topology: str, elastic: bool) -> Living:
    pace = {p: 0.02 if p in FAST else 0.05 for p in FAST + SLOW}
    return Living(FAST + SLOW, topology=topology, elastic=elastic, pace=pace, notice=0.05, rounds=5000).run(3.0)


@pytest.mark.parametrize(("topology", "elastic"), [("complete", True), ("complete", False), ("ring", True)])
def test_halves_that_went_on_at_different_speeds_agree_again_in_a_few_rounds(topology: str, elastic: bool) -> None:
    mesh = halves(topology, elastic)
    usual = mesh.distance()
    mesh.cut(FAST, SLOW)
    mesh.run(30.0)
    apart = mesh.distance()
    assert mesh.spread() > 10 * AHEAD
    assert apart > 1.2 * usual
    first = mesh["p0"].round
    mesh.heal()
    mesh.run(PATIENCE / 2)
    assert mesh.spread() <= 2
    assert mesh["p0"].round >= first + 10
    assert mesh.distance() < max(CLOSE, 1.05 * usual)
    for name in SLOW:
        [jump] = mesh[name].noted("caught-up")
        assert jump["to"] - jump["from"] > AHEAD
    assert not any(mesh[p].noted("caught-up") for p in FAST)
    if elastic:  # else what the slow said last comes so late that it is of no use any more
        no_one_was_refused(mesh)


@pytest.mark.parametrize("elastic", [True, False])
def test_one_that_stood_still_catches_up(elastic: bool) -> None:
    """Nobody noticed it was away: what is said to it is lost, and so is what it says."""
    mesh = Living(peers(4), elastic=elastic, rounds=5000).run(1.0)
    mesh["p3"].pace = 20 * PATIENCE
    mesh.run(20.5 * PATIENCE)
    mesh["p3"].pace = 0.02
    mesh.run(25 * PATIENCE)
    assert mesh["p3"].noted("caught-up")
    assert mesh.spread() <= 1
    assert mesh.distance() < CLOSE


@pytest.mark.parametrize("topology", ["complete", "ring"])
def test_one_that_ran_ahead_alone_goes_back_to_the_others(topology: str) -> None:
    """To them it is what a liar would be: none of them comes after it."""
    mesh = halves(topology, True)
    usual = mesh.distance()
    mesh.cut(["p0"], [*FAST[1:], *SLOW])
    mesh.run(20.0)
    assert mesh.spread() > 10 * AHEAD
    mesh.heal()
    mesh.run(2 * PATIENCE)
    [back] = mesh["p0"].noted("fell-back")
    assert back["from"] - back["to"] > 10 * AHEAD
    assert mesh.spread() <= 2
    assert mesh.distance() < max(CLOSE, 1.05 * usual)


def test_one_ten_times_slower_is_waited_for_again_once_it_has_caught_up() -> None:
    mesh = Living(peers(2), pace={"p0": 0.2, "p1": 0.02}).run(2.0)
    mesh.cut(["p0"], ["p1"])
    mesh.run(3.0)
    mesh.heal()
    mesh.run(3.0)
    assert mesh.spread() <= 1
    assert mesh["p1"].noted("round")[-1]["group"] == 2


@pytest.mark.parametrize("seed", range(4))
def test_whatever_befalls_it_a_mesh_comes_together_again(seed: int) -> None:
    """Joins, deaths, returns, cuts and losses, as they come; then peace."""
    draw = random.Random(seed)
    mesh = Living(
        peers(draw.randint(3, 7)), rounds=100_000, topology=draw.choice(["complete", "ring"]),
        notice=draw.choice([0.001, 0.05, 0.3]), pace={f"p{i}": draw.choice([0.02, 0.05, 0.1]) for i in range(40)},
    )  # fmt: skip
    mesh.lost = lambda sender, to, message: draw.random() < 0.02
    for turn in range(15):
        mesh.run(draw.choice([0.01, 0.1, 0.5, 1.0]))
        names = list(mesh.lives)
        what = draw.choice(["join", "return", "die", "cut", "heal"])
        if what == "join" and len(names) < 10:
            mesh.join(f"p{10 + turn}")
        elif what in ("return", "die") and len(names) > 3:
            mesh.kill(victim := draw.choice(names))
            _ = what == "return" and mesh.run(0.01).join(victim)
        elif what == "cut":
            draw.shuffle(names)
            mesh.cut(names[: len(names) // 2], names[len(names) // 2 :])
        else:
            mesh.heal()
    mesh.lost = lambda sender, to, message: False
    mesh.heal()
    mesh.run(10.0)
    mesh.lives = {p: life for p, life in mesh.lives.items() if life.outcome is None}
    before = {p: len(life.noted("late")) for p, life in mesh.lives.items()}
    mesh.run(2.0)
    assert before == {p: len(life.noted("late")) for p, life in mesh.lives.items()}
    assert mesh.spread() <= len(mesh.lives) // 2
    for life in mesh.lives.values():
        held = vars(life.machine)["_held"]
        assert life.noted("round")[-1]["group"] == len(held.copies) > 1
        for peer in held.next:
            theirs = vars(mesh[peer].machine)["_held"].digests[peer]
            common = held.digests[peer].keys() & theirs.keys()
            assert common
            assert all(held.digests[peer][r] == theirs[r] for r in common)


@pytest.mark.parametrize("elastic", [True, False])
def test_no_single_liar_pushes_anybody_beyond_the_honest(elastic: bool) -> None:
    mesh = Living(peers(4), elastic=elastic, rounds=400).run(0.5)
    mesh["p3"].tamper = lambda to, message: None
    mesh.run(0.1)
    for claim in (60, 200, 399):
        for to in ("p0", "p1", "p2"):
            mesh.say(PeerId("p3"), PeerId(to), messages.Update(claim, 10, blob()))
            mesh.say(PeerId("p3"), PeerId(to), messages.Copy(claim, blob()))
        mesh.run(0.5)
    honest = [mesh[p] for p in peers(3)]
    assert max(life.round for life in honest) < 150
    assert not any(life.noted("caught-up") for life in honest)
    mesh.run(3 * PATIENCE)
    assert max(life.round for life in honest) - min(life.round for life in honest) <= 1
    beyond = mesh["p0"].refused
    mesh.say(PeerId("p3"), PeerId("p0"), messages.Copy(400, blob()))
    mesh.run(0.1)
    assert len(mesh["p0"].refused) == len(beyond)
    assert mesh["p0"].refused


def test_no_single_liar_makes_a_newcomer_enter_beyond_the_honest() -> None:
    """It tells everybody the same, so everybody holds it."""
    mesh = Living(peers(4), rounds=400).run(0.5)
    for to in (*peers(3), "p9"):
        if to == "p9":
            mesh["p3"].tamper = lambda to, message: None
            mesh.join("p9")
        mesh.say(PeerId("p3"), PeerId(to), messages.Copy(399, blob()))
    mesh.run(PATIENCE)
    [joined] = mesh["p9"].noted("joined")
    assert joined["from"] == peers(3)
    assert joined["round"] <= mesh["p0"].round < 150


# --- who is believed by a newcomer ---------------------------------------------------------------------------------


def lie_about_models(to: PeerId, message: messages.Message) -> messages.Message:
    return replace_blob(message) if isinstance(message, messages.Copy) else message


def replace_blob(message: messages.Copy) -> messages.Copy:
    return messages.Copy(message.round, blob(77.0))


def lie_about_others(to: PeerId, message: messages.Message) -> messages.Message:
    if isinstance(message, messages.Vouch) and message.digest:
        return messages.Vouch(message.round, message.peer, bytes(32))
    return message


def test_a_copy_that_the_others_know_otherwise_is_refused() -> None:
    mesh = Living(peers(4)).run(1.0)
    mesh["p2"].tamper = lie_about_models
    new = mesh.join("p9")
    mesh.run(0.3)
    [joined] = new.noted("joined")
    assert new.noted("copy-refused") == [{"from": "p2"}]
    assert list(joined["from"]) == ["p0", "p1", "p3"]


def test_a_single_false_voucher_keeps_nobody_out() -> None:
    mesh = Living(peers(4)).run(1.0)
    mesh["p2"].tamper = lie_about_others
    new = mesh.join("p9")
    mesh.run(0.3)
    assert new.noted("copy-refused") == []
    assert list(new.noted("joined")[0]["from"]) == peers(4)
    assert mesh.distance() < CLOSE


def test_a_voucher_that_does_not_answer_costs_time_only() -> None:
    mesh = Living(peers(4)).run(1.0)
    mesh["p2"].tamper = lambda to, message: None if isinstance(message, messages.Vouch | messages.Copy) else message
    new = mesh.join("p9")
    mesh.run(2 * PATIENCE)
    assert list(new.noted("joined")[0]["from"]) == ["p0", "p1", "p3"]
    assert mesh.spread() <= 1


def test_without_a_model_that_another_vouches_for_it_gives_up() -> None:
    mesh = Living(peers(2)).run(1.0)
    for name in peers(2):
        mesh[name].tamper = lie_about_models
    new = mesh.join("p9")
    mesh.run(ATTEMPTS * PATIENCE)
    assert new.outcome.reason == "no neighbour gave a model that another vouched for"
    assert {data["from"] for data in new.noted("copy-refused")} == {"p0", "p1"}


def test_where_there_is_nobody_it_gives_up() -> None:
    mesh = Living(["p0"]).run(1.0)
    mesh.kill("p0")
    mesh.run(1.0)
    assert mesh.join("p9").outcome is None
    assert mesh.run(ATTEMPTS * PATIENCE)["p9"].outcome.reason.startswith("no neighbour gave")


def test_a_single_member_is_believed_and_that_is_noted() -> None:
    mesh = Living(["p0"]).run(1.0)
    new = mesh.join("p9")
    mesh.run(2.0)
    assert new.noted("joined")[0]["verified"] is False
    assert mesh.distance() < CLOSE


def test_where_the_aggregator_is_robust_a_newcomer_begins_with_the_median() -> None:
    """A liar that says the same to all is vouched for by all."""
    mesh = Living(peers(6), aggregator=AGGREGATORS.build("median")).run(1.0)
    liar = vars(mesh["p5"].machine)
    mesh["p5"].target = np.full(D, 1e4, np.float32)
    mesh.run(0.5)
    assert np.abs(liar["_held"].copies["p5"]).max() > 1000
    new = mesh.join("p9")
    mesh.run(0.3)
    assert "p5" in new.noted("joined")[0]["from"]
    assert np.abs(new.x).max() < 10


# --- hostile sequences ---------------------------------------------------------------------------------------------

ROUNDS, PACE = 25, dict.fromkeys(["p0", "p1", "liar", "new"], PATIENCE / 20)
PLACES = st.one_of(st.integers(0, ROUNDS + 2), st.sampled_from([ROUNDS - 1, ROUNDS, 2**31 - 1]))
BLOBS = st.one_of(st.sampled_from([blob(0.0), blob(1.0), blob(-50.0), blob()[:-1]]), st.binary(max_size=20))
NAMES = st.sampled_from(["p0", "p1", "liar", "new", "nobody", ""])
HOSTILE = st.one_of(
    st.builds(messages.Update, PLACES, st.integers(1, 9), BLOBS),
    st.builds(messages.Copy, PLACES, BLOBS),
    st.builds(messages.Ask, PLACES),
    st.builds(messages.Ask, st.just(0)),
    st.builds(messages.Attest, PLACES, NAMES),
    st.builds(messages.Vouch, PLACES, NAMES, st.sampled_from([b"", bytes(32)])),
    st.builds(messages.Model, PLACES, BLOBS),
)  # fmt: skip


@settings(max_examples=examples(30))
@given(
    attack=st.lists(st.tuples(st.sampled_from([0.0, 0.001, 0.03, 0.2]), st.sampled_from(["p0", "new"]), HOSTILE)),
    elastic=st.booleans(),
)
def test_whatever_one_neighbour_says_the_honest_go_on(lab, attack: list, elastic: bool) -> None:
    mesh = Living(["p0", "p1", "liar"], rounds=ROUNDS, elastic=elastic, pace=PACE, snapshot=lab.snapshot)
    mesh["liar"].tamper = lambda to, message: None
    mesh.run(0.05)
    honest = ["p0", "p1"] + (["new"] if elastic else [])
    if elastic:
        mesh.join("new")
    for pause, victim, message in attack:
        if victim in honest:
            mesh.run(pause).say(PeerId("liar"), PeerId(victim), message)
    mesh.finish(within=(ROUNDS + ATTEMPTS) * 2 * PATIENCE)
    assert [(mesh[p].outcome.reason, mesh[p].outcome.rounds) for p in honest] == [("finished", ROUNDS)] * len(honest)
    for name in honest:
        kept = vars(mesh[name].machine)
        assert all(len(inbox) <= 3 * AHEAD for inbox in kept["_held"].inbox.values())
        assert all(len(found) <= VOUCHED for found in kept["_held"].digests.values())
        assert all(len(open_) <= 4 for open_ in vars(kept["_answers"])["_attests"].values())


# --- messages ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**31 - 1), st.text(max_size=128), st.sampled_from([b"", bytes(range(32))]))
def test_what_is_vouched_for_is_what_is_read(round_: int, name: str, digest: bytes) -> None:
    for message in (messages.Attest(round_, name), messages.Vouch(round_, name, digest)):
        assert messages.decode(messages.encode(message)) == message


@pytest.mark.parametrize(
    "message",
    [
        messages.Attest(-1, "p0"),
        messages.Attest(0, "p" * 129),
        messages.Vouch(0, "p" * 129, b""),
        messages.Vouch(0, "p0", bytes(31)),
        messages.Vouch(2**31, "p0", bytes(32)),
    ],
)
def test_a_question_out_of_range_is_refused(message: messages.Message) -> None:
    with pytest.raises(RemoteError) as caught:
        messages.decode(messages.encode(message))
    assert caught.value.refusal is Refusal.MALFORMED
