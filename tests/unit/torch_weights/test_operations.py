"""Operations between a convolution and what comes behind: followed where they can be, or refused.

Every case is compared with PyTorch in float64, with weights that differ in every element, so that a
wrong permutation shows.
"""

import keras
import numpy as np
import pytest
from keras import ops

from multibackend_lstm.porting import PortingError, from_torch
from multibackend_lstm.torch_weights.conversion import plan
from unit.tools import normal
from unit.torch_weights.test_conversion import assert_ports, randomise

torch = pytest.importorskip("torch")
nn = torch.nn
layers = keras.layers

B, T, F, K = 2, 6, 4, 3  # batch, time, filters, units


class Net(nn.Module):
    """A convolution over time, an operation, a linear layer."""

    def __init__(self, operation, columns):
        super().__init__()
        self.conv = nn.Conv1d(2, F, 3, padding=1)
        self.fc = nn.Linear(columns, K)
        self.operation = operation

    def forward(self, x):  # (batch, time, 2)
        return self.fc(self.operation(self.conv(x.movedim(-1, 1))))


def keras_net(operation):
    inputs = keras.Input((T, 2), batch_size=B)
    x = operation(layers.Conv1D(F, 3, padding="same")(inputs))
    return keras.Model(inputs, layers.Dense(K)(x))


GATE = np.linspace(0.2, 1.0, F, dtype="float32")
STEPS = np.linspace(-1.0, 1.0, T, dtype="float32")[:, None]

