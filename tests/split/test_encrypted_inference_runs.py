"""Encrypted inference over machines: the answers of the network in clear, to one who has none of it."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from meshes import WAIT, up
from numpy.typing import NDArray
from PIL import Image
from split_runs import BASE, played, prepared
from torch import nn

from veilmesh.core import BadInput, RemoteError, generator
from veilmesh.peer.machine import Note, PeerId, Received, Send, Started, Stop, Work, WorkDone
from veilmesh.peer.store import load_parameters
from veilmesh.sim.cast import Cast, settings_of
from veilmesh.sim.scenario import Scenario, override
from veilmesh.split import encrypted_answers, messages
from veilmesh.split.encrypted_answers import PIECE, Answerer, Asker, before_answers
from veilmesh.split.messages import Activations, Ask, Done
from veilmesh.split.work import (
    Asked,
    Backward,
    Fetch,
    Finish,
    Forward,
    Judge,
    Judged,
    Key,
    Pass,
    Refused,
    Returned,
    TrainRound,
)
from veilmesh.tasks.models.build import build_model, parameters_to_vector, vector_to_parameters
from veilmesh.tasks.models.layers import Square
from veilmesh.tasks.training import Trainer
from veilmesh.tasks.work import Settings, Train

tenseal = pytest.importorskip("tenseal", reason="TenSEAL is an extra: pip install 'veilmesh[he]'")

MODEL = {"name": "mlp", "hidden": [4], "activation": "square"}
TINY = {
    "strategy": "encrypted-inference", "model": MODEL, "rounds": 6, "evaluate_every": 6, "timing__round": 300,
    "training": {"batch": 4, "local_steps": 10, "learning_rate": 0.1},
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of pictures of 4x2: bright above, or bright below."""
    rng, folder = generator(0, "pictures"), tmp_path_factory.mktemp("pictures")
    for label in range(2):
        (folder / str(label)).mkdir()
        for number in range(40):
            x = rng.uniform(0, 150, (4, 2))
            x[2 * label : 2 * label + 2] += 100
            Image.fromarray(x.astype(np.uint8)).save(folder / str(label) / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def tiny(pictures: Path) -> dict[str, Any]:
    return {**TINY, "task": {"name": "image-folder", "path": str(pictures)}}


def in_clear(cast: Cast, parameters: NDArray[np.float32]) -> float:
    model, data = cast.model, cast.dataset
    network = build_model(model.name, model.options, data.shape, data.classes, 0)
    vector_to_parameters(network, parameters)
    with torch.inference_mode():
        answers = network.eval()(torch.from_numpy(np.array(data.test_x))).argmax(1).numpy()
    return float((answers == data.test_y).mean())


def trained(cast: Cast) -> NDArray[np.float32]:
    """What the trainer of every protocol makes of the public pictures."""
    public, x = (cast.dataset.public_x, cast.dataset.public_y), np.array(cast.initial)
    settings = settings_of(cast.scenario)
    trainer = Trainer(*public, *public, lambda: network(cast), settings, cast.scenario.seed, 1)
    for round_ in range(cast.scenario.rounds):
        [found] = trainer.run([Train(round_, x)])
        x = x + found.update  # type: ignore[attr-defined]  # a Trained
    return x


def network(cast: Cast) -> nn.Module:
    model, data = cast.model, cast.dataset
    return build_model(model.name, model.options, data.shape, data.classes, 0)


def test_the_answers_are_those_of_the_same_network_in_clear(tiny: dict[str, Any], tmp_path: Path) -> None:
    run = played(tmp_path, **tiny)
    assert run.ended == {"peer:0": "finished", "tail": "finished"}
    assert {p["name"]: p["rounds"] for p in run.summary["peers"]} == {"peer:0": 6, "tail": 6}
    (model,) = run.models
    assert model.tobytes() == trained(run.cast).tobytes()
    assert run.summary["accuracy"] == in_clear(run.cast, model) > 0.8
    assert [note["peer"] for note in run.noted("trained")] == [1] * 6
    assert load_parameters(run.folder / "checkpoints" / "peer-0.safetensors").size == 0


@pytest.mark.slow
def test_over_libp2p_it_comes_to_the_same(tiny: dict[str, Any], tmp_path: Path) -> None:
    data = override(BASE, {name.replace("__", "."): value for name, value in tiny.items()})
    path = tmp_path / "scenario.toml"
    path.write_text(tomli_w.dumps({"scenario": {**data, "world": "libp2p"}}))
    with up(tmp_path / "run", "--scenario", str(path)) as process:
        output, _ = process.communicate(timeout=2 * WAIT)
    assert process.returncode == 0, output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {p["ended"] for p in summary["peers"]} == {"finished"}
    cast = Cast.prepare(Scenario.parse(summary["scenario"]))
    (model,) = cast.models(tmp_path / "run" / "checkpoints", cast.names)
    assert model.tobytes() == trained(cast).tobytes()
    assert summary["accuracy"] == in_clear(cast, model)


@pytest.mark.slow
def test_digits_are_recognised_as_in_clear_whenever_they_are_asked_about(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    model = {**MODEL, "hidden": [16]}
    run = played(tmp_path, **{**TINY, "model": model, "evaluate_every": 4, "training__batch": 32})
    assert [note["round"] for note in run.noted("accuracy")] == [4, 6]
    assert run.summary["accuracy"] == pytest.approx(in_clear(run.cast, run.models[0]), abs=0.005)
    assert run.summary["accuracy"] > 0.7


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"name": "mlp", "hidden": [4]}},
        {"model": {**MODEL, "hidden": [4, 4]}},
        {"model": {"name": "lenet", "activation": "square"}},
        {"peers": 2},
        {"split__cuts": [2]},
        {"split__micro_batches": 2},
        {"split__codec": "8-bit"},
        {"split__guards": [{"name": "laplace", "scale": 0.1}]},
        {"adversary": {"vantage": "tail", "tamper": "fsha"}},
    ],
    ids=str,
)
def test_what_cannot_be_on_ciphertexts_is_refused(tiny: dict[str, Any], changes: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        prepared(**{**tiny, **changes})


def test_pictures_that_are_too_many_or_too_large_are_refused(tiny: dict[str, Any]) -> None:
    from veilmesh.split.encrypted_answers import FEATURES, require_few

    data = prepared(**tiny).dataset
    require_few(FEATURES, data)
    with pytest.raises(BadInput):
        require_few(FEATURES + 1, data)


# --- workers -------------------------------------------------------------------------------------------------------

X = generator(1, "x").uniform(size=(6, 1, 1, 2)).astype(np.float32)
Y = np.array([0, 1] * 3)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(2, 1), Square(), nn.Linear(1, 2))


