"""SCAFFOLD: the paper's recursion, its identity, and what becomes of them when clients are absent, late or lying."""

from dataclasses import dataclass

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmesh.core import Refusal
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import CODECS
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.crypto.codecs.quantised import EightBit
from veilmesh.crypto.codecs.topk import TopK
from veilmesh.peer.machine import PeerId, Received, Stop
from veilmesh.swarm import messages
from veilmesh.swarm.guards.clip import Clip
from veilmesh.swarm.guards.noise import Noise

NO_RNG = np.random.Generator(np.random.PCG64(0))
HUB = PeerId("hub")


def blob(values: object = 1.0, dimension: int = 12, codec: object = None) -> bytes:
    return table.encode(codec or Dense(), np.full(dimension, values, np.float32), NO_RNG)


def inside(player, name: str):
    return vars(player.machine)[name]


def variates(world, peers: int) -> tuple[np.ndarray, np.ndarray]:
    """The server's c (d,), and the clients' c_i (N, d)."""
    return inside(world.players[HUB], "_c"), np.array([inside(world[i], "_mine") for i in range(peers)])


def test_it_is_the_papers_algorithm_1(lab) -> None:
    """Karimireddy et al. 2020, algorithm 1, option II, beside the machines and in float64."""
    n, steps, rounds, lr = 4, 5, 7, float(lab.rate)
    world = lab.build(n, strategy="scaffold", rounds=rounds, steps=steps).start()
    targets = np.array([world[i].target for i in range(n)], np.float64)
    x, c, own = np.zeros(lab.dimension), np.zeros(lab.dimension), np.zeros((n, lab.dimension))
    for _ in range(rounds):
        y = np.tile(x, (n, 1))
        for _ in range(steps):
            y = y - lr * ((y - targets) - own + c)
        new = own - c + (x - y) / (steps * lr)
        x, c, own = x + (y - x).mean(0), c + (new - own).mean(0), new
    for found in world.settle().models():
        np.testing.assert_allclose(found, x, atol=1e-5)
    server, clients = variates(world, n)
    np.testing.assert_allclose(server, c, atol=1e-5)
    np.testing.assert_allclose(clients, own, atol=1e-5)


def test_with_one_step_it_ends_where_fedsgd_does(lab) -> None:
    """One step of size lr on every corrected gradient: the corrections cancel in the mean."""
    one = lab.build(3, strategy="scaffold", rounds=8).start().settle()
    other = lab.build(3, strategy="fedsgd", rounds=8).start().settle()
    np.testing.assert_allclose(one.models(), other.models(), atol=1e-6)


@dataclass
class Trained:
    update: np.ndarray
    loss: float
    samples: int


def steep(world, curvatures: list[float], steps: int, lr: float) -> None:
    """Give every client a bowl of its own steepness: local steps then drift towards the steep ones' optima."""

    def descend(target: np.ndarray, curvature: float, task) -> Trained:
        update = np.zeros_like(task.parameters)
        for _ in range(steps):
            gradient = np.float32(curvature) * (task.parameters + update - target)
            update = update - np.float32(lr) * (gradient if task.correction is None else gradient + task.correction)
        return Trained(update, 1.0, 10)

    for i, curvature in enumerate(curvatures):
        player = world[i]
        evaluate = player.work
        player.work = lambda task, player=player, curvature=curvature, evaluate=evaluate: (
            descend(player.target, curvature, task) if hasattr(task, "correction") else evaluate(task)
        )


def test_it_finds_the_optimum_that_fedavg_misses(lab) -> None:
    curvatures, steps = [0.1, 1.0, 2.5], 10
    found = {}
    for strategy in ("fedavg", "scaffold"):
        world = lab.build(3, strategy=strategy, rounds=200, steps=steps)
        steep(world, curvatures, steps, float(lab.rate))
        targets = np.array([world[i].target for i in range(3)])
        found[strategy] = world.start().settle().models()[0]
    optimum = np.average(targets, axis=0, weights=curvatures)
    np.testing.assert_allclose(found["scaffold"], optimum, atol=1e-3)
    assert np.abs(found["fedavg"] - optimum).max() > 0.1