# Keras's (batch, time, filters) and PyTorch's (batch, filters, time), to the same features.
WHOLE = {
    "last step": (lambda x: x[:, -1], lambda x: x[..., -1]),
    "last step, spelled out": (lambda x: x[:, -1, :], lambda x: x[..., -1]),
    "ellipsis": (lambda x: x[..., -1, :], lambda x: x[..., -1]),
    "new axis": (lambda x: x[:, None, 2][:, 0], lambda x: x[..., 2]),
    "some filters": (lambda x: x[:, 0, 1:3], lambda x: x[:, 1:3, 0]),
    "one filter": (lambda x: x[..., 1], lambda x: x[:, 1]),
    "filters backwards": (lambda x: ops.flip(x[:, 0], -1), lambda x: x[..., 0].flip(1)),
    "take": (lambda x: ops.take(x, -1, axis=1), lambda x: x[..., -1]),
    "take several": (
        lambda x: ops.sum(ops.take(x, [0, 2, 2], axis=1), 1),
        lambda x: x[..., [0, 2, 2]].sum(2),
    ),
    "take along": (
        lambda x: ops.take_along_axis(x, np.full((B, 1, F), 2, "int32"), 1)[:, 0],
        lambda x: x[..., 2],
    ),
    "mean": (lambda x: ops.mean(x, axis=1), lambda x: x.mean(2)),
    "mean, kept": (lambda x: ops.mean(x, axis=1, keepdims=True)[:, 0], lambda x: x.mean(2)),
    "max": (lambda x: ops.max(x, axis=1), lambda x: x.amax(2)),
    "amax": (lambda x: ops.amax(x, axis=-2), lambda x: x.amax(2)),
    "sum": (lambda x: ops.sum(x, axis=(1,)), lambda x: x.sum(2)),
    "std": (lambda x: ops.std(x, axis=1), lambda x: x.std(2, correction=0)),
    "logsumexp": (lambda x: ops.logsumexp(x, axis=1), lambda x: x.logsumexp(2)),
    "norm": (lambda x: ops.norm(x, axis=(1,)), lambda x: x.norm(dim=2)),
    "average": (lambda x: ops.average(x, axis=1), lambda x: x.mean(2)),
    "moments": (lambda x: ops.add(*ops.moments(x, 1)),
                lambda x: x.mean(2) + x.var(2, correction=0)),
    "mean of filters": (lambda x: ops.mean(x, axis=-1), lambda x: x.mean(1)),
    "flip": (lambda x: ops.flip(x, 1)[:, 0], lambda x: x[..., -1]),
    "roll": (lambda x: ops.roll(x, 2, 1)[:, 0], lambda x: x.roll(2, 2)[..., 0]),
    "slice of time": (lambda x: ops.sum(x[:, 2:4], 1), lambda x: x[..., 2:4].sum(2)),
    "slice": (lambda x: ops.sum(ops.slice(x, (0, 1, 0), (B, 2, F)), 1),
              lambda x: x[..., 1:3].sum(2)),
    "cumsum": (lambda x: ops.cumsum(x, 1)[:, 3], lambda x: x.cumsum(2)[..., 3]),
    "sort": (lambda x: ops.sort(x, 1)[:, 1], lambda x: x.sort(2)[0][..., 1]),
    "sorted filters": (lambda x: ops.sort(x, -1)[:, 1], lambda x: x.sort(1)[0][..., 1]),
    "split": (lambda x: ops.max(ops.split(x, 2, 1)[1], 1), lambda x: x[..., 3:].amax(2)),
    "unstack": (lambda x: ops.unstack(x, axis=1)[2], lambda x: x[..., 2]),
    "pad": (lambda x: ops.pad(x, ((0, 0), (2, 0), (0, 0)))[:, 3], lambda x: x[..., 1]),
    "repeat": (lambda x: ops.repeat(x, 2, 1)[:, 3], lambda x: x[..., 1]),
    "tile": (lambda x: ops.tile(x, (1, 2, 1))[:, 7], lambda x: x[..., 1]),
    "glu": (lambda x: ops.glu(x, -1)[:, 0], lambda x: nn.functional.glu(x, 1)[..., 0]),
    "expand and squeeze": (
        lambda x: ops.squeeze(ops.expand_dims(x[:, 1], 1), 1), lambda x: x[..., 1]),
    "reshaped by axes of one": (
        lambda x: layers.Reshape((T, 1, F, 1))(x)[:, 0, 0, :, 0], lambda x: x[..., 0]),
    "first and last": (
        lambda x: ops.concatenate([x[:, 0], x[:, -1]], -1),
        lambda x: torch.cat([x[..., 0], x[..., -1]], 1),
    ),
    "pooled twice": (
        lambda x: layers.Concatenate()([ops.mean(x, 1), ops.max(x, 1)]),
        lambda x: torch.cat([x.mean(2), x.amax(2)], 1),
    ),
    "over time": (lambda x: ops.sum(ops.concatenate([x, 2 * x[:, :2]], 1), 1),
                  lambda x: x.sum(2) + 2 * x[..., :2].sum(2)),
    "stack": (lambda x: ops.max(ops.stack([x[:, 0], x[:, 1]], 1), 1),
              lambda x: x[..., :2].amax(2)),
    "softmax over time": (lambda x: ops.sum(ops.softmax(x, 1) * x, 1),
                          lambda x: (x.softmax(2) * x).sum(2)),
    "attention": (
        lambda x: ops.sum(ops.softmax(ops.mean(x, -1, keepdims=True), 1) * x, 1),
        lambda x: (x.mean(1, keepdim=True).softmax(2) * x).sum(2),
    ),
    "attention, multiplied": (
        lambda x: ops.matmul(ops.softmax(ops.mean(x, -1), -1)[:, None], x)[:, 0],
        lambda x: (x.mean(1).softmax(-1)[:, None] @ x.movedim(1, 2))[:, 0],
    ),
    "einsum": (
        lambda x: ops.einsum("bt,btf->bf", ops.mean(x, -1), x),
        lambda x: torch.einsum("bt,bft->bf", x.mean(1), x),
    ),
    "einsum without arrow": (
        lambda x: ops.einsum("bt,ctf", ops.mean(x, -1), x)[0],
        lambda x: torch.einsum("bt,cft->bcf", x.mean(1), x)[0],
    ),
    "dot": (
        lambda x: layers.Dot(axes=(1, 1))([ops.mean(x, -1), x]),
        lambda x: torch.einsum("bt,bft->bf", x.mean(1), x),
    ),
    "dot of features": (
        lambda x: layers.Dot(axes=(1, 2))([x[:, -1], x]),
        lambda x: torch.einsum("bf,bft->bt", x[..., -1], x),
    ),
    "attention layer": (
        lambda x: ops.mean(layers.Attention()([x, x]), 1),
        lambda x: ((x.movedim(1, 2) @ x).softmax(-1) @ x.movedim(1, 2)).mean(1),
    ),
    "squeeze and excite": (
        lambda x: ops.max(x * ops.sigmoid(ops.mean(x, 1, keepdims=True)), 1),
        lambda x: (x * x.mean(2, keepdim=True).sigmoid()).amax(2),
    ),
    "squeeze and excite, layers": (
        lambda x: ops.max(layers.Multiply()([x, layers.GlobalAveragePooling1D()(x)]), 1),
        lambda x: (x * x.mean(2, keepdim=True)).amax(2),
    ),
    "constant of each filter": (
        lambda x: (x * GATE)[:, 1], lambda x: x[..., 1] * torch.tensor(GATE)),
    "constant of each step": (
        lambda x: ops.sum(x * STEPS, 1), lambda x: (x * torch.tensor(STEPS[:, 0])).sum(2)),
    "where": (lambda x: ops.where(x > 0.1, x, 0.0)[:, 1],
              lambda x: torch.where(x > 0.1, x, 0.0)[..., 1]),
    "clip and power": (lambda x: (ops.clip(x, -1, 1) ** 2)[:, 1],
                       lambda x: x.clamp(-1, 1)[..., 1] ** 2),
    "swapped": (lambda x: ops.swapaxes(x, 1, 2)[..., 1], lambda x: x[..., 1]),
    "moved": (lambda x: ops.moveaxis(x, 2, 1)[..., 1], lambda x: x[..., 1]),
    "transposed": (lambda x: ops.transpose(x, (0, 2, 1))[..., 1], lambda x: x[..., 1]),
    "time into the batch": (
        lambda x: ops.reshape(x, (-1, F)), lambda x: x.movedim(1, 2).reshape(-1, F)),
    "argmax of time": (lambda x: ops.cast(ops.argmax(x, 1), "float32"),
                       lambda x: x.argmax(2).to(x.dtype)),
    "broadcast": (lambda x: ops.broadcast_to(x[:, :1], (B, T, F))[:, 3], lambda x: x[..., 0]),
}  # fmt: skip
# What merges time and filters, in PyTorch as it comes.
FLATTENED = {
    "roll": (lambda x: layers.Flatten()(ops.roll(x, 1, 1)), lambda x: x.roll(1, 2).flatten(1)),
    "slice": (lambda x: ops.reshape(x[:, :3], (B, -1)), lambda x: x[..., :3].flatten(1)),
    "concatenation": (
        lambda x: layers.Flatten()(ops.concatenate([x, ops.mean(x, 1, keepdims=True)], 1)),
        lambda x: torch.cat([x, x.mean(2, keepdim=True)], 2).flatten(1),
    ),
    "gate": (
        lambda x: layers.Flatten()(x * ops.mean(x, 1, keepdims=True)),
        lambda x: (x * x.mean(2, keepdim=True)).flatten(1),
    ),
    "swapped before": (lambda x: layers.Flatten()(ops.swapaxes(x, 1, 2)), lambda x: x.flatten(1)),
    "mean of merged": (
        lambda x: ops.concatenate([ops.mean(layers.Flatten()(x), -1, keepdims=True), x[:, 0]], 1),
        lambda x: torch.cat([x.flatten(1).mean(1, keepdim=True), x[..., 0]], 1),
    ),
    "softmax of merged": (
        lambda x: ops.softmax(layers.Flatten()(x), -1), lambda x: x.flatten(1).softmax(1)),
}  # fmt: skip


