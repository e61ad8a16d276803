import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from keras import ops

from multibackend_lstm.layers import validation
from unit.tools import assert_equal


@pytest.mark.parametrize(
    ("rank", "names"),
    [
        (0, []),
        (1, ["batch"]),
        (2, ["batch", "features"]),
        (3, ["batch", "time", "features"]),
        (4, ["batch", "time", "channels", "features"]),
        (5, ["batch", "time", "axis_2", "axis_3", "features"]),
        (6, ["batch", "time", "axis_2", "axis_3", "axis_4", "features"]),
    ],
)
def test_axis_names(rank, names):
    assert validation.axis_names(rank) == names


def test_describe_shape():
    described = validation.describe_shape((None, 10, 3, 5))
    assert described == "(batch=None, time=10, channels=3, features=5)"


@pytest.mark.parametrize("rank", range(4, 7))
def test_check_rank_accepts(rank):
    validation.check_rank("layer", (2,) * rank, minimum=4, maximum=6)


@pytest.mark.parametrize(
    ("rank", "minimum", "maximum", "match"),
    [
        (
            2,
            3,
            None,
            r"layer: .*at least 3 axes, \(batch, time, features\).*Received 2.*x\[:, None",
        ),
        (3, 4, None, r"at least 4 axes.*Received 3 axes.*unflatten_features"),
        (4, 3, 3, r"must have 3 axes, .*Received 4 axes"),
        (7, 4, 6, r"4 to 6 axes.*or longer.*Received 7 axes.*Merge or split"),
        (3, 4, 6, r"4 to 6 axes.*Received 3 axes"),
    ],
)
def test_check_rank_refuses(rank, minimum, maximum, match):
    with pytest.raises(ValueError, match=match):
        validation.check_rank("layer", (2,) * rank, minimum, maximum)


def test_known_sizes():
    validation.known_sizes("layer", (None, None, 3, 5), (2, 3))
    with pytest.raises(ValueError, match=r"layer: .*axis 2 \(channels\) is\. Received .*Give that"):
        validation.known_sizes("layer", (None, None, None, 5), (2, 3))


@given(
    shape=hnp.array_shapes(min_dims=3, max_dims=6, max_side=4),
    unknown=st.sets(st.integers(0, 5)),
    rank=st.integers(2, 6),
)
def test_property_mask_that_begins_the_input_is_accepted(shape, unknown, rank):
    mask_shape = [None if axis in unknown else size for axis, size in enumerate(shape)][:rank]
    validation.check_mask("layer", mask_shape, shape, max_rank=len(shape))


@given(
    shape=hnp.array_shapes(min_dims=3, max_dims=6, max_side=4),
    data=st.data(),
)
def test_property_mask_with_another_size_is_refused(shape, data):
    rank = data.draw(st.integers(2, len(shape)))
    wrong = data.draw(st.integers(0, rank - 1))
    mask_shape = list(shape[:rank])
    mask_shape[wrong] += data.draw(st.integers(1, 3))
    with pytest.raises(ValueError, match=r"layer: the mask must .*Received a mask of shape"):
        validation.check_mask("layer", mask_shape, shape, max_rank=len(shape))


@pytest.mark.parametrize("mask_shape", [(), (2,), (2, 4, 3, 5)])
def test_mask_of_wrong_rank_is_refused(mask_shape):
    with pytest.raises(ValueError, match=r"\(batch, time\) at least and 3 axes at most"):
        validation.check_mask("layer", mask_shape, (2, 4, 3, 5), max_rank=3)


def test_check_choice():
    validation.check_choice("layer", "pool", "max", ("max", "average"))
    with pytest.raises(ValueError, match=r"layer: `pool` must be one of 'max', 'average'.*'min'"):
        validation.check_choice("layer", "pool", "min", ("max", "average"))


@pytest.mark.parametrize("value", [1, 7, np.int64(3), np.uint8(1)])
def test_check_positive_accepts(value):
    validation.check_positive("layer", "units", value)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3", None, np.float32(1)])
def test_check_positive_refuses(value):
    with pytest.raises(ValueError, match=r"layer: `units` must be an integer of at least 1.*Rece"):
        validation.check_positive("layer", "units", value)


@given(
    mask=hnp.arrays(
        "int32", hnp.array_shapes(min_dims=2, max_dims=5, max_side=3), elements=st.integers(-1, 1)
    ),
    reduction=st.sampled_from(["any", "all"]),
)
def test_property_reduce_mask(mask, reduction):
    rows = (mask != 0).reshape(*mask.shape[:2], -1)
    expected = rows.any(-1) if reduction == "any" else rows.all(-1)
    assert_equal(validation.reduce_mask(ops.convert_to_tensor(mask), reduction), expected)
