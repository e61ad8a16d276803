"""The comparator itself: what it must see, and what it must not."""

import numpy as np
import pytest

from multibackend_lstm.agreement.comparison import (
    AGREES,
    DISAGREES,
    DISAGREES_ABOVE,
    SUSPICIOUS,
    compare,
    missing,
    verdict_of,
)

RNG = np.random.default_rng(0)
TRUTH = RNG.normal(size=(4, 5))
ROUNDED = TRUTH.astype("float32")


def judge(values, truth=TRUTH, floor=0.0, **arguments):
    return compare("layer", "dense", values, truth, floor=floor, **arguments)


def changed(index, value):
    values = ROUNDED.copy()
    values[index] = value
    return values


def test_the_rounding_of_the_truth_itself_agrees():
    found = judge(ROUNDED)
    assert found.verdict == AGREES
    assert found.score == pytest.approx(1)
    assert found.max_ulp <= 0.5
    assert found.cosine == pytest.approx(1)


def test_one_element_that_is_off_disagrees_and_is_found():
    found = judge(changed((2, 3), ROUNDED[2, 3] + 1e-3))
    assert found.verdict == DISAGREES
    assert found.worst == (2, 3)
    assert found.values == (pytest.approx(TRUTH[2, 3] + 1e-3), TRUTH[2, 3])
    assert found.max_absolute == pytest.approx(1e-3, rel=1e-3)
    assert found.max_relative == pytest.approx(1e-3 / abs(TRUTH[2, 3]), rel=1e-3)
    assert found.rms == pytest.approx(1e-3 / np.sqrt(20), rel=1e-3)


def test_the_floor_is_what_a_distance_is_measured_in():
    values = TRUTH + 1e-3
    assert judge(values, floor=1e-3, dtype="float64").score == pytest.approx(1)
    assert judge(values, floor=1e-5, dtype="float64").score == pytest.approx(100)
    assert judge(values, floor=1e-7, dtype="float64").verdict == DISAGREES


def test_verdicts_are_ordered():
    verdicts = [verdict_of(s) for s in (0, 5, DISAGREES_ABOVE * 0.99, DISAGREES_ABOVE * 1.01)]
    assert verdicts == [AGREES, AGREES, SUSPICIOUS, DISAGREES]
    assert verdict_of(float("inf")) == DISAGREES


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_sided_nan_or_infinity_disagrees(value):
    found = judge(changed((1, 1), value), floor=1.0)
    assert found.verdict == DISAGREES
    assert "one side" in found.problem
    assert found.worst == (1, 1)
    assert found.nan[0] + found.inf[0] == 1
    truth = TRUTH.copy()
    truth[1, 1] = value
    assert judge(ROUNDED, truth, floor=1.0).verdict == DISAGREES


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_same_on_both_sides_agrees_and_hides_nothing_else(value):
    truth = TRUTH.copy()
    truth[1, 1] = value
    assert judge(changed((1, 1), value), truth).verdict == AGREES
    values = changed((1, 1), value)
    values[0, 0] += 1e-2
    found = judge(values, truth)
    assert found.verdict == DISAGREES
    assert found.worst == (0, 0)


def test_infinities_of_other_sign_disagree():
    truth = TRUTH.copy()
    truth[0, 0] = np.inf
    assert judge(changed((0, 0), -np.inf), truth).verdict == DISAGREES


def test_what_leaves_the_range_of_float32_agrees_where_the_truth_has_left_it():
    """As the loss of a training that diverges."""
    truth = np.array([1.0, 1e57, 1e80, np.inf])
    with np.errstate(over="ignore"):
        rounded = truth.astype("float32")
    assert judge(rounded, truth).verdict == AGREES
    assert judge(np.array([1, np.inf, np.nan, np.nan], "float32"), truth).verdict == AGREES
    for wrong in ([np.inf, *rounded[1:]], [1, -np.inf, *rounded[2:]], [1, 3e38, *rounded[2:]]):
        assert judge(np.array(wrong, "float32"), truth).verdict == DISAGREES