def columns_of(function):
    return function(torch.zeros(B, F, T)).shape[-1]


@pytest.mark.parametrize("name", WHOLE)
def test_what_keeps_an_axis_whole_permutes_nothing(name):
    ours, theirs = WHOLE[name]
    model = keras_net(ours)
    module = randomise(Net(theirs, columns_of(theirs)))
    _, _, pairs = plan(module, model, None, "channels_first")
    assert not any(getattr(w, "columns", None) for pair in pairs for w in pair.layer.weights)
    assert_ports(module, model, normal(B, T, 2))


FREE = (
    "last step", "take", "mean", "max", "logsumexp", "attention", "attention, multiplied", "einsum",
    "dot", "attention layer", "squeeze and excite", "squeeze and excite, layers", "slice of time",
    "over time", "flip",
)  # fmt: skip


@pytest.mark.parametrize("name", FREE)
def test_batch_and_time_may_be_free(name):
    ours, theirs = WHOLE[name]
    inputs = keras.Input((None, 2))
    x = ours(layers.Conv1D(F, 3, padding="same")(inputs))
    model = keras.Model(inputs, layers.Dense(K)(x))
    assert_ports(Net(theirs, columns_of(theirs)), model, normal(B, T, 2))


@pytest.mark.parametrize("name", FLATTENED)
def test_what_merges_axes_permutes(name):
    ours, theirs = FLATTENED[name]
    assert_ports(Net(theirs, columns_of(theirs)), keras_net(ours), normal(B, T, 2))


