"""What every protocol of split mode promises, and what becomes of one among liars: a refusal, and nothing else."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from split_runs import DEEP, in_hand, played, prepared

from veilmesh.attacks.seen.smashed import observe_smashed
from veilmesh.core import Refusal, RemoteError
from veilmesh.peer.machine import Note, PeerId, Received, Stop
from veilmesh.peer.outcome import Outcome
from veilmesh.sim.network import Player, VirtualNetwork, _Heard
from veilmesh.sim.observation import observation
from veilmesh.split import messages
from veilmesh.split.strategies.base import SPLITS

torch.set_num_threads(1)

SMALL: dict[str, Any] = {"rounds": 2, "evaluate_every": 1, "timing__round": 1.0, "training__local_steps": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "vanilla": {},
    "vanilla, held": {"strategy__labels": "held"},
    "u-shaped": {"strategy": "u-shaped", "split__micro_batches": 2},
    "chain": {"strategy": {"name": "chain", "standbys": 1}, "model": DEEP, "split__micro_batches": 3},
    "chain, own labels": {"strategy": {"name": "chain", "labels": "own"}, "model": DEEP},
    "round-robin": {"strategy": "round-robin", "peers": 3},
    "splitfed 1": {"strategy": "splitfed", "peers": 3},
    "splitfed 2": {"strategy": {"name": "splitfed", "version": 2}, "peers": 3},
}
NUMBERS = (0, 1, 2, 3, 7, 2**20, 2**31 - 1, -1)
BLOBS = (b"", b"\x00", b"\xff" * 9, b"\x01" + b"\x00" * 40)


class Liars(VirtualNetwork):
    """Every message may be followed, or preceded, by a lie of its sender that is almost the same."""

    rng = np.random.default_rng(0)
    often = 0.3

    def _carry(self, peer: PeerId, player: Player, to: PeerId, body: bytes, now: float) -> None:
        if self.rng.random() < self.often:
            super()._carry(peer, player, to, lie(body, self.rng), now)
        super()._carry(peer, player, to, body, now)
        if self.rng.random() < self.often:
            super()._carry(peer, player, to, lie(body, self.rng), now)

    def _perform(self, peer: PeerId, player: Player, effect: Any, now: float) -> None:
        super()._perform(peer, player, effect, now)
        if isinstance(effect, Stop):
            self._tell(player, _Heard(peer, False), now + self._grace)


def lie(body: bytes, rng: np.random.Generator) -> bytes:
    """A message with some of its values changed, or of another kind, or bytes of no message."""
    parts = list(msgspec.msgpack.decode(body))
    for _ in range(rng.integers(1, 3)):
        place = int(rng.integers(0, len(parts)))
        value = parts[place]
        if isinstance(value, bytes):
            cut = int(rng.integers(0, len(value) + 1))
            values = np.frombuffer(value[:1] + value[1:][::-1], np.uint8).tobytes()
            parts[place] = [value[:cut], values, *BLOBS][int(rng.integers(0, 2 + len(BLOBS)))]
        elif isinstance(value, float):
            parts[place] = float(rng.choice([1e30, -1.0, 0.0]))
        elif isinstance(value, str):
            kinds = [m for m in ("activations", "gradients", "ask", "answer", "handover", "taken", "rewire", "done")]
            parts[place] = kinds[int(rng.integers(0, len(kinds)))]
        else:
            parts[place] = int(rng.choice([value + 1, abs(value - 1), *NUMBERS]))
    return msgspec.msgpack.encode(parts)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", SETTINGS)
def test_lies_are_refused_and_everybody_ends(name: str, seed: int) -> None:
    """A liar can spoil a run it takes part in, and end it; but only as the protocol says, never by a surprise."""
    cast = prepared(**SETTINGS[name], **SMALL)
    failed: list[Note] = []
    liars = type("Seeded", (Liars,), {"rng": np.random.default_rng(seed)})
    network = in_hand(
        cast, liars, grace=0.1, silence=5.0,
        note=lambda peer, note, now: failed.append(note) if note.kind == "failed" else None,
    )  # fmt: skip
    network.run(2000.0)  # LocalError: somebody had not stopped
    assert not [note for note in failed if "diverged" not in str(note.data["reason"])]
    assert all(isinstance(player.result, Outcome) for player in network._players.values())
    assert sum(sum(player.refusals.values()) for player in network._players.values())


def test_every_protocol_is_here() -> None:
    known = {name for name in SPLITS.names() if not name.startswith("encrypted")}  # those have tests of their own
    assert {name.partition(",")[0].split()[0] for name in SETTINGS} == known


@pytest.mark.parametrize("name", SETTINGS)
def test_every_member_leaves_the_parameters_of_its_stages_behind(name: str) -> None:
    cast = prepared(**SETTINGS[name], **SMALL)
    network = in_hand(cast)
    network.run(100.0)
    sizes, plan = cast.sizes, cast.plan  # type: ignore[attr-defined]  # it is a SplitCast
    for index, player in enumerate(network._players.values()):
        assert isinstance(player.result, Outcome)
        assert player.result.reason == "finished"
        assert player.result.parameters.shape == (sum(sizes[stage] for stage in plan.played(index)),)
        assert not player.refusals


def refusal(machine: Any, sender: str, message: messages.Message) -> Refusal:
    with pytest.raises(RemoteError) as caught:
        machine.handle(Received(PeerId(sender), messages.encode(message)), 0.0)
    return caught.value.refusal


def activations(**changes: Any) -> messages.Activations:
    parts = {"head": 0, "stage": 1, "step": 0, "micro": 0, "of": 1, "rows": 4, "total": 4, "blob": b"", "labels": b"",
             "which": b"", **changes}  # fmt: skip
    return messages.Activations(**parts)


@pytest.mark.parametrize(
    ("name", "me", "sender", "message"),
    [
        ("chain", 1, "tail", activations()),  # from above
        ("chain", 1, "peer:0", activations(stage=2)),  # for another
        ("chain", 1, "peer:0", activations(head=1)),
        ("chain", 1, "peer:0", activations(stage=0)),
        ("chain", 1, "peer:0", activations(of=1, step=0)),  # three micro-batches are agreed
        ("chain", 1, "peer:0", activations(of=3, step=4)),  # there are four steps
        ("chain", 1, "middle:2", messages.Gradients(0, 1, 0, 0, b"", 0.0)),  # of what was never said
        ("chain", 0, "middle:1", messages.Gradients(0, 1, 0, 0, b"", 0.0)),
        ("chain", 0, "middle:1", messages.Handover(0, 1, b"")),
        ("chain", 1, "tail", messages.Rewire(0, 2, 4)),  # only the data owner says who plays
        ("chain", 1, "peer:0", messages.Rewire(0, 0, 4)),  # and not its own part
        ("chain", 1, "peer:0", messages.Rewire(0, 2, 3)),  # nor to one that does not stand by
        ("chain", 1, "peer:0", messages.Rewire(0, 2, 99)),
        ("chain", 4, "peer:0", messages.Replica(0, 1, 0, b"", b"", b"")),  # whose it is not
        ("chain", 1, "peer:0", messages.Replica(0, 0, 0, b"", b"", b"")),  # to one that does not stand by
        ("chain", 1, "tail", messages.Done(0, 2)),
        ("chain", 0, "tail", messages.Diverged(0, 1, 0)),
        ("u-shaped", 0, "body", activations(stage=2, of=2)),  # of what was never said
        ("u-shaped", 0, "body", messages.Ask(0, 2, 0, 0, 4, b"")),  # what was never asked
        ("round-robin", 1, "peer:0", messages.Handover(0, 0, b"")),  # whose turn that is
        ("round-robin", 1, "peer:0", messages.Handover(2, 1, b"")),
        ("round-robin", 1, "peer:0", messages.Handover(0, 7, b"")),  # after the end
        ("round-robin", 1, "peer:0", messages.Handover(0, 1, b"\x01abc")),
        ("round-robin", 3, "peer:0", activations(head=1)),  # another's examples
        ("splitfed 1", 3, "peer:0", messages.Done(1, 2)),
    ],
)
def test_a_part_that_is_not_the_senders_is_refused(name: str, me: int, sender: str, message: Any) -> None:
    cast = prepared(**SETTINGS[name], **SMALL)
    machine = cast.machine(me, [PeerId(n) for n in cast.names])
    assert refusal(machine, sender, message) in (Refusal.MISMATCH, Refusal.MALFORMED)


@pytest.mark.parametrize("version", [1, 2])
def test_nobody_fills_what_is_held_back_for_later(version: int) -> None:
    cast = prepared(strategy={"name": "splitfed", "version": version}, peers=3, **SMALL)
    tail: Any = cast.machine(3, [PeerId(n) for n in cast.names])
    for step in range(1, 4):
        for micro in range(50):
            body = messages.encode(activations(step=step, micro=micro, of=micro + 1, blob=b"x" * 1000))
            try:
                tail.handle(Received(PeerId("peer:0"), body), 0.0)
            except RemoteError:
                continue
    assert sum(len(gate._held) for gate in tail._gates.values()) <= 2


def test_who_stands_between_never_sees_a_label(tmp_path: Path) -> None:
    """In a chain labels go straight from their owner to the tail, and the network learns by them as in one piece."""
    settings = {"strategy": "chain", "model": {"name": "mlp", "hidden": [24, 20, 16]}, "split__micro_batches": 2}
    run = played(tmp_path, **settings, rounds=2, evaluate_every=2, transcript__keep="all")
    ids = [PeerId(name) for name in run.cast.names]
    seen = {
        name: observe_smashed(observation(run.folder, run.cast, ids, name), boundary)
        for name, boundary in (("middle:1", 1), ("middle:2", 3), ("tail", 3))
    }
    assert all(one.labels is None for name in ("middle:1", "middle:2") for one in seen[name])
    assert seen["tail"]
    assert all(one.labels is not None for one in seen["tail"])
