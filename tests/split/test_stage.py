"""The work of a stage: the gradient of a split network is the network's, and a stranger's bytes change nothing."""

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from veilmesh.core import BadInput, generator
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import CODECS
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.split.cut import divide, shapes
from veilmesh.split.guards.base import SPLIT_GUARDS
from veilmesh.split.stage import RANGE, Examples, StageOptions, Stages
from veilmesh.split.work import (
    Asked,
    Average,
    Backward,
    Fetch,
    Finish,
    Forward,
    Judge,
    Judged,
    Key,
    Load,
    Loaded,
    Pass,
    Refused,
    Restore,
    Returned,
    Said,
    Several,
)
from veilmesh.tasks.models.build import parameters_to_vector
from veilmesh.tasks.work import Settings, batch_indices

torch.set_num_threads(1)

BATCH, CLASSES, N = 12, 3, 40
RNG = generator(1, "pictures")
X = RNG.random((N, 1, 4, 4), np.float32)
Y = RNG.integers(0, CLASSES, N)


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, CLASSES))


AT = (3, 5)
SHAPES = shapes(divide(network(), AT), (1, 4, 4))


def stages(me: int = 0, head: bool = True, **options: Any) -> Stages:
    mine = {0: Examples(X, Y, X, Y)} if head else {}
    training = Settings(batch=BATCH, local_steps=2, learning_rate=options.pop("rate", 0.5), momentum=0.5)
    settings_ = StageOptions(settings=training, seed=7, me=me, shapes=SHAPES, classes=CLASSES, **options)
    return Stages(lambda number: divide(network(), AT)[number], mine, settings_)


def do(worker: Stages, task: object) -> Any:
    return worker.run([task])[0]


def up(worker: Stages, tail: Stages, of: int = 1, step: int = 0, **changes: Any) -> list[Returned]:
    """One step through three stages, of which `worker` has the first two; what comes back to the head."""
    back = []
    for micro in range(of):
        head, middle, last = (Key(0, stage, step, micro, of) for stage in range(3))
        said = do(worker, Forward(head))
        more = do(worker, Forward(middle, said.rows, said.blob))
        down = do(tail, Finish(last, said.rows, said.total, more.blob, said.labels))
        back.append(do(worker, Backward(head, do(worker, Backward(middle, down.blob)).blob)))
    return back


def whole_step(of: int = 1) -> np.ndarray:
    """The parameters after one step of the network with nothing cut."""
    net = network()
    chosen = batch_indices(7, 0, 0, 0, N, BATCH, 2)
    loss = functional.cross_entropy(net(torch.from_numpy(X[chosen])), torch.from_numpy(Y[chosen]))
    grads = torch.autograd.grad(loss, list(net.parameters()))
    flat = np.concatenate([g.numpy().reshape(-1) for g in grads])
    return parameters_to_vector(net) + np.float32(-0.5) * flat


def parameters(worker: Stages, tail: Stages) -> np.ndarray:
    return np.concatenate([do(worker, Fetch(0, 0)), do(worker, Fetch(0, 1)), do(tail, Fetch(0, 2))])


# --- the gradient --------------------------------------------------------------------------------------------------


def test_a_split_step_is_the_unsplit_step_to_the_bit() -> None:
    worker, tail = stages(labels="sent"), stages(1, head=False, labels="sent")
    up(worker, tail)
    assert parameters(worker, tail).tobytes() == whole_step().tobytes()


@pytest.mark.parametrize("of", [2, 3, 5, 12])
def test_micro_batches_sum_to_the_gradient_of_the_batch(of: int) -> None:
    worker, tail = stages(labels="sent"), stages(1, head=False, labels="sent")
    up(worker, tail, of)
    np.testing.assert_allclose(parameters(worker, tail), whole_step(), atol=1e-6)


def test_micro_batches_that_come_in_another_order_make_the_same_bits() -> None:
    def shuffled(order: list[int]) -> bytes:
        worker, tail = stages(labels="sent"), stages(1, head=False, labels="sent")
        said = {m: do(worker, Forward(Key(0, 0, 0, m, 3))) for m in range(3)}
        more = {m: do(worker, Forward(Key(0, 1, 0, m, 3), said[m].rows, said[m].blob)) for m in order}
        down = {
            m: do(tail, Finish(Key(0, 2, 0, m, 3), said[m].rows, said[m].total, more[m].blob, said[m].labels))
            for m in order
        }
        back = {m: do(worker, Backward(Key(0, 1, 0, m, 3), down[m].blob)) for m in reversed(order)}
        for m in order:
            do(worker, Backward(Key(0, 0, 0, m, 3), back[m].blob))
        return parameters(worker, tail).tobytes()

    assert shuffled([0, 1, 2]) == shuffled([2, 0, 1])


