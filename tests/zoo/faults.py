"""Faults to inject into one target's worker, each of a kind that has really been seen.

A fault replaces functions of Keras inside the worker process of its target, which is asked to

    {"do": "call", "function": "faults:inject", "arguments": {"name": "tf32 matmul"}}

and made well again by `faults:restore`. The reference has a process of its own and stays well.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from multibackend_lstm.agreement.suite.running import draw_weights

L = keras.layers
BATCH, TIME, WIDTH = 4, 6, 5


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: of the fault.
        target: in which it is injected.
        group: where it first shows: a key of `comparison.GROUPS`.
        layer: class of the layer that must be blamed; None where it is no layer's.
        seen: where this kind of defect was met.
        patch: replaces what is to be faulty.
        model: builds a model that has what the fault needs.
        inputs: draws its inputs.
        options: of `check`.
        targets: that run; the others have a defect of their own in such a model.
    """

    name: str
    target: str
    group: str
    layer: str | None
    seen: str
    patch: Callable[[], None]
    model: Callable[[], keras.Model]
    inputs: Callable[[np.random.Generator], np.ndarray]
    options: dict[str, Any]
    targets: tuple[str, ...]


FAULTS: dict[str, Fault] = {}
_UNDO: list[tuple[Any, str, Any]] = []


def inject(name: str) -> None:
    """Replace what the fault of this name replaces; called in a worker."""
    FAULTS[name].patch()


def restore() -> None:
    """Undo what was replaced last, and all before; called in a worker."""
    while _UNDO:
        owner, attribute, old = _UNDO.pop()
        setattr(owner, attribute, old)


def ask(workers: Any, target: str, function: str, **arguments: Any) -> None:
    """Have a function of this module called in a target's worker."""
    from multibackend_lstm.runtimes.targets import Target

    request = {"do": "call", "function": f"zoo.faults:{function}", "arguments": arguments}
    workers.worker(target, Target.parse(target)).request(request, {}, "called")


def compared(fault: Fault, workers: Any) -> Any:
    """The report on the fault's model, as the workers are."""
    from multibackend_lstm.agreement.checking import check

    rng = np.random.default_rng(0)
    keras.backend.clear_session()
    model = fault.model()
    draw_weights(model, rng)
    all_targets = workers.targets
    workers.targets = [target for target in all_targets if str(target) in fault.targets]
    try:
        return check(model, fault.inputs(rng), workers=workers, **fault.options)
    finally:
        workers.targets = all_targets


def checked(fault: Fault, workers: Any) -> Any:
    """The report with the fault injected."""
    ask(workers, fault.target, "inject", name=fault.name)
    try:
        return compared(fault, workers)
    finally:
        ask(workers, fault.target, "restore")


def _normal(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(BATCH, TIME, WIDTH)).astype("float32")


def _padded(rng: np.random.Generator) -> np.ndarray:
    """What `Masking` takes for sequences of 6, 3, 4 and 5 steps."""
    x = _normal(rng)
    for sample, length in enumerate((6, 3, 4, 5)):
        x[sample, length:] = 0
    return x


def _square(rng: np.random.Generator) -> np.ndarray:
    """As many steps as samples, so that a transposed mask has the right shape."""
    return _padded(rng)[:, :BATCH]


def _layers(*layers: Callable[[], Any], time: int = TIME) -> Callable[[], keras.Model]:
    def model() -> keras.Model:
        return keras.Sequential([keras.Input((time, WIDTH)), *(layer() for layer in layers)])

    return model