def answerer() -> Answerer:
    settings = Settings(batch=2, local_steps=1, learning_rate=0.1)
    trainer = Trainer(X, Y, X, Y, small, settings, 0, 1)
    return Answerer(trainer, small(), parameters_to_vector(small()), lambda: bytes(32))


@pytest.fixture(scope="module")
def asker() -> Asker:
    return Asker(nn.Flatten(), X, Y, 2)


def piece(worker: Asker, part: int) -> Asked:
    (asked,) = worker.run([Pass(0, 0, part)])
    assert isinstance(asked, Asked)
    return asked


def said(worker: Answerer, part: int, blob: bytes) -> object:
    (answer,) = worker.run([Pass(0, 1, part, len(X), blob, answers=True)])
    return answer


def judged(worker: Asker, part: int, answer: object) -> object:
    assert isinstance(answer, Asked)
    (found,) = worker.run([Judge(part, answer.rows, answer.blob)])
    return found


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encrypted_answers, "PIECE", 1 << 20)


@pytest.mark.usefixtures("small_pieces")
def test_pieces_come_in_any_order_and_more_than_once(asker: Asker) -> None:
    worker, first = answerer(), piece(asker, 0)
    blobs = [first.blob, *(piece(asker, part).blob for part in range(1, first.parts))]
    assert first.parts == 4
    found = [judged(asker, part, said(worker, part, blobs[part])) for part in (3, 1, 0, 2)]
    *others, last = found
    assert others == [Judged(0, 0.0, 0)] * 3
    with torch.inference_mode():
        clear = small()(torch.from_numpy(X))
    assert isinstance(last, Judged)
    assert (last.right, last.count) == (int((clear.argmax(1) == torch.from_numpy(Y)).sum()), 6)
    wanted = nn.functional.cross_entropy(clear, torch.from_numpy(Y), reduction="sum")
    assert last.loss == pytest.approx(float(wanted), abs=1e-3)
    assert [len(said(worker, part, blobs[part]).blob) > 1 for part in range(4)] == [False, False, True, False]


def test_a_question_is_never_the_same_bytes_and_an_old_one_is_dropped(asker: Asker) -> None:
    worker, before, now = answerer(), piece(asker, 0), piece(asker, 0)
    assert before.blob[-(1 << 21) :: 1 << 19] != now.blob[-(1 << 21) :: 1 << 19]
    assert isinstance(said(worker, 0, now.blob), Asked)
    assert isinstance(said(worker, 0, before.blob), Refused)


def test_bytes_that_are_no_question_are_dropped_and_the_right_ones_still_answered(asker: Asker) -> None:
    worker, right = answerer(), piece(asker, 0).blob
    number = struct.unpack_from("!I", right)[0]
    wrong = [
        b"", right[:6], right[:-1], right + b"x", right[:6] + bytes(len(right) - 6),
        struct.pack("!IH", number, 0) + right[6:], struct.pack("!IH", number, 9) + right[6:],
        right[:6] + bytes(PIECE + 1),
    ]  # fmt: skip
    for blob in wrong:
        assert isinstance(said(worker, 0, blob), Refused)
    assert isinstance(said(worker, 1, right), Refused)  # there is one part
    assert isinstance(said(worker, 0, right), Asked)
    key = Key(0, 1, 0, 0, 1)
    for task in (Forward(key, 6, right), Finish(key, 6, 6, right), Backward(key, right)):
        assert isinstance(worker.run([task])[0], Refused)


