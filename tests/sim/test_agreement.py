"""Whether members came to the same model, to the bit."""

import numpy as np

from veilmesh.sim.agreement import final_models


def test_equal_models_have_one_number_and_a_bit_of_difference_is_seen() -> None:
    model = np.linspace(-1, 1, 7, dtype=np.float32)
    other = model.copy()
    other[3] = np.nextafter(other[3], np.float32(1))
    alike = final_models([model, model.copy()])
    assert alike["models"] == 1
    assert alike["model_bits"] is not None
    assert final_models([model, other]) == {"models": 2, "model_bits": None}
    assert final_models([other])["model_bits"] != alike["model_bits"]


def test_without_models_there_is_nothing_to_agree_on() -> None:
    assert final_models([]) == {"models": 0, "model_bits": None}
