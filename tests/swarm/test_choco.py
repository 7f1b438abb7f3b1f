"""CHOCO-SGD: D-PSGD where nothing is left out, and convergence where nearly everything is."""

import numpy as np
import pytest

from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import CODECS, Codec
from veilmesh.peer.machine import Keep
from veilmesh.swarm.topology import TOPOLOGIES, lazy, metropolis_hastings


@pytest.mark.parametrize("topology", ["complete", "ring"])
def test_with_the_identity_codec_and_step_1_it_is_d_psgd_to_the_bit(lab, topology: str) -> None:
    rows = metropolis_hastings(TOPOLOGIES.build(topology).graph(6, 0))
    choco = lab.build(6, strategy="choco", options={"step": 1.0}, rows=rows, rounds=12).start().settle()
    gossip = lab.build(6, strategy="gossip", rows=rows, rounds=12).start().settle()
    assert [m.tobytes() for m in choco.models()] == [m.tobytes() for m in gossip.models()]
    assert choco.said == gossip.said


@pytest.mark.parametrize(
    ("codec", "options", "step"),
    [
        ("top-k", {"keep": 0.1}, 0.2),
        pytest.param("top-k", {"keep": 0.01}, 0.02, marks=pytest.mark.slow),
        pytest.param("rand-k", {"keep": 0.1}, 0.05, marks=pytest.mark.slow),
        pytest.param("sign", {}, 0.1, marks=pytest.mark.slow),
        pytest.param("2-bit", {}, 0.2, marks=pytest.mark.slow),
    ],
)
def test_without_training_lossy_peers_still_agree_on_the_average(lab, codec: str, options: object, step: float) -> None:
    """They train one round, to different models, and then only talk."""
    rows = lazy(metropolis_hastings(TOPOLOGIES.build("ring").graph(5, 0)), step)
    world = lab.build(
        5, strategy="choco", options={"step": step}, rows=rows, rounds=1500, codec=CODECS.build(codec, options),
        dimension=100,
    )  # fmt: skip
    for player in world.players.values():
        work, trained = player.work, []

        def once(task: object, work=work, trained=trained) -> object:
            done = work(task)
            if hasattr(done, "update") and trained:
                done = type(done)(np.zeros_like(done.update), 0.0, done.samples)
            trained.append(done)
            return done

        player.work = once
    first = np.array([p.target * lab.rate for p in world.players.values()])
    models = np.array(world.start().settle().models())
    apart, begun = np.abs(models - models.mean(0)).max(), np.abs(first - first.mean(0)).max()
    assert apart < 0.05 * begun
    np.testing.assert_allclose(models.mean(0), first.mean(0), atol=1e-4)


def test_a_lossless_codec_and_a_smaller_step_still_train_at_the_whole_mix(lab) -> None:
    """The copies are the models then: the mix is that of D-PSGD, and all are alike on the complete graph."""
    rows = lazy(metropolis_hastings(TOPOLOGIES.build("complete").graph(4, 0)), 0.3)
    models = lab.build(4, strategy="choco", options={"step": 0.3}, rows=rows, rounds=3).start().settle().models()
    gossip = lab.build(4, strategy="gossip", rounds=3).start().settle().models()
    np.testing.assert_allclose(models, np.broadcast_to(gossip[0], (4, lab.dimension)), atol=1e-5)


@pytest.mark.parametrize("step", [0.02, 0.2])
@pytest.mark.parametrize(("codec", "options"), [("top-k", {"keep": 0.1}), ("sign", {})])
def test_where_everybody_hears_everybody_it_is_sgd_with_error_feedback(lab, codec, options, step) -> None:
    """Against numpy: one model z, u_i taken there, everybody's memory x_i - xhat_i, and z the mean of the copies."""
    peers, d, rounds = 5, 40, 30
    made: Codec = CODECS.build(codec, options)
    world = lab.build(
        peers, strategy="choco", options={"step": step}, rounds=rounds, codec=made, dimension=d,
    ).start().settle()  # fmt: skip
    targets = np.array([p.target for p in world.players.values()], np.float64)
    own, copies, z = np.zeros((peers, d)), np.zeros((peers, d)), np.zeros(d)
    for _ in range(rounds):
        half = own + (targets - z) * float(lab.rate)
        for i in range(peers):
            blob = table.encode(made, (half[i] - copies[i]).astype(np.float32), np.random.default_rng(0))
            copies[i] += table.decode(blob, d).values
        own = half + step * (copies.mean(0) - copies)
        z = copies.mean(0)
    np.testing.assert_allclose(world.models(), np.broadcast_to(z, (peers, d)), atol=1e-3)


def test_at_the_mix_peers_that_pull_apart_come_to_the_mean_and_at_their_own_models_they_do_not(lab) -> None:
    rows = lazy(metropolis_hastings(TOPOLOGIES.build("complete").graph(6, 0)), 0.02)

    def furthest(at: str) -> float:
        codec = CODECS.build("top-k", {"keep": 0.2})
        world = lab.build(
            6, strategy="choco", options={"step": 0.02, "at": at}, rows=rows, rounds=100, codec=codec, dimension=100,
        ).start().settle()  # fmt: skip
        mean = np.mean([p.target for p in world.players.values()], axis=0)
        return float(np.linalg.norm(np.array(world.models()) - mean, axis=1).max() / np.linalg.norm(mean))

    assert furthest("mix") < 0.5 * furthest("own")


def test_in_the_papers_form_it_is_the_machine_of_gossip_at_the_same_step(lab) -> None:
    rows = lazy(metropolis_hastings(TOPOLOGIES.build("ring").graph(5, 0)), 0.3)
    codec = CODECS.build("top-k", {"keep": 0.25})
    choco = lab.build(5, strategy="choco", options={"step": 0.3, "at": "own"}, rows=rows, rounds=9, codec=codec)
    gossip = lab.build(5, strategy="gossip", options={"step": 0.3}, rows=rows, rounds=9, codec=codec)
    assert choco.start().settle().said == gossip.start().settle().said
    assert [m.tobytes() for m in choco.models()] == [m.tobytes() for m in gossip.models()]


def test_what_it_says_is_the_same_size_wherever_it_trains(lab) -> None:
    codec = CODECS.build("sign")
    sizes = []
    for at in ("mix", "own"):
        world = lab.build(4, strategy="choco", options={"at": at}, rounds=5, codec=codec, dimension=512).start()
        sizes.append([(sender, to, message.round) for sender, to, message in world.settle().said])
    assert sorted(sizes[0]) == sorted(sizes[1])


def test_a_checkpoint_holds_the_own_model_beside_the_one_that_is_trained_from(lab) -> None:
    world = lab.build(4, strategy="choco", codec=CODECS.build("top-k", {"keep": 0.25}), rounds=6).start()
    for _ in range(30):
        world.step()
    machine = world[0].machine
    resumed = lab.build(4, strategy="choco", codec=CODECS.build("top-k", {"keep": 0.25}), rounds=6)[0].machine
    state = machine._state()
    assert not np.array_equal(state["x"], state["own"])
    resumed.resume(Keep(machine._round, state))
    assert lab.snapshot(resumed._state()) == lab.snapshot(state)