@pytest.mark.usefixtures("small_pieces")
def test_answers_that_are_none_are_dropped_and_the_right_one_still_counts(asker: Asker) -> None:
    worker, parts = answerer(), piece(asker, 0).parts
    blobs = [piece(asker, 0).blob, *(piece(asker, part).blob for part in range(1, parts))]
    answers = [said(worker, part, blob) for part, blob in enumerate(blobs)]
    assert all(isinstance(judged(asker, part, answers[part]), Judged) for part in range(parts - 1))
    right = answers[-1]
    assert isinstance(right, Asked)
    for blob in (b"", b"\x00", b"\x02", b"\x01", right.blob[:-1], right.blob[:1] + bytes(len(right.blob) - 1)):
        assert isinstance(judged(asker, parts - 1, Asked(len(X), blob)), Refused)
    assert isinstance(judged(asker, parts - 1, Asked(len(X) - 1, right.blob)), Refused)
    assert isinstance(judged(asker, parts - 1, right), Judged)
    assert isinstance(judged(asker, parts - 1, right), Refused)  # once


def test_rounds_change_the_network_and_it_is_what_is_left_behind() -> None:
    worker = answerer()
    (before,) = worker.run([Fetch(0, 1)])
    (result,) = worker.run([TrainRound(0)])
    (after,) = worker.run([Fetch(0, 1)])
    assert isinstance(result, Returned)
    assert result.loss > 0
    assert not np.array_equal(np.asarray(before), np.asarray(after))


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 2)],
        [nn.Linear(2, 2), nn.Linear(2, 1), Square(), nn.Linear(1, 2)],
        [nn.Linear(2, 1, bias=False), Square(), nn.Linear(1, 2)],
        [Square(), nn.Linear(2, 2)],
    ],
    ids=str,
)
def test_other_networks_are_none_for_ciphertexts(layers: list[nn.Module]) -> None:
    with pytest.raises(BadInput):
        before_answers(nn.Sequential(*layers))


# --- machines ------------------------------------------------------------------------------------------------------


def test_a_question_about_rounds_to_come_waits_and_nobody_else_may_ask(tiny: dict[str, Any]) -> None:
    cast = prepared(**tiny)
    owner, tail = ids = (PeerId("peer:0"), PeerId("tail"))
    machine = cast.machine(1, ids)
    (begun,) = machine.handle(Started(frozenset([owner])), 0.0)
    assert begun == Work("own-0", TrainRound(0))
    early = messages.encode(Ask(0, 1, 6, 0, 16, b"piece"))
    assert machine.handle(Received(owner, early), 0.0) == []
    wrong = [
        (tail, early),
        (owner, messages.encode(Ask(1, 1, 6, 0, 16, b"piece"))),
        (owner, messages.encode(Ask(0, 1, 7, 0, 16, b"piece"))),
        (owner, messages.encode(Ask(0, 2, 6, 0, 16, b"piece"))),
        (owner, b"nothing"),
        (tail, messages.encode(Done(0, 1))),
    ]
    for sender, body in wrong:
        with pytest.raises(RemoteError):
            machine.handle(Received(sender, body), 0.0)
    done = [machine.handle(WorkDone(f"own-{n}", Returned(loss=0.5)), 1.0) for n in range(6)]
    assert all([e.kind for e in effects if isinstance(e, Note)] == ["trained", "round"] for effects in done)
    asked = [[e.task for e in effects if isinstance(e, Work)] for effects in done]
    assert asked == [*([TrainRound(n)] for n in range(1, 6)), [Pass(0, 1, 0, 16, b"piece", answers=True)]]
    (answer,) = machine.handle(WorkDone("ask-0-1-6-0", Asked(16, b"answer")), 2.0)
    assert isinstance(answer, Send)
    assert answer.to == owner
    (last,) = machine.handle(Received(owner, messages.encode(Done(0, 6))), 3.0)
    assert isinstance(last, Work)
    (stop,) = machine.handle(WorkDone(last.name, np.zeros(2, np.float32)), 4.0)
    assert isinstance(stop, Stop)
    assert (stop.result.rounds, stop.result.reason) == (6, "finished")  # type: ignore[attr-defined]  # an Outcome


def test_activations_are_none_of_its_business(tiny: dict[str, Any]) -> None:
    machine = prepared(**tiny).machine(1, (PeerId("peer:0"), PeerId("tail")))
    machine.handle(Started(frozenset([PeerId("peer:0")])), 0.0)
    body = messages.encode(Activations(0, 1, 0, 0, 1, 4, 4, b"blob", b"", b""))
    (work,) = machine.handle(Received(PeerId("peer:0"), body), 0.0)
    assert isinstance(work, Work)
    (result,) = answerer().run([work.task])
    (note,) = machine.handle(WorkDone(work.name, result), 0.0)
    assert isinstance(note, Note)
    assert note.kind == "refused"