def test_several_tasks_in_one_go_are_the_tasks_one_by_one() -> None:
    worker, tail = stages(labels="sent"), stages(1, head=False, labels="sent")
    [returned] = up(worker, tail)
    assert returned.blob == b""
    again, tail = stages(labels="sent"), stages(1, head=False, labels="sent")
    key = Key(0, 0, 0, 0, 1)
    said, twice = do(again, Several((Forward(key), Fetch(0, 0))))
    assert isinstance(said, Said)
    assert twice.tobytes() == parameters_to_vector(divide(network(), AT)[0]).tobytes()
    refused = do(again, Several((Backward(key, b"nothing"), Fetch(0, 0))))
    assert [type(result) for result in refused] == [Refused]


# --- what strangers say --------------------------------------------------------------------------------------------


def encoded(values: np.ndarray) -> bytes:
    return table.encode(Dense(), values.astype(np.float32).reshape(-1), generator(0, "x"))


GOOD = encoded(np.full((BATCH, 8), 0.1))
LABELS = np.zeros(BATCH, "<u2").tobytes()


@pytest.mark.parametrize(
    "change",
    [
        {"blob": b""},
        {"blob": b"\xff" + GOOD},
        {"blob": GOOD[:-1]},
        {"blob": GOOD + b"\x00"},
        {"blob": encoded(np.full((BATCH, 7), 0.1))},
        {"blob": encoded(np.full((BATCH, 8), 2 * RANGE))},
        {"blob": GOOD[:-4] + np.float32(np.nan).tobytes()},
        {"blob": GOOD[:-4] + np.float32(np.inf).tobytes()},
        {"rows": BATCH - 1},
        {"rows": BATCH + 1},
        {"rows": 0},
        {"rows": 1 << 30},
        {"total": BATCH - 1},
        {"total": 1 << 30},
        {"labels": b""},
        {"labels": LABELS[:-2]},
        {"labels": np.full(BATCH, CLASSES, "<u2").tobytes()},
        {"labels": np.full(BATCH, 65535, "<u2").tobytes()},
    ],
)
def test_what_does_not_fit_a_tail_is_refused_and_changes_nothing(change: dict[str, Any]) -> None:
    tail = stages(1, head=False, labels="sent")
    task = {"rows": BATCH, "total": BATCH, "blob": GOOD, "labels": LABELS, **change}
    before = do(tail, Fetch(0, 2)).tobytes()
    assert isinstance(do(tail, Finish(Key(0, 2, 0, 0, 1), **task)), Refused)
    assert do(tail, Fetch(0, 2)).tobytes() == before
    fresh = stages(1, head=False, labels="sent")
    results = [do(t, Finish(Key(0, 2, 0, 0, 1), BATCH, BATCH, GOOD, LABELS)) for t in (tail, fresh)]
    assert results[0] == results[1]
    assert do(tail, Fetch(0, 2)).tobytes() == do(fresh, Fetch(0, 2)).tobytes() != before


@settings(max_examples=examples(75))
@given(st.binary(max_size=200), st.integers(0, 300), st.integers(0, 300), st.binary(max_size=40))
def test_no_bytes_are_a_surprise_to_any_stage(blob: bytes, rows: int, total: int, labels: bytes) -> None:
    worker = SHARED["head"]
    for task in (
        Finish(Key(0, 2, 0, 0, 1), rows, total, blob, labels),
        Forward(Key(0, 1, 0, 0, 1), rows, blob),
        Backward(Key(0, 1, 0, 5, 6), blob),
        Backward(Key(0, 0, 0, 0, 1), blob),
        Pass(0, 2, 0, rows, blob),
        Judge(0, rows, blob),
    ):
        assert isinstance(do(worker, task), Refused)


SHARED = {"head": stages(labels="sent")}
do(SHARED["head"], Forward(Key(0, 0, 0, 0, 1)))


def test_a_gradient_of_nothing_is_refused() -> None:
    tail = stages(1, head=False)
    assert isinstance(do(tail, Backward(Key(0, 1, 0, 0, 1), encoded(np.zeros((BATCH, 8))))), Refused)