def test_all_nan_agrees_only_where_the_truth_is():
    nothing = np.full((2, 2), np.nan)
    assert judge(nothing.astype("float32"), nothing).verdict == AGREES
    assert judge(nothing.astype("float32"), np.ones((2, 2))).verdict == DISAGREES


@pytest.mark.parametrize(
    ("values", "part"),
    [
        (ROUNDED[:3], "shape"),
        (ROUNDED[..., None], "shape"),
        (ROUNDED.T, "shape"),
        (ROUNDED.astype("int32"), "integer"),
        (ROUNDED > 0, "boolean"),
    ],
)
def test_another_form_disagrees(values, part):
    found = judge(values, floor=1e9)
    assert found.verdict == DISAGREES
    assert part in found.problem


def test_another_dtype_than_expected_disagrees():
    assert judge(ROUNDED, dtype="float32", expected_dtype="float32").verdict == AGREES
    found = judge(ROUNDED, dtype="float32", expected_dtype="float64")
    assert found.verdict == DISAGREES
    assert "float64" in found.problem


def test_missing_tensor_disagrees():
    assert missing("layer", "dense").verdict == DISAGREES


def test_empty_tensors_agree_if_their_shapes_do():
    assert judge(np.zeros((0, 3), "float32"), np.zeros((0, 3))).verdict == AGREES
    assert judge(np.zeros((0, 3), "float32"), np.zeros((0, 4))).verdict == DISAGREES


def test_zero_floor():
    """Constants: exact equality agrees, anything else does not."""
    zeros = np.zeros((3, 3))
    assert judge(zeros.astype("float32"), zeros).score == 0
    assert judge(zeros.astype("float32") + 1e-30, zeros).verdict == DISAGREES
    ones = np.ones((3, 3))
    assert judge(ones.astype("float32"), ones).verdict == AGREES
    assert judge(ones.astype("float32") + 2e-7, ones).verdict == DISAGREES


@pytest.mark.parametrize("dtype", ["int32", "int64", "bool"])
def test_integers_and_booleans_are_compared_exactly(dtype):
    truth = RNG.integers(0, 2, (3, 4)).astype(dtype)
    assert judge(truth.copy(), truth, dtype=dtype).score == 0
    other = truth.copy()
    other[1, 2] = 1 - other[1, 2] if dtype != "bool" else not other[1, 2]
    found = judge(other, truth, dtype=dtype)
    assert found.verdict == DISAGREES
    assert found.worst == (1, 2)


@pytest.mark.parametrize(("dtype", "unit"), [("float16", 2.0**-11), ("bfloat16", 2.0**-8)])
def test_narrow_dtypes_may_round_as_they_do(dtype, unit):
    values = (TRUTH * (1 + RNG.uniform(-unit, unit, TRUTH.shape))).astype("float32")
    if dtype == "float16":
        values = values.astype("float16")
    assert judge(values, dtype=dtype).verdict == AGREES
    assert judge(values, dtype="float32" if dtype == "bfloat16" else "float64").verdict == DISAGREES


def test_a_reference_in_float32_is_itself_rounded():
    values = np.nextafter(ROUNDED, np.float32(9))
    assert judge(values, ROUNDED, exact=False).verdict == AGREES
    assert judge(values + np.float32(1e-4), ROUNDED, exact=False).verdict == DISAGREES


def test_changed_argmax_is_counted_for_outputs():
    truth = np.array([[0.2, 0.8], [0.5, 0.4]])
    values = np.array([[0.7, 0.3], [0.5, 0.4]], "float32")
    assert compare("output", "0", values, truth, floor=1.0).argmax_changes == 1
    assert compare("layer", "a", values, truth, floor=1.0).argmax_changes is None


def test_sizes_near_the_limits_of_float64_do_not_overflow():
    truth = np.array([1e300, -1e-300])
    assert judge(truth, truth, dtype="float64").score == 0
    assert np.isfinite(judge(truth * 1.5, truth, floor=1e300, dtype="float64").score)


def test_json_has_no_infinities():
    import json

    found = judge(changed((0, 0), np.nan)).to_json()
    assert json.loads(json.dumps(found, allow_nan=False))["score"] == "inf"
