"""What every registered guard promises (swarm/guards/base.py), run over all of them; and what each one does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from veilmesh.core import BadInput, generator
from veilmesh.crypto.codecs.base import CODECS
from veilmesh.swarm.guards.base import GUARDS, Guard, RoundInfo

INFO = RoundInfo(round=3, samples=16)
VECTORS = arrays.arrays(np.float32, st.integers(1, 200), elements=st.floats(-1e6, 1e6, width=32))


@pytest.fixture(params=GUARDS.names(), scope="module")
def guard(request: pytest.FixtureRequest) -> Guard:
    return GUARDS.build(request.param)


@given(x=VECTORS)
def test_an_update_stays_an_update(guard: Guard, x: np.ndarray) -> None:
    before = x.copy()
    out = guard.outgoing(x, INFO, generator(1, "guard"))
    assert out.shape == x.shape
    assert out.dtype == np.float32
    assert np.isfinite(out).all()
    np.testing.assert_array_equal(x, before)


@given(x=VECTORS)
def test_the_generator_decides_everything(guard: Guard, x: np.ndarray) -> None:
    a, b = (guard.outgoing(x, INFO, generator(1, "guard")) for _ in range(2))
    np.testing.assert_array_equal(a, b)


def test_no_update_stays_none_unless_that_has_to_be_hidden_too(guard: Guard) -> None:
    if hasattr(guard, "delta"):  # it has an accountant: its noise may not depend on the update
        assert guard.outgoing(np.zeros(50, np.float32), INFO, generator(1, "guard")).all()
        return
    assert not guard.outgoing(np.zeros(50, np.float32), INFO, generator(1, "guard")).any()


@given(x=VECTORS, norm=st.floats(1e-3, 1e3))
def test_clip_bounds_the_norm_and_keeps_the_direction(x: np.ndarray, norm: float) -> None:
    out = GUARDS.build("clip", {"norm": norm}).outgoing(x, INFO, generator(1, "guard")).astype(np.float64)
    wide = x.astype(np.float64)
    assert np.linalg.norm(out) <= norm * (1 + 1e-5)
    if np.linalg.norm(wide) <= norm:
        np.testing.assert_array_equal(out, wide)
    else:
        np.testing.assert_allclose(out, wide * (norm / np.linalg.norm(wide)), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("ratio", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_noise_is_as_large_as_it_says(ratio: float, size: float) -> None:
    x = (np.random.Generator(np.random.PCG64(4)).standard_normal(20_000) * size).astype(np.float32)
    noise = GUARDS.build("noise", {"ratio": ratio}).outgoing(x, INFO, generator(1, "guard")) - x
    assert np.linalg.norm(noise) / np.linalg.norm(x) == pytest.approx(ratio, rel=0.03)
    assert abs(np.corrcoef(noise, x)[0, 1]) < 0.03
    assert abs(noise.mean()) < 0.05 * noise.std()


def test_no_noise_is_asked_for_with_zero() -> None:
    x = np.arange(9, dtype=np.float32)
    np.testing.assert_array_equal(GUARDS.build("noise", {"ratio": 0}).outgoing(x, INFO, generator(1, "guard")), x)


@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
def test_noise_of_an_absolute_size_does_not_look_at_the_update(size: float) -> None:
    x = np.full(20_000, size, np.float32)
    noise = GUARDS.build("noise", {"std": 0.3}).outgoing(x, INFO, generator(1, "guard")) - x
    assert noise.std() == pytest.approx(0.3, rel=0.03)


@given(x=VECTORS, keep=st.floats(0.01, 1))
def test_what_is_pruned_is_what_top_k_would_not_say(x: np.ndarray, keep: float) -> None:
    out = GUARDS.build("prune", {"keep": keep}).outgoing(x, INFO, generator(1, "guard"))
    blob = CODECS.build("top-k", {"keep": keep}).encode(x, generator(1, "codec"))
    np.testing.assert_array_equal(out, CODECS.get("top-k").decode(blob, x.size).values)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("clip", {"norm": 0}),
        ("clip", {"norm": -1}),
        ("noise", {"ratio": -0.1}),
        ("noise", {"std": -0.1}),
        ("prune", {"keep": 0}),
        ("clip", {"radius": 1}),
    ],
)
def test_impossible_options_are_refused(name: str, options: dict[str, float]) -> None:
    with pytest.raises(BadInput):
        GUARDS.build(name, options)