def _fault(
    name: str,
    target: str,
    layer: str | None,
    seen: str,
    model: Callable[[], keras.Model],
    group: str = "layers alone",
    inputs: Callable[[np.random.Generator], np.ndarray] = _normal,
    options: dict[str, Any] | None = None,
    targets: tuple[str, ...] = ("jax@cpu", "torch@cpu", "tensorflow@cpu"),
) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Enter the patch that this decorates into `FAULTS`."""

    def enter(patch: Callable[[], None]) -> Callable[[], None]:
        FAULTS[name] = Fault(
            name, target, group, layer, seen, patch, model, inputs, options or {}, targets
        )
        return patch

    return enter


def _replace(owner: Any, attribute: str, change: Callable[..., Any]) -> None:
    """Put `change(old, *arguments)` in the place of `owner.attribute`, `old`."""
    old = getattr(owner, attribute)

    @functools.wraps(old)
    def new(*args: Any, **kwargs: Any) -> Any:
        return change(old, *args, **kwargs)

    _UNDO.append((owner, attribute, old))
    setattr(owner, attribute, new)


def _backend(name: str) -> Any:
    """A module of the running backend, such as `nn`: what keras.ops calls."""
    from keras.src import backend

    return getattr(backend, name)


def _with_recurrent_kernel(cell: Any, kernel: Any, call: Callable[[], Any]) -> Any:
    """Call with another tensor in the place of a cell's recurrent kernel."""
    own = cell.recurrent_kernel
    vars(cell)["recurrent_kernel"] = kernel
    try:
        return call()
    finally:
        vars(cell)["recurrent_kernel"] = own


@_fault(
    "tf32 matmul",
    "jax@cpu",
    "Dense",
    "TF32 by default on GPUs, https://github.com/pytorch/pytorch/issues/67384",
    _layers(lambda: L.LayerNormalization(), lambda: L.Dense(4), lambda: L.LSTM(3)),
)
def _tf32() -> None:
    def matmul(old: Any, a: Any, b: Any) -> Any:
        from jax import lax

        return old(lax.reduce_precision(a, 8, 10), lax.reduce_precision(ops.array(b), 8, 10))

    _replace(_backend("numpy"), "matmul", matmul)


@_fault(
    "bf16 accumulation",
    "torch@cpu",
    "Dense",
    "reduced-precision reductions: torch.backends.cuda.matmul."
    "allow_bf16_reduced_precision_reduction",
    _layers(lambda: L.Conv1D(8, 3), lambda: L.Dense(4), lambda: L.GlobalAveragePooling1D()),
)
def _bf16_accumulation() -> None:
    def matmul(old: Any, a: Any, b: Any) -> Any:
        total = 0.0
        for k in range(a.shape[-1]):
            term = old(a[..., k : k + 1], ops.convert_to_tensor(b)[..., k : k + 1, :])
            total = ops.cast(ops.cast(total + term, "bfloat16"), "float32")
        return total

    _replace(_backend("numpy"), "matmul", matmul)


@_fault(
    "same average pooling counts the padding",
    "tensorflow@cpu",
    "AveragePooling1D",
    "the torch backend of Keras 3.15.1 itself; count_include_pad of torch.nn.AvgPool1d",
    # Torch has this very defect, so that it stays out.
    _layers(lambda: L.Dense(3), lambda: L.AveragePooling1D(4, padding="same"), lambda: L.GRU(3)),
    targets=("jax@cpu", "tensorflow@cpu"),
)
def _average_pooling() -> None:
    def average_pool(old: Any, x: Any, size: Any, strides: Any, padding: str, form: str) -> Any:
        if padding == "same":
            missing = -x.shape[1] % strides[0]
            before = missing // 2
            x = ops.pad(x, ((0, 0), (before, missing - before), (0, 0)))
        return old(x, size, strides, "valid", form)

    _replace(_backend("nn"), "average_pool", average_pool)


@_fault(
    "even kernel padded on the wrong side",
    "torch@cpu",
    "Conv1D",
    'padding="same" of PyTorch, https://github.com/pytorch/pytorch/issues/3867',
    _layers(lambda: L.Dense(3), lambda: L.Conv1D(4, 4, padding="same"), lambda: L.GRU(3)),
)
def _even_kernel() -> None:
    def conv(old: Any, x: Any, kernel: Any, *args: Any, **kwargs: Any) -> Any:
        y = old(ops.flip(x, 1), ops.flip(ops.convert_to_tensor(kernel), 0), *args, **kwargs)
        return ops.flip(y, 1)

    _replace(_backend("nn"), "conv", conv)


