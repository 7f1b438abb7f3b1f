"""Who sees what in split mode, protocol by protocol: the table of docs/split.md, read off transcripts."""

from pathlib import Path
from typing import Any

import pytest
from split_runs import DEEP, Played, played

from veilmesh.core import BadInput, RemoteError
from veilmesh.peer.machine import PeerId
from veilmesh.sim.observation import observation
from veilmesh.split import messages
from veilmesh.split.messages import Activations, Answer, Gradients, Handover, Labels, Message, Replica

SMALL = {"model": DEEP, "rounds": 2, "evaluate_every": 1, "transcript__keep": "all"}


def run(folder: Path, **changes: Any) -> Played:
    return played(folder, **SMALL | changes)


def read(run: Played, vantage: str) -> list[Message]:
    """Every message of split mode that a vantage has in clear, said or heard."""
    ids = [PeerId(name) for name in run.cast.names]
    found = []
    for record in observation(run.folder, run.cast, ids, vantage).records:
        if record.body is not None:
            try:
                found.append(messages.decode(record.body))
            except RemoteError:  # a message of the heads' swarm
                continue
    return found


def activations(run: Played, vantage: str) -> list[Activations]:
    return [m for m in read(run, vantage) if isinstance(m, Activations)]


def test_a_tail_is_sent_the_labels(tmp_path: Path) -> None:
    heard = activations(run(tmp_path), "tail")
    assert heard
    assert all(len(m.labels) == 2 * m.rows and m.which == b"" for m in heard)


def test_a_tail_that_holds_labels_is_sent_the_numbers_of_examples(tmp_path: Path) -> None:
    heard = activations(run(tmp_path, strategy__name="vanilla", strategy__labels="held"), "tail")
    assert heard
    assert all(m.labels == b"" and len(m.which) == 4 * m.rows for m in heard)


@pytest.mark.parametrize(
    ("strategy", "places"),
    [({"name": "u-shaped"}, ["body"]), ({"name": "chain", "labels": "own"}, ["middle:1", "middle:2"])],
    ids=["u-shaped", "chain"],
)
def test_of_a_u_no_label_no_loss_and_no_output_leaves(
    tmp_path: Path, strategy: dict[str, Any], places: list[str]
) -> None:
    done = run(tmp_path, strategy=strategy)
    for place in places:
        seen = read(done, place)
        assert {type(m) for m in seen} >= {Activations, Gradients}
        assert not any(m.labels or m.which for m in seen if isinstance(m, Activations))
        assert not any(m.loss for m in seen if isinstance(m, Gradients))
        assert not any(isinstance(m, Answer) for m in seen)


def test_in_a_chain_labels_go_straight_to_the_tail_and_outputs_and_losses_pass_through(tmp_path: Path) -> None:
    done = run(tmp_path, strategy={"name": "chain", "middles": 2})
    for place in ("middle:1", "middle:2"):
        seen = read(done, place)
        assert not any(isinstance(m, Labels) or getattr(m, "labels", b"") or getattr(m, "which", b"") for m in seen)
        assert any(isinstance(m, Answer) for m in seen)
        assert any(m.loss for m in seen if isinstance(m, Gradients))
    assert any(isinstance(m, Labels) and len(m.labels) == 2 * m.rows for m in read(done, "tail"))


def test_a_standby_sees_parameters_and_no_activations(tmp_path: Path) -> None:
    seen = read(run(tmp_path, strategy={"name": "chain", "middles": 1, "standbys": 1}), "standby:1")
    assert {type(m) for m in seen} >= {Replica}
    assert not any(isinstance(m, Activations | Gradients | Answer) for m in seen)


def test_whoever_comes_next_has_the_head_of_whoever_was_before(tmp_path: Path) -> None:
    done = run(tmp_path, strategy="round-robin", peers=3)
    assert any(isinstance(m, Handover) for m in read(done, "peer:1"))
    assert not any(isinstance(m, Handover) for m in read(done, "tail"))
    assert {m.head for m in activations(done, "tail")} == {0, 1, 2}
    assert {m.head for m in activations(done, "peer:1")} == {1}


def test_a_tail_of_splitfed_sees_everybodys_activations_and_a_data_owner_its_own_and_heads(tmp_path: Path) -> None:
    done = run(tmp_path, strategy="splitfed", peers=3)
    ids = [PeerId(name) for name in done.cast.names]
    assert {m.head for m in activations(done, "tail")} == {0, 1, 2}
    assert {m.head for m in activations(done, "peer:1")} == {1}
    said = {record.sender for record in observation(done.folder, done.cast, ids, "peer:1").records if record.body}
    assert said == {ids[0], ids[1], ids[2], ids[3]}  # the other data owners' heads too
    assert {m.head for m in activations(done, "peer:1+tail")} == {0, 1, 2}


def test_on_the_wire_nothing_is_read(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert read(done, "wire") == []


def test_what_several_see_together_is_kept_for_them(tmp_path: Path) -> None:
    done = run(tmp_path, strategy="splitfed", peers=3, transcript__keep="controlled", adversary__vantage="peer:1+tail")
    assert done.summary["adversary"]["controls"] == [1, 3]
    assert {m.head for m in activations(done, "peer:1+tail")} == {0, 1, 2}
    assert {m.head for m in activations(done, "tail")} == {0, 1, 2}
    with pytest.raises(BadInput, match="was not kept"):
        read(done, "peer:0")


def test_a_vantage_that_nobody_has_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no 'middle:1' in this run; known: peer:0, tail, wire and relay"):
        run(tmp_path, adversary__vantage="middle:1")
    with pytest.raises(BadInput, match="no 'tail' in this run"):
        run(tmp_path, strategy="gossip", peers=3, model={"name": "mlp"}, adversary__vantage="tail")
    with pytest.raises(BadInput, match="no peer:7 among 3"):
        run(tmp_path, strategy="splitfed", peers=3, adversary__vantage="tail+peer:7")


def test_the_record_says_where_it_was_cut_and_who_had_labels(tmp_path: Path) -> None:
    split = run(tmp_path / "u", strategy="u-shaped").summary["split"]
    assert split["labels"] == "own"
    assert [stage["players"] for stage in split["stages"]] == [["peer:0"], ["body"], ["peer:0"]]
    assert sum(stage["parameters"] for stage in split["stages"]) == run(tmp_path / "v").summary["parameters"]
    assert run(tmp_path / "g", strategy="gossip", peers=3, model={"name": "mlp"}).summary["split"] is None
