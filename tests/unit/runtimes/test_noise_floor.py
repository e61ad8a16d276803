"""Noise floors that need no backend."""

import numpy as np
import pytest

from multibackend_lstm.runtimes.noise_floor import ROUNDING, off_one_by_one, one_by_one

UNIT = ROUNDING["float32"]


@pytest.mark.parametrize("terms", [8, 200, 12_960, 100_000])
@pytest.mark.parametrize("mean", [0.0, 0.1, 3.0])
def test_the_floor_of_a_sum_is_how_far_float32_is_off_one_term_after_the_other(terms, mean):
    """Within a factor of 3, at any length, whether the terms cancel or pile up."""
    rng = np.random.default_rng(terms)
    x = (rng.normal(size=(40, terms)) + mean).astype("float32")
    exact = np.sum(x, 1, dtype="float64")
    off = np.add.accumulate(x, 1)[:, -1] - exact
    moved = UNIT * np.sqrt(np.sum(np.square(x, dtype="float64"), 1) / 3)
    scores = off / one_by_one(moved, exact, terms, UNIT)
    assert 1 / 3 < np.sqrt(np.mean(np.square(scores))) < 3
    if terms > 1000:  # where the twins alone know too little
        assert np.sqrt(np.mean(np.square(off / moved))) > 20


def test_few_terms_that_cancel_have_the_floor_of_the_twins():
    """Else an error of 1e-5 in the gradient of a bias, of 24 terms, has a score below 20."""
    assert one_by_one(3.8e-8, 0.0, 24, UNIT) == pytest.approx(3.8e-8)
    assert one_by_one(3.8e-8, 0.0, 320, UNIT) == pytest.approx(7 * 3.8e-8)


def test_terms_that_are_alike_are_rounded_to_the_same_side():
    x = np.full((2, 5_000, 3), np.array([0.1, -0.3, 1 / 3]), "float32")
    exact, off = off_one_by_one(x)
    np.testing.assert_allclose(exact, 10_000 * x[0, 0].astype("float64"), rtol=1e-12)
    expected = np.add.accumulate(x.reshape(-1, 3))[-1] - exact
    np.testing.assert_array_equal(off, abs(expected))
    assert np.sqrt(np.mean(np.square(off))) > 3 * np.sqrt(np.mean(np.square(exact))) * UNIT * 33