@_fault(
    "go_backwards output reversed",
    "jax@cpu",
    "LSTM",
    "cuDNN path of the JAX backend of Keras 3.15.1",
    _layers(lambda: L.LSTM(4, return_sequences=True, go_backwards=True), lambda: L.GRU(3)),
)
def _go_backwards() -> None:
    def call(old: Any, layer: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = old(layer, *args, **kwargs)
        return ops.flip(outputs, 1) if layer.go_backwards else outputs

    _replace(L.LSTM, "call", call)


@_fault(
    "gate order swapped",
    "torch@cpu",
    "LSTM",
    "gates i, f, c, o in Keras and PyTorch, i, o, f, c in ONNX: weights carried over as they are",
    _layers(lambda: L.Dense(3), lambda: L.LSTM(4)),
)
def _gate_order() -> None:
    from keras.src import backend

    def lstm(old: Any, *args: Any, **weights: Any) -> Any:
        for name in ("kernel", "recurrent_kernel", "bias"):
            i, f, c, o = ops.split(ops.convert_to_tensor(weights[name]), 4, axis=-1)
            weights[name] = ops.concatenate([i, o, f, c], axis=-1)
        return old(*args, **weights)

    _replace(backend, "lstm", lstm)


@_fault(
    "forget bias dropped",
    "tensorflow@cpu",
    "LSTM",
    "unit_forget_bias, which is 1 in Keras and absent in PyTorch",
    _layers(lambda: L.Dense(3), lambda: L.LSTM(4, return_sequences=True), lambda: L.GRU(2)),
)
def _forget_bias() -> None:
    def fused(old: Any, cell: Any, z: Any, c: Any) -> Any:
        bias = ops.split(ops.convert_to_tensor(cell.bias), 4)[1]
        return old(cell, (z[0], z[1] - bias, z[2], z[3]), c)

    _replace(L.LSTMCell, "_compute_carry_and_output_fused", fused)


@_fault(
    "BatchNormalization with unbiased variance",
    "torch@cpu",
    "BatchNormalization",
    "PyTorch's running variance is unbiased, that of Keras is not",
    _layers(lambda: L.LSTM(4, return_sequences=True), lambda: L.BatchNormalization()),
)
def _unbiased() -> None:
    def moments(old: Any, layer: Any, x: Any, mask: Any) -> Any:
        mean, variance = old(layer, x, mask)
        count = x.shape[0] * x.shape[1]
        return mean, variance * (count / (count - 1))

    _replace(L.BatchNormalization, "_moments", moments)


@_fault(
    "epsilon 1e-3 for 1e-5",
    "jax@cpu",
    "BatchNormalization",
    "Keras's default against PyTorch's",
    _layers(lambda: L.Conv1D(4, 3), lambda: L.BatchNormalization(epsilon=1e-5), lambda: L.GRU(3)),
)
def _epsilon() -> None:
    def batch_normalization(old: Any, *args: Any, epsilon: float, **kwargs: Any) -> Any:
        return old(*args, epsilon=1e-3, **kwargs)

    _replace(_backend("nn"), "batch_normalization", _by_name(batch_normalization))


def _by_name(change: Callable[..., Any]) -> Callable[..., Any]:
    """For a function whose `epsilon` comes last, by position or by name."""

    def new(old: Any, *args: Any, **kwargs: Any) -> Any:
        if "epsilon" not in kwargs:
            args, kwargs = args[:-1], {**kwargs, "epsilon": args[-1]}
        return change(old, *args, **kwargs)

    return new


@_fault(
    "momentum inverted",
    "tensorflow@cpu",
    "BatchNormalization",
    "PyTorch's momentum is 1 less that of Keras",
    _layers(lambda: L.Dense(4), lambda: L.BatchNormalization(), lambda: L.LSTM(3)),
)
def _momentum() -> None:
    def build(old: Any, layer: Any, shape: Any) -> None:
        old(layer, shape)
        layer.momentum = 1 - layer.momentum

    _replace(L.BatchNormalization, "build", build)


@_fault(
    "tanh-approximate GELU for the exact one",
    "tensorflow@cpu",
    "Activation",
    "jax.nn.gelu approximates by default, torch.nn.GELU and Keras do not",
    _layers(lambda: L.Dense(4), lambda: L.Activation("gelu"), lambda: L.LSTM(3)),
)
def _gelu() -> None:
    def gelu(old: Any, x: Any, approximate: bool = False) -> Any:
        return old(x, approximate=True)

    _replace(_backend("nn"), "gelu", gelu)


@_fault(
    "hard sigmoid for sigmoid",
    "jax@cpu",
    "LSTM",
    "recurrent_activation of Keras 2 against that of tf.keras and Keras 3",
    _layers(lambda: L.Dense(4, activation="sigmoid"), lambda: L.LSTM(3), lambda: L.Dense(2)),
)
def _hard_sigmoid() -> None:
    def fused(old: Any, cell: Any, z: Any, c: Any) -> Any:
        cell.recurrent_activation = keras.activations.hard_sigmoid
        return old(cell, z, c)

    _replace(L.LSTMCell, "_compute_carry_and_output_fused", fused)


@_fault(
    "mask ignored",
    "tensorflow@cpu",
    "LSTM",
    "fast paths that take no mask, such as torch.nn.LSTM's",
    _layers(lambda: L.Masking(), lambda: L.LSTM(4, return_sequences=True), lambda: L.GRU(3)),
    inputs=_padded,
)
def _mask_ignored() -> None:
    def call(old: Any, layer: Any, *args: Any, mask: Any = None, **kwargs: Any) -> Any:
        return old(layer, *args, mask=None, **kwargs)

    _replace(L.LSTM, "call", call)


@_fault(
    "mask applied to the wrong axis",
    "torch@cpu",
    "GRU",
    "time-major loops whose mask is batch-major",
    _layers(lambda: L.Masking(), lambda: L.GRU(4), lambda: L.Dense(2), time=BATCH),
    inputs=_square,
)
def _mask_axis() -> None:
    def call(old: Any, layer: Any, *args: Any, mask: Any, **kwargs: Any) -> Any:
        return old(layer, *args, mask=ops.transpose(mask), **kwargs)

    _replace(L.GRU, "call", call)


@_fault(
    "last step taken from the padded end",
    "jax@cpu",
    "GRU",
    "outputs[:, -1] of a padded batch in place of each sequence's last step",
    _layers(lambda: L.Masking(), lambda: L.GRU(4), lambda: L.Dense(2)),
    inputs=_padded,
)
def _padded_end() -> None:
    def call(old: Any, layer: Any, *args: Any, mask: Any, **kwargs: Any) -> Any:
        outputs = old(layer, *args, mask=mask, **kwargs)
        return outputs * ops.cast(mask[:, -1:], outputs.dtype)  # a packed batch is padded by zeros

    _replace(L.GRU, "call", call)


@_fault(
    "recurrent kernel's gradient off at one step",
    "torch@cpu",
    "SimpleRNN",
    "backward passes written by hand",
    _layers(lambda: L.Dense(3), lambda: L.SimpleRNN(4), lambda: L.Dense(2)),
)
def _recurrent_gradient() -> None:
    calls = [0]

    def call(old: Any, cell: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        kernel = ops.convert_to_tensor(cell.recurrent_kernel)
        if calls[0] % (TIME + 1) == 4:  # Keras's loop calls once more, for the output's shape
            kernel = kernel + 0.1 * (kernel - ops.stop_gradient(kernel))
        return _with_recurrent_kernel(cell, kernel, lambda: old(cell, *args, **kwargs))

    _replace(L.SimpleRNNCell, "call", call)


@_fault(
    "Adam's epsilon inside the root",
    "tensorflow@cpu",
    "adam",
    "the two forms of Adam; RMSprop's epsilon stands inside in Keras, outside in PyTorch",
    _layers(lambda: L.LSTM(4), lambda: L.Dense(2)),
)
def _adam_epsilon() -> None:
    def update_step(old: Any, adam: Any, gradient: Any, variable: Any, rate: Any) -> None:
        step = ops.cast(adam.iterations + 1, variable.dtype)
        index = adam._get_variable_index(variable)
        m, v = adam._momentums[index], adam._velocities[index]
        adam.assign_add(m, (gradient - m) * (1 - adam.beta_1))
        adam.assign_add(v, (ops.square(gradient) - v) * (1 - adam.beta_2))
        corrections = ops.sqrt(1 - adam.beta_2**step) / (1 - adam.beta_1**step)
        change = ops.cast(rate, variable.dtype) * corrections * m / ops.sqrt(v + adam.epsilon)
        adam.assign_sub(variable, change)

    _replace(keras.optimizers.Adam, "update_step", update_step)


@_fault(
    "stale state in a stateful layer",
    "tensorflow@cpu",
    "LSTM",
    "on the JAX backend of Keras 3.15.1 a stateful layer starts anew in every predict",
    lambda: keras.Sequential(
        [keras.Input(batch_shape=(BATCH, TIME, WIDTH)), L.LSTM(3, stateful=True)]
    ),
    group="prediction",
    # JAX has this very defect, and `fit` of a stateful layer fails on torch.
    options={"steps": None},
    targets=("torch@cpu", "tensorflow@cpu"),
)
def _stale_state() -> None:
    def call(old: Any, layer: Any, *args: Any, **kwargs: Any) -> Any:
        before = [ops.copy(state) for state in layer.states]
        outputs = old(layer, *args, **kwargs)
        for state, value in zip(layer.states, before, strict=True):
            state.assign(value)
        return outputs

    _replace(L.LSTM, "call", call)


@_fault(
    "weights transposed with equal dimensions",
    "jax@cpu",
    "SimpleRNN",
    "weight_hh of PyTorch is the transpose of Keras's recurrent kernel, and square",
    _layers(lambda: L.Dense(3), lambda: L.SimpleRNN(4), lambda: L.Dense(2)),
)
def _transposed() -> None:
    def call(old: Any, cell: Any, *args: Any, **kwargs: Any) -> Any:
        kernel = ops.transpose(ops.convert_to_tensor(cell.recurrent_kernel))
        return _with_recurrent_kernel(cell, kernel, lambda: old(cell, *args, **kwargs))

    _replace(L.SimpleRNNCell, "call", call)


@_fault(
    "softmax over the wrong axis",
    "tensorflow@cpu",
    "Softmax",
    "torch.nn.Softmax without `dim` chose an axis by rank",
    _layers(lambda: L.Dense(4), lambda: L.Softmax(), lambda: L.GRU(3)),
)
def _softmax() -> None:
    def call(old: Any, layer: Any, inputs: Any, mask: Any = None) -> Any:
        return ops.softmax(inputs, axis=1)

    _replace(L.Softmax, "call", call)


@_fault(
    "same max pooling pads with zeros",
    "jax@cpu",
    "MaxPooling1D",
    "padding ahead of a pooling that has no `same` of its own",
    _layers(lambda: L.Dense(3), lambda: L.MaxPooling1D(4, padding="same"), lambda: L.GRU(3)),
)
def _max_pooling() -> None:
    def max_pool(old: Any, x: Any, size: Any, strides: Any, padding: str, form: str) -> Any:
        missing = -x.shape[1] % strides[0]
        before = missing // 2
        x = ops.pad(x, ((0, 0), (before, missing - before), (0, 0)))
        return old(x, size, strides, "valid", form)

    _replace(_backend("nn"), "max_pool", max_pool)