@pytest.mark.parametrize("codec", CODECS.names())
@pytest.mark.parametrize("guards", [(), (Clip(0.3), Noise(0.2))], ids=["plain", "guarded"])
def test_the_clients_variates_add_up_to_the_servers(lab, codec: str, guards: tuple) -> None:
    """sum_i c_i = N c, whatever the codec leaves out and the guards add."""
    n = 4
    world = lab.build(n, strategy="scaffold", codec=CODECS.build(codec), guards=guards, rounds=6, steps=3)
    server, clients = variates(world.start().settle(), n)
    np.testing.assert_allclose(clients.sum(0), n * server, atol=1e-5)
    assert clients.any(axis=1).all()


def test_through_a_lossy_codec_it_still_converges(lab) -> None:
    world = lab.build(3, strategy="scaffold", codec=TopK(0.25), rounds=150, steps=2).start()
    targets = np.array([world[i].target for i in range(3)])
    np.testing.assert_allclose(world.settle().models()[0], targets.mean(0), atol=0.02)
    _, clients = variates(world, 3)
    np.testing.assert_allclose(clients, targets.mean(0) - targets, atol=0.05)  # their gradients at the optimum


def test_what_is_said_of_a_variate_follows_from_the_guarded_update(lab) -> None:
    """The second vector is a function of the first and of what the hub said: it gives nothing more away."""
    steps = 3
    world = lab.build(2, strategy="scaffold", guards=[Noise(1.0)], rounds=4, steps=steps).start().settle()
    stride, servers = np.float32(steps * lab.rate), {}
    for _, _, message in world.said:
        if isinstance(message, messages.ControlledModel):
            servers[message.round] = table.decode(message.control, lab.dimension).values
        else:
            update, change = (table.decode(b, lab.dimension).values for b in (message.blob, message.control))
            np.testing.assert_array_equal(change, -servers[message.round] - update / stride)
    assert len(servers) == 5


# --- absent, late ----------------------------------------------------------------------------------------------------


def test_a_client_that_is_absent_keeps_its_variate(lab) -> None:
    world = lab.build(3, strategy="scaffold", rounds=5, steps=2)
    world.lost = lambda sender, to, message: "p2" in (sender, to) and 1 <= message.round <= 2
    world.start()
    seen = []
    for _ in range(2):  # rounds that end by their deadline
        world.settle()
        seen.append(inside(world[2], "_mine").copy())
        world.ring()
    world.finish()
    assert [data["group"] for data in world.players[HUB].noted("round")] == [3, 2, 2, 3, 3]
    assert len({mine.tobytes() for mine in seen}) == 1
    server, clients = variates(world, 3)
    np.testing.assert_allclose(clients.sum(0), 3 * server, atol=1e-5)
    assert [p.outcome.reason for p in world.players.values()] == ["finished"] * 4


def test_a_variate_moves_only_with_an_update_that_was_taken_in(lab) -> None:
    """An update that comes too late moves nothing, and one whose answer was lost moves as soon as that is known."""
    world = lab.build(3, strategy="scaffold", rounds=6, steps=2)
    lost = {("p2", HUB, 1), (HUB, "p1", 3)}
    world.lost = lambda sender, to, message: (sender, to, message.round) in lost
    world.start().finish()
    assert [data["group"] for data in world.players[HUB].noted("round")] == [3, 2, 3, 2, 3, 3]
    server, clients = variates(world, 3)
    np.testing.assert_allclose(clients.sum(0), 3 * server, atol=1e-5)


@settings(max_examples=examples(15))
@given(random=st.randoms(use_true_random=False), peers=st.integers(1, 4))
def test_no_order_of_delivery_changes_a_bit(lab, random, peers: int) -> None:
    options = {"strategy": "scaffold", "rounds": 3, "codec": EightBit(), "steps": 2}
    straight = lab.build(peers, **options).start().settle()
    shuffled = lab.build(peers, **options).start().settle(lambda count: random.randrange(count))
    assert [m.tobytes() for m in straight.models()] == [m.tobytes() for m in shuffled.models()]
    assert not any(player.refused for player in shuffled.players.values())


# --- lies ------------------------------------------------------------------------------------------------------------