MIXED = {
    "slice of merged": lambda x: layers.Flatten()(x)[:, :9],
    "element of merged": lambda x: ops.reshape(layers.Flatten()(x)[:, 5], (B, 1)),
    "take from merged": lambda x: ops.take(layers.Flatten()(x), [3, 4], axis=1),
    "cumsum of merged": lambda x: ops.cumsum(layers.Flatten()(x), -1),
    "flip of merged": lambda x: ops.flip(layers.Flatten()(x), -1),
    "glu of merged": lambda x: ops.glu(layers.Flatten()(x), -1),
    "argmax of merged": lambda x: ops.stack([ops.argmax(layers.Flatten()(x), -1)] * 2, 1),
    "constant times merged": lambda x: layers.Flatten()(x) * np.arange(T * F, dtype="float32"),
    "product with merged": lambda x: ops.matmul(
        layers.Flatten()(x), np.ones((T * F, 2), "float32")
    ),
    "einsum with merged": lambda x: ops.einsum(
        "bf,fg->bg", layers.Flatten()(x), np.ones((T * F, 2), "float32")
    ),
    "merged and swapped": lambda x: (
        layers.Flatten()(x) + ops.reshape(ops.swapaxes(x, 1, 2), (B, -1))
    ),
    "filters split": lambda x: ops.reshape(x, (B, T * 2, F // 2))[:, 1],
    "merged behind a product": lambda x: layers.Flatten()(layers.Attention()([x, x])),
    "merged behind einsum": lambda x: layers.Flatten()(
        ops.einsum("bst,btf->bsf", x @ ops.swapaxes(x, 1, 2), x)
    ),
    "batch and filters": lambda x: ops.reshape(x, (-1, 2)),
    "not known": lambda x: ops.diff(x, axis=1)[:, 0],
    "everything in one": lambda x: ops.reshape(ops.cumsum(x), (B, -1)),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXED)
def test_what_mixes_axes_is_refused(name):
    model = keras_net(MIXED[name])
    module = Net(lambda x: x, model.layers[-1].kernel.shape[0])
    before = model.get_weights()
    with pytest.raises(PortingError, match=r"cannot be told, at '.*flatten_order"):
        from_torch(module, model)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


class Conv2dNet(Net):
    """(batch, time, channels, 2)"""

    def __init__(self, operation, columns):
        super().__init__(operation, columns)
        self.conv = nn.Conv2d(2, F, 3, padding=1)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda x: layers.Flatten()(x[:, -1]), lambda x: x[:, :, -1].flatten(1)),
        (lambda x: layers.Flatten()(ops.mean(x, 2)), lambda x: x.mean(3).flatten(1)),
        (lambda x: layers.Flatten()(ops.mean(x, -1)), lambda x: x.mean(1).flatten(1)),
        (lambda x: ops.max(x, (1, 2)), lambda x: x.amax((2, 3))),
        (
            lambda x: ops.reshape(ops.take(x, 1, axis=2), (B, T * F)),
            lambda x: x[..., 1].flatten(1),
        ),
        (
            lambda x: ops.mean(ops.reshape(x, (B, T, 3 * F)), 1),
            lambda x: x.movedim(1, 2).flatten(2).mean(1)
        ),
    ],
)  # fmt: skip
def test_two_axes_before_the_filters(ours, theirs):
    inputs = keras.Input((T, 3, 2), batch_size=B)
    x = ours(layers.Conv2D(F, 3, padding="same")(inputs))
    model = keras.Model(inputs, layers.Dense(K)(x))
    columns = theirs(torch.zeros(B, F, T, 3)).shape[-1]
    assert_ports(Conv2dNet(theirs, columns), model, normal(B, T, 3, 2))
