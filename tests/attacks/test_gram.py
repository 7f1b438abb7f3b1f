"""What a Gram matrix gives away: its pictures, where there are few; checked on runs, against the truth."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from veilmesh.core import BadInput
from veilmesh.sim.audit import audit, open_run
from veilmesh.sim.cast import Cast
from veilmesh.sim.run import run_scenario
from veilmesh.sim.scenario import Choice, Scenario, override

BASE: dict[str, Any] = {
    "world": "virtual",
    "peers": 3,
    "rounds": 1,
    "task": {"name": "digits", "limit": 6},
    "model": {"name": "mlp", "hidden": [16]},
    "training": {"batch": 2, "local_steps": 1, "learning_rate": 0.1},
    "sharing": "regmean",
    "adversary": {"vantage": "peer:0"},
}


def audited(folder: Path, attack: str = "gram", **changes: Any) -> dict[str, Any]:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    torch.set_num_threads(1)
    cast = Cast.prepare(Scenario.parse(override(BASE, {k.replace("__", "."): v for k, v in changes.items()})))
    run_scenario(cast, folder, lambda message: None)
    return audit(folder, *open_run(folder), Choice(name=attack), "peer:0")


@pytest.mark.slow
def test_two_pictures_come_out_of_their_second_moments(tmp_path: Path) -> None:
    result = audited(tmp_path / "two")
    gains = [guess["gain"] for guess in result["guesses"]]
    assert len(gains) == 4  # of two victims
    assert np.mean(gains) > 5


def test_one_picture_is_its_gram_matrix(tmp_path: Path) -> None:
    result = audited(tmp_path / "one", peers=2, task__limit=2, training__batch=1)
    assert [guess["psnr"] > 40 for guess in result["guesses"]] == [True]


def test_behind_masks_there_is_nothing_to_read_of_one_peer(tmp_path: Path) -> None:
    result = audited(tmp_path / "masked", strategy={"name": "secure-groups", "group": 3})
    assert not result["guesses_made"]


def test_attacks_on_models_are_refused_with_the_one_that_reads_this(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="take gram"):
        audited(tmp_path / "refused", attack="analytic")
