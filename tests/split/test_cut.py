"""Where a network can be divided: anywhere between its pieces, and the stages are the network."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from split_runs import prepared
from torch import Tensor, nn

from veilmesh.core import BadInput, generator
from veilmesh.split.cut import Cuttable, divide, pieces, places, shapes
from veilmesh.tasks.models.base import MODELS
from veilmesh.tasks.models.build import build_model, parameters_to_vector

torch.set_num_threads(1)


def test_every_model_of_the_house_cut_anywhere_is_the_whole_network() -> None:
    cuttable = 0
    for name in MODELS.names():
        if name.startswith("module"):  # a user's own: whatever it is
            continue
        shape = (3, 16, 16)
        whole = build_model(name, None, shape, 3, 0)
        if not isinstance(whole, Cuttable | nn.Sequential):
            with pytest.raises(BadInput, match="cannot be split"):
                pieces(whole)
            continue
        every = pieces(whole)
        cuttable += 1
        x = torch.from_numpy(generator(1, name).random((2, *shape), np.float32))
        whole.eval()
        with torch.no_grad():
            expected = whole(x)
            for at in range(1, len(every)):
                stages = divide(whole, (at,))
                middle = stages[0](x)
                torch.testing.assert_close(stages[1](middle), expected, rtol=0, atol=0)
                joined = np.concatenate([parameters_to_vector(s) for s in stages if list(s.parameters())])
                assert joined.tobytes() == parameters_to_vector(whole).tobytes(), (name, at)
                assert shapes(stages, shape) == [shape, tuple(middle.shape[1:]), tuple(expected.shape[1:])]
    assert cuttable >= 6


def test_shapes_leave_a_network_as_it_was() -> None:
    shape = (3, 16, 16)
    whole = build_model("convnet", None, shape, 3, 0)
    stages = divide(whole, (1, 2))
    stages[0].eval()
    before = parameters_to_vector(whole).tobytes()
    shapes(stages, shape)
    assert [stage.training for stage in stages] == [False, True, True]
    assert parameters_to_vector(whole).tobytes() == before


def mlp(layers: int = 3) -> nn.Sequential:
    return nn.Sequential(*(piece for _ in range(layers) for piece in (nn.Linear(4, 4), nn.ReLU())))


def test_a_cut_is_a_number_of_pieces_or_the_name_of_the_last_of_them() -> None:
    net = mlp()
    assert places(net, [2], 2) == (2,)
    assert places(net, ["1"], 2) == (2,)
    assert places(net, ["1", 4], 3) == (2, 4)


def test_without_cuts_every_stage_has_parameters_and_ends_behind_an_activation() -> None:
    assert places(mlp(), [], 2) == (2,)
    assert places(mlp(), [], 3) == (2, 4)
    for stages in (2, 3, 4, 5, 6):
        at = places(mlp(6), [], stages)
        assert len(at) == stages - 1
        assert all(list(stage.parameters()) for stage in divide(mlp(6), at))
    assert places(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.ReLU(), nn.ReLU()), [], 3) == (1, 3)


@pytest.mark.parametrize(
    ("cuts", "stages", "said"),
    [
        ([1, 2], 2, "needs 1, not 2"),
        (["nowhere"], 2, "no piece 'nowhere'"),
        ([0], 2, "must rise"),
        ([6], 2, "must rise"),
        ([-1], 2, "must rise"),
        ([3, 2], 3, "must rise"),
        ([2, 2], 3, "must rise"),
        ([], 7, "cannot be split into 7 stages"),
    ],
)
def test_a_place_that_does_not_exist_is_refused_in_a_sentence(cuts: Sequence[Any], stages: int, said: str) -> None:
    with pytest.raises(BadInput, match=said) as caught:
        places(mlp(), cuts, stages)
    assert str(caught.value).endswith(".")


class Named(nn.Module):
    """No sequence, and says where it can be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.top = mlp(1), nn.Linear(4, 2)

    def pieces(self) -> Sequence[tuple[str, nn.Module]]:
        return [("body", self.body), ("top", self.top)]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.top(self.body(x))
        return out


def test_a_module_may_name_its_own_cut_points() -> None:
    net, x = Named(), torch.rand(3, 4)
    assert isinstance(net, Cuttable)
    assert [name for name, _ in pieces(net)] == ["body", "top"]
    below, above = divide(net, places(net, ["body"], 2))
    assert torch.equal(above(below(x)), net(x))


def test_a_module_that_names_none_is_refused() -> None:
    with pytest.raises(BadInput, match="give it one, or take another model"):
        pieces(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"split__cuts": [9]}, "must rise"),
        ({"split__cuts": [1, 2]}, "needs 1, not 2"),
        ({"strategy": "u-shaped", "split__cuts": [1]}, "needs 2, not 1"),
        ({"peers": 2}, "one data owner"),
        ({"strategy": "splitfed", "peers": 1}, "raise peers"),
        ({"strategy": "round-robin", "peers": 1}, "raise peers"),
        ({"strategy": {"name": "splitfed", "heads": "fedavg"}, "peers": 3}, "without a server"),
        ({"strategy": "splitfed", "peers": 3, "split__cuts": [1]}, "no parameters to average"),
        ({"split__micro_batches": 17}, "cannot be divided into 17"),
        ({"split__codec": "nothing"}, "nothing"),
        ({"split__guards": "nothing"}, "nothing"),
        ({"faults": [{"at": 1, "kill": "middle:1"}]}, "no 'middle:1' in this run"),
        ({"strategy": "gossip", "peers": 3, "faults": [{"at": 1, "kill": "tail"}]}, "no 'tail'"),
        ({"strategy": "gossip", "peers": 3, "split__micro_batches": 2}, "cuts none"),
        ({"strategy": {"name": "chain", "middles": 0}}, "middles"),
        ({"checkpoints__every": 2}, "cannot be taken up again"),
        ({"aggregator": "median"}, "averages nothing"),
        ({"guards": "clip"}, "split.guards"),
        ({"training__private__clip": 1.0}, "split.guards"),
    ],
)
def test_a_run_that_cannot_be_had_is_refused_in_a_sentence(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said) as caught:
        prepared(**changes)
    assert "\n" not in str(caught.value)