def test_what_grows_beyond_all_bounds_is_refused_above_a_head_and_ends_a_head() -> None:
    middle = stages(1, head=False)
    do(middle, Load(0, 1, np.full(88, 1e5, np.float32)))
    blob = encoded(np.full((BATCH, 10), RANGE))
    refused = do(middle, Forward(Key(0, 1, 0, 0, 1), BATCH, blob))
    assert isinstance(refused, Said | Refused)
    tail = stages(1, head=False, labels="sent")
    do(tail, Load(0, 2, np.full(27, 1e30, np.float32)))
    refused = do(tail, Finish(Key(0, 2, 0, 0, 1), BATCH, BATCH, GOOD, LABELS))
    assert isinstance(refused, Refused)
    assert refused.diverged
    assert (do(tail, Fetch(0, 2)) == np.float32(1e30)).all()
    head = stages()
    do(head, Load(0, 0, np.full(170, 1e30, np.float32)))
    said = do(head, Forward(Key(0, 0, 0, 0, 1)))  # tanh keeps it in bounds
    assert isinstance(said, Said)


def test_a_head_that_diverges_says_so() -> None:
    worker = stages(rate=1e30, labels="sent")
    key = Key(0, 0, 0, 0, 1)
    do(worker, Forward(key))
    steep = Several(tuple(
        task for step in range(4) for task in (
            Forward(Key(0, 0, step, 0, 1)),
            Backward(Key(0, 0, step, 0, 1), encoded(np.full((BATCH, 10), 1e6))),
        )
    ))  # fmt: skip
    with pytest.raises(BadInput, match="use a lower learning rate"):
        do(worker, steep)


# --- labels --------------------------------------------------------------------------------------------------------


def test_labels_that_are_held_are_found_by_the_numbers_of_examples() -> None:
    worker = stages(labels="held")
    tail = Stages(
        lambda number: divide(network(), AT)[number],
        {0: Examples(y=Y)},
        StageOptions(Settings(BATCH, 2, 0.5, 0.5), 7, 1, SHAPES, CLASSES, labels="held"),
    )
    said = do(worker, Forward(Key(0, 0, 0, 0, 1)))
    assert said.labels == b""
    assert (np.frombuffer(said.which, "<u4") == batch_indices(7, 0, 0, 0, N, BATCH, 2)).all()
    more = do(worker, Forward(Key(0, 1, 0, 0, 1), said.rows, said.blob))
    wrong = np.frombuffer(said.which, "<u4").copy()
    wrong[0] = N

    def finish(which: bytes) -> Any:
        return do(tail, Finish(Key(0, 2, 0, 0, 1), said.rows, said.total, more.blob, which=which))

    assert isinstance(finish(wrong.tobytes()), Refused)
    assert isinstance(finish(b""), Refused)
    down = finish(said.which)
    do(worker, Backward(Key(0, 0, 0, 0, 1), do(worker, Backward(Key(0, 1, 0, 0, 1), down.blob)).blob))
    assert parameters(worker, tail).tobytes() == whole_step().tobytes()


def test_a_data_owners_own_last_stage_learns_from_its_own_examples_only_while_they_are_on_their_way() -> None:
    owner = stages(labels="own")
    last = Finish(Key(0, 2, 0, 0, 1), BATCH, BATCH, GOOD)
    assert isinstance(do(owner, last), Refused)
    do(owner, Forward(Key(0, 0, 0, 0, 1)))
    assert isinstance(do(owner, Finish(Key(0, 2, 1, 0, 1), BATCH, BATCH, GOOD)), Refused)
    assert isinstance(do(owner, Finish(Key(0, 2, 0, 0, 1), 4, BATCH, encoded(np.zeros((4, 8))))), Refused)
    assert isinstance(do(owner, last), Returned)


def test_nothing_is_learned_from_labels_that_nobody_has() -> None:
    guard = SPLIT_GUARDS.build("splitguard", {"probability": 0.999999, "begin": 0})
    worker, tail = stages(labels="sent", guards=[guard]), stages(1, head=False, labels="sent")
    before = do(worker, Fetch(0, 0)).tobytes()
    for of in (1, 4):
        up(worker, tail, of, step=of - 1)
        assert do(worker, Fetch(0, 0)).tobytes() == before


# --- questions, states, averages -----------------------------------------------------------------------------------


