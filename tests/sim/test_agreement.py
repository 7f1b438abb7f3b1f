"""Whether members came to the same model, to the bit."""

import numpy as np

from veilmesh.peer.store import save_parameters
from veilmesh.sim.agreement import final_models


def test_equal_models_have_one_number_and_a_bit_of_difference_is_seen(tmp_path) -> None:
    model = np.linspace(-1, 1, 7, dtype=np.float32)
    other = model.copy()
    other[3] = np.nextafter(other[3], np.float32(1))
    for name, kept in {"peer-0": model, "peer-1": model.copy(), "peer-2": other}.items():
        save_parameters(tmp_path / f"{name}.safetensors", kept, {})
    alike = final_models(tmp_path, ["peer:0", "peer:1"])
    assert alike["models"] == 1
    assert alike["model_bits"] is not None
    assert final_models(tmp_path, ["peer:0", "peer:2"]) == {"models": 2, "model_bits": None}
    assert final_models(tmp_path, ["peer:2"])["model_bits"] != alike["model_bits"]


def test_who_left_no_model_does_not_count(tmp_path) -> None:
    assert final_models(tmp_path, ["peer:0"]) == {"models": 0, "model_bits": None}