def test_the_hub_refuses_what_does_not_fit(lab, refused) -> None:
    hub = lab.build(2, strategy="scaffold").start().players[HUB].machine
    client = PeerId("p0")
    nan = blob()[:-4] + b"\x00\x00\xc0\x7f"
    cases = {
        "a plain update": (client, messages.Update(0, 5, blob()), Refusal.MISMATCH),
        "a stranger": (PeerId("p9"), messages.ControlledUpdate(0, 5, blob(), blob()), Refusal.MISMATCH),
        "another round": (client, messages.ControlledUpdate(1, 5, blob(), blob()), Refusal.MISMATCH),
        "no variate": (client, messages.ControlledUpdate(0, 5, blob(), b""), Refusal.MALFORMED),
        "another dimension": (client, messages.ControlledUpdate(0, 5, blob(), blob(dimension=3)), Refusal.MISMATCH),
        "a variate of NaN": (client, messages.ControlledUpdate(0, 5, blob(), nan), Refusal.MALFORMED),
        "a variate out of range": (client, messages.ControlledUpdate(0, 5, blob(), blob(1e30)), Refusal.MISMATCH),
        "an update out of range": (client, messages.ControlledUpdate(0, 5, blob(1e30), blob()), Refusal.MISMATCH),
        "no examples": (client, messages.ControlledUpdate(0, 0, blob(), blob()), Refusal.MALFORMED),
        "the hub's own words": (client, messages.ControlledModel(0, blob(), blob(), (-1, -1)), Refusal.MISMATCH),
    }
    for what, (sender, message, why) in cases.items():
        assert refused(hub, Received(sender, messages.encode(message))) == why, what


def test_a_client_refuses_what_does_not_fit(lab, refused) -> None:
    world = lab.build(2, strategy="scaffold").start()
    world.step()
    client = world[0].machine
    cases = {
        "a plain model": (HUB, messages.Model(1, blob()), Refusal.MISMATCH),
        "another client": (PeerId("p1"), messages.ControlledModel(1, blob(), blob(), (0, 0)), Refusal.MISMATCH),
        "the same round": (HUB, messages.ControlledModel(0, blob(), blob(), (-1, -1)), Refusal.MISMATCH),
        "too few clients": (HUB, messages.ControlledModel(1, blob(), blob(), (0,)), Refusal.MALFORMED),
        "too many": (HUB, messages.ControlledModel(1, blob(), blob(), (0, 0, 0)), Refusal.MALFORMED),
        "heard in the future": (HUB, messages.ControlledModel(1, blob(), blob(), (1, 0)), Refusal.MALFORMED),
        "heard before the beginning": (HUB, messages.ControlledModel(1, blob(), blob(), (-2, 0)), Refusal.MALFORMED),
        "a lossy variate": (HUB, messages.ControlledModel(1, blob(), blob(codec=EightBit()), (0, 0)), Refusal.MISMATCH),
        "a variate out of range": (HUB, messages.ControlledModel(1, blob(), blob(1e30), (0, 0)), Refusal.MISMATCH),
    }
    for what, (sender, message, why) in cases.items():
        assert refused(client, Received(sender, messages.encode(message))) == why, what


@pytest.mark.parametrize("strategy", ["fedavg", "gossip", "push-sum", "epidemic", "async-gossip"])
def test_nobody_else_listens_to_controlled_messages(lab, refused, strategy: str) -> None:
    world = lab.build(2, strategy=strategy).start()
    for message in (messages.ControlledUpdate(0, 5, blob(), blob()), messages.ControlledModel(0, blob(), blob(), (0,))):
        for to, sender in ((0, 1), (-1, 0)):
            event = Received(world.ids[sender], messages.encode(message))
            assert refused(world[to].machine, event) == Refusal.MISMATCH


@settings(max_examples=examples(50))
@given(body=st.binary(max_size=80), sender=st.sampled_from(["p0", "p1", "hub", "p7"]), to=st.sampled_from([0, 2]))
def test_arbitrary_bytes_never_break_a_machine(lab, body: bytes, sender: str, to: int) -> None:
    world = lab.build(2, strategy="scaffold").start()
    world.feed(world.ids[to], Received(PeerId(sender), body))


def test_a_server_that_is_driven_astray_says_so(lab) -> None:
    """A client whose every word is in range, and whose sum no longer is."""
    hub = lab.build(1, strategy="scaffold", rounds=9).start().players[HUB].machine
    effects = []
    for round_ in range(2):
        said = messages.ControlledUpdate(round_, 5, blob(), blob(9e5))
        effects = hub.handle(Received(PeerId("p0"), messages.encode(said)), 0.0)
    [stop] = [effect for effect in effects if isinstance(effect, Stop)]
    assert "diverged" in stop.result.reason