def test_a_question_is_answered_by_the_whole_network_and_nothing_is_learned() -> None:
    worker, tail = stages(), stages(1, head=False)
    asked = do(worker, Pass(0, 0, 0))
    assert isinstance(asked, Asked)
    more = do(worker, Pass(0, 1, 0, asked.rows, asked.blob))
    answered = do(tail, Pass(0, 2, 0, more.rows, more.blob, answers=True))
    judged = do(worker, Judge(0, answered.rows, answered.blob))
    assert isinstance(judged, Judged)
    logits = network().eval()(torch.from_numpy(X))
    assert (judged.right, judged.count) == (int((logits.argmax(1) == torch.from_numpy(Y)).sum()), N)
    assert parameters(worker, tail).tobytes() == parameters_to_vector(network()).tobytes()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_whoever_takes_over_a_stage_goes_on_to_the_bit(optimizer: str) -> None:
    def made() -> Stages:
        training = Settings(BATCH, 3, 0.05, 0.0 if optimizer == "adam" else 0.9, optimizer)
        built = StageOptions(training, 7, 1, SHAPES, CLASSES, labels="sent")
        return Stages(lambda number: divide(network(), AT)[number], {}, built)

    def step(tail: Stages, number: int, replicate: bool = False) -> Any:
        blob = encoded(generator(2, number).normal(size=(BATCH, 8)))
        labels = generator(3, number).integers(0, CLASSES, BATCH).astype("<u2").tobytes()
        return do(tail, Finish(Key(0, 2, number, 0, 1), BATCH, BATCH, blob, labels, replicate=replicate))

    for died in range(5):
        first, second = made(), made()
        state = [step(first, number, replicate=True).state for number in range(died + 1)][-1]
        assert do(second, Restore(0, 2, state)) == Loaded()
        results = [[step(tail, number) for number in range(died + 1, 7)] for tail in (first, second)]
        assert results[0] == results[1]
        assert do(first, Fetch(0, 2)).tobytes() == do(second, Fetch(0, 2)).tobytes()


@pytest.mark.parametrize("part", ["blob", "start", "state"])
@pytest.mark.parametrize("value", [b"", b"\xff", b"\x01abc", GOOD])
def test_a_state_of_another_stage_is_refused(part: str, value: bytes) -> None:
    tail = stages(1, head=False, labels="sent")
    state = do(tail, Finish(Key(0, 2, 0, 0, 1), BATCH, BATCH, GOOD, LABELS, replicate=True)).state
    before = do(tail, Fetch(0, 2)).tobytes()
    parts = {"blob": state.blob, "start": state.start, "state": state.state, part: value}
    assert isinstance(do(tail, Restore(0, 2, type(state)(**parts))), Refused)
    assert do(tail, Fetch(0, 2)).tobytes() == before


def test_copies_are_trained_each_for_itself_and_become_their_mean() -> None:
    tail = stages(1, head=False, labels="sent", copies=True)
    for head in (0, 1):
        blob = encoded(generator(2, head).normal(size=(BATCH, 8)))
        do(tail, Finish(Key(head, 2, 0, 0, 1), BATCH, BATCH, blob, LABELS))
    first, second = do(tail, Fetch(0, 2)), do(tail, Fetch(1, 2))
    assert first.tobytes() != second.tobytes()
    do(tail, Average(2, (0, 1), (0.5, 0.5)))
    mean = np.float32(0.5) * first + np.float32(0.5) * second
    assert do(tail, Fetch(0, 2)).tobytes() == do(tail, Fetch(1, 2)).tobytes() == mean.tobytes()


@pytest.mark.parametrize("codec", [name for name in CODECS.names()])
def test_every_codec_carries_both_ways(codec: str) -> None:
    made = CODECS.build(codec)
    worker = stages(labels="sent", forward=made, backward=made, rate=0.05)
    tail = stages(1, head=False, labels="sent", forward=made, backward=made, rate=0.05)
    up(worker, tail)
    assert parameters(worker, tail).tobytes() != parameters_to_vector(network()).tobytes()


# --- memory --------------------------------------------------------------------------------------------------------


def test_a_graph_is_let_go_of_once_its_step_is_done_or_given_up() -> None:
    middle = stages(1, head=False)
    held: list[weakref.ref[torch.Tensor]] = []
    [part] = [middle._part(0, 1)]  # what is held has no other name
    for step in range(4):
        for micro in range(3):
            do(middle, Forward(Key(0, 1, step, micro, 3), 4, encoded(np.full((4, 10), 0.1))))
            held.append(weakref.ref(part._graphs[step, 0, micro][1]))
        if step % 2:
            for micro in range(3):
                do(middle, Backward(Key(0, 1, step, micro, 3), encoded(np.full((4, 8), 0.1))))
    gc.collect()
    assert not any(ref() is not None for ref in held)
    assert not part._gradients
