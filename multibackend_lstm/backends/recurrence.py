"""The recurrences of LSTM and GRU over all steps, forwards and backwards, in `keras.ops`.

A backend that differentiates a loop by itself saves every intermediate of every step, and adds
up the gradients of the kernels step by step. Here the backward pass is written out. The forward
pass saves the states alone. The backward pass goes through the sequence in chunks of steps:
for all steps of a chunk at once it computes the gates again, from the states that are known,
and all factors of the gradient; its loop only carries the gradient of the states through; and
the gradients of the kernels are one matrix product a chunk. Chunks are of a size that stays in
a processor's cache: for 500 steps of 64 units that halves the time of a training step.

Everything here has time first, `(time, batch, ...)`. `valid` is a boolean `(time, batch, 1)`
tensor or None: where it is False the step leaves the states as they are. States, gates and
sums have the dtype of the given states; matrix products that of the kernels.
A backend's file tells its automatic differentiation which function is the gradient of which.
"""

from collections.abc import Callable
from typing import Any

from keras import ops

from multibackend_lstm.backends.base import Backend

# Bytes of the gates of one chunk, about the size of a second-level cache.
CHUNK_BYTES = 3_500_000


def chunk_size(x: Any, width: int) -> Any:
    """Steps a chunk, of `(batch, width)` numbers each; all steps where sizes are unknown."""
    time, batch = x.shape[:2]
    if not isinstance(time, int) or not isinstance(batch, int):
        return time
    largest = max(1, CHUNK_BYTES // (4 * width * max(batch, 1)))
    if largest >= time:
        return time
    # Without a remainder, if there is such a size not much smaller.
    divisors = [size for size in range(largest, largest // 2, -1) if time % size == 0]
    return divisors[0] if divisors else largest


def in_chunks(
    backend: Backend, call: Callable[..., Any], states: Any, xs: list[Any], size: Any, reverse: bool
) -> Any:
    """As `Backend.scan`, but `call(states, x)` takes and returns `size` steps, or a last few."""
    time = xs[0].shape[0]
    if not isinstance(time, int) or not isinstance(size, int) or size >= time:
        return call(states, xs)
    rest = time % size
    # The rest comes after all whole chunks, in the direction of the loop.
    whole = slice(rest, time) if reverse else slice(0, time - rest)
    last = slice(0, rest) if reverse else slice(time - rest, time)

    def fold(x: Any) -> Any:
        return ops.reshape(x[whole], (time // size, size, *ops.shape(x)[1:]))

    states, ys = backend.scan(call, states, [fold(x) for x in xs], reverse=reverse)
    ys = [ops.reshape(y, (time - rest, *ops.shape(y)[2:])) for y in ys]
    if rest:
        states, last_ys = call(states, [x[last] for x in xs])
        pairs = zip(last_ys, ys, strict=True) if reverse else zip(ys, last_ys, strict=True)
        ys = [ops.concatenate(pair, axis=0) for pair in pairs]
    return states, ys


def _gates_of(backend: Backend, kinds: str, units: int, dtype: Any) -> Callable[[Any], Any]:
    """A function of `(..., gates * units)`: sigmoid or tanh of each gate, as in `"sst"`.

    One tanh over the whole width, since sigmoid(x) = tanh(x / 2) / 2 + 1/2: twice as fast on
    XLA's processors as one call for each.
    """

    def per_unit(sigmoid: float, tanh: float) -> Any:
        values = [sigmoid if kind == "s" else tanh for kind in kinds for _ in range(units)]
        return ops.convert_to_tensor(values, dtype)

    scale, shift = per_unit(0.5, 1.0), per_unit(0.5, 0.0)
    return lambda x: backend.tanh(x * scale) * scale + shift


def _matmul(backend: Backend, x: Any, kernel: Any, dtype: Any) -> Any:
    """Matrix product in the kernel's dtype, returned in `dtype`."""
    return ops.cast(backend.matmul(ops.cast(x, kernel.dtype), kernel), dtype)


def _outer(backend: Backend, x: Any, gradient: Any, kernel: Any) -> Any:
    """Sum of the outer products over steps and samples: one matrix product."""
    flat_x = ops.reshape(x, (-1, x.shape[-1]))
    flat_gradient = ops.reshape(gradient, (-1, gradient.shape[-1]))
    return _matmul(
        backend, ops.transpose(flat_x), ops.cast(flat_gradient, kernel.dtype), gradient.dtype
    )


def _previous(first: Any, all_steps: Any) -> Any:
    """The states before each step, from the initial ones and those after each step."""
    return ops.concatenate([ops.expand_dims(first, 0), all_steps], axis=0)[:-1]


def _with(valid: Any, *xs: Any) -> list[Any]:
    """What a loop runs over; without a mask there is nothing to select."""
    return [*xs] if valid is None else [*xs, valid]


def _select(valid: list[Any], new: Any, old: Any) -> Any:
    return ops.where(valid[0], new, old) if valid else new


def _cast_like(values: Any, likes: Any) -> tuple[Any, ...]:
    return tuple(ops.cast(value, like.dtype) for value, like in zip(values, likes, strict=True))


def lstm(
    backend: Backend,
    x: Any,
    h: Any,
    c: Any,
    kernel: Any,
    recurrent_kernel: Any,
    bias: Any,
    valid: Any,
) -> tuple[Any, Any, Any, Any]:
    """LSTM over all steps.

    Args:
        backend: what computes the loop, matrix products and tanh.
        x: `(time, batch, features)` inputs.
        h: `(batch, units)` initial hidden state.
        c: `(batch, units)` initial cell state.
        kernel: `(features, 4 * units)`; gates i, f, g, o.
        recurrent_kernel: `(units, 4 * units)`.
        bias: `(4 * units,)`.
        valid: see the module.

    Returns:
        `(hs, h, c, cs)`: hidden states after each step `(time, batch, units)`, final states,
        cell states after each step.
    """
    units, dtype = h.shape[-1], h.dtype
    gates_of = _gates_of(backend, "ssts", units, dtype)

    def step(states: Any, x: Any) -> Any:
        h, c = states
        z, *valid_t = x
        gates = gates_of(z + _matmul(backend, h, recurrent_kernel, dtype))
        i, f, g, o = ops.split(gates, 4, axis=-1)
        new_c = f * c + i * g
        new_h = _select(valid_t, o * backend.tanh(new_c), h)
        new_c = _select(valid_t, new_c, c)
        return [new_h, new_c], [new_h, new_c]

    def chunk(states: Any, xs: Any) -> Any:
        x, *valid = xs
        return backend.scan(
            step, states, [_matmul(backend, x, kernel, dtype) + ops.cast(bias, dtype), *valid]
        )

    size = chunk_size(x, 4 * units)
    (h, c), (hs, cs) = in_chunks(backend, chunk, [h, c], _with(valid, x), size, reverse=False)
    return hs, h, c, cs


def lstm_gradient(
    backend: Backend, arguments: tuple[Any, ...], hs: Any, cs: Any, gradients: tuple[Any, Any, Any]
) -> tuple[Any, ...]:
    """Gradients of `lstm`.

    Args:
        backend: what computes the loop, matrix products and tanh.
        arguments: `(x, h, c, kernel, recurrent_kernel, bias, valid)` as given to `lstm`.
        hs: as `lstm` returned it.
        cs: as `lstm` returned it.
        gradients: of `(hs, h, c)`.

    Returns:
        Gradients of `(x, h, c, kernel, recurrent_kernel, bias)`.
    """
    x, h, c, kernel, recurrent_kernel, bias, valid = arguments
    units, dtype = h.shape[-1], h.dtype
    gates_of = _gates_of(backend, "ssts", units, dtype)
    transposed, recurrent_transposed = ops.transpose(kernel), ops.transpose(recurrent_kernel)

    def step(states: Any, x: Any) -> Any:
        dh, dc = states
        dh_t, factors, dc_factor, forget, *hold = x
        dh = dh + dh_t
        dc = dc + dh * dc_factor
        dz = factors * ops.concatenate([dc, dc, dc, dh], axis=-1)
        new_dh = _matmul(backend, dz, recurrent_transposed, dtype)
        return [new_dh + dh * hold[0] if hold else new_dh, dc * forget], [dz]

    def chunk(states: Any, xs: Any) -> Any:
        dh, dc, dkernel, drecurrent, dbias = states
        dhs, x, previous_h, previous_c, cs, *valid = xs
        z = _matmul(backend, x, kernel, dtype) + ops.cast(bias, dtype)
        gates = gates_of(z + _matmul(backend, previous_h, recurrent_kernel, dtype))
        i, f, g, o = ops.split(gates, 4, axis=-1)
        tanh_c = backend.tanh(cs)
        factors = ops.concatenate(
            [g * i * (1 - i), previous_c * f * (1 - f), i * (1 - g * g), tanh_c * o * (1 - o)],
            axis=-1,
        )
        dc_factor = o * (1 - tanh_c * tanh_c)
        # A masked step gives nothing to its inputs, and all to the states before it.
        zero = ops.zeros((), dtype)
        factors, dc_factor = _select(valid, factors, zero), _select(valid, dc_factor, zero)
        f = _select(valid, f, ops.ones((), dtype))
        hold = [ops.cast(ops.logical_not(v), dtype) for v in valid]
        (dh, dc), (dz,) = backend.scan(
            step, [dh, dc], [dhs, factors, dc_factor, f, *hold], reverse=True
        )
        dkernel = dkernel + _outer(backend, x, dz, kernel)
        drecurrent = drecurrent + _outer(backend, previous_h, dz, recurrent_kernel)
        dbias = dbias + ops.sum(dz, axis=(0, 1))
        return [dh, dc, dkernel, drecurrent, dbias], [_matmul(backend, dz, transposed, x.dtype)]

    dhs, dh, dc = gradients
    sums = [ops.zeros(ops.shape(w), dtype) for w in (kernel, recurrent_kernel, bias)]
    size = chunk_size(x, 4 * units)
    xs = _with(valid, dhs, x, _previous(h, hs), _previous(c, cs), cs)
    results, (dx,) = in_chunks(backend, chunk, [dh, dc, *sums], xs, size, reverse=True)
    return (dx, *_cast_like(results, arguments[1:6]))


def gru(
    backend: Backend,
    x: Any,
    h: Any,
    kernel: Any,
    recurrent_kernel: Any,
    bias: Any,
    recurrent_bias: Any,
    valid: Any,
) -> tuple[Any, Any]:
    """GRU (`reset_after=True`) over all steps.

    Args:
        backend: what computes the loop, matrix products and tanh.
        x: `(time, batch, features)` inputs.
        h: `(batch, units)` initial state.
        kernel: `(features, 3 * units)`; gates z, r, h.
        recurrent_kernel: `(units, 3 * units)`.
        bias: `(3 * units,)`, added to the inputs' part.
        recurrent_bias: `(3 * units,)`, added to the recurrent part.
        valid: see the module.

    Returns:
        `(hs, h)`: states after each step `(time, batch, units)` and the final state.
    """
    units, dtype = h.shape[-1], h.dtype
    gates_of = _gates_of(backend, "ss", units, dtype)

    def step(states: Any, x: Any) -> Any:
        (h,) = states
        x, *valid_t = x
        recurrent = _matmul(backend, h, recurrent_kernel, dtype) + ops.cast(recurrent_bias, dtype)
        gates = gates_of(x[:, : 2 * units] + recurrent[:, : 2 * units])
        z, r = ops.split(gates, 2, axis=-1)
        candidate = backend.tanh(x[:, 2 * units :] + r * recurrent[:, 2 * units :])
        new_h = _select(valid_t, z * h + (1 - z) * candidate, h)
        return [new_h], [new_h]

    def chunk(states: Any, xs: Any) -> Any:
        x, *valid = xs
        return backend.scan(
            step, states, [_matmul(backend, x, kernel, dtype) + ops.cast(bias, dtype), *valid]
        )

    size = chunk_size(x, 3 * units)
    (h,), (hs,) = in_chunks(backend, chunk, [h], _with(valid, x), size, reverse=False)
    return hs, h


def gru_gradient(
    backend: Backend, arguments: tuple[Any, ...], hs: Any, gradients: tuple[Any, Any]
) -> tuple[Any, ...]:
    """Gradients of `gru`.

    Args:
        backend: what computes the loop, matrix products and tanh.
        arguments: `(x, h, kernel, recurrent_kernel, bias, recurrent_bias, valid)` as given to
            `gru`.
        hs: as `gru` returned it.
        gradients: of `(hs, h)`.

    Returns:
        Gradients of `(x, h, kernel, recurrent_kernel, bias, recurrent_bias)`.
    """
    x, h, kernel, recurrent_kernel, bias, recurrent_bias, valid = arguments
    units, dtype = h.shape[-1], h.dtype
    gates_of = _gates_of(backend, "ss", units, dtype)
    transposed, recurrent_transposed = ops.transpose(kernel), ops.transpose(recurrent_kernel)

    def step(states: Any, x: Any) -> Any:
        (dh,) = states
        dh_t, factors, z = x
        dh = dh + dh_t
        drecurrent = factors * ops.concatenate([dh, dh, dh], axis=-1)
        return [dh * z + _matmul(backend, drecurrent, recurrent_transposed, dtype)], [dh]

    def chunk(states: Any, xs: Any) -> Any:
        dh, dkernel, drecurrent_kernel, dbias, drecurrent_bias = states
        dhs, x, previous_h, *valid = xs
        projected = _matmul(backend, x, kernel, dtype) + ops.cast(bias, dtype)
        recurrent = _matmul(backend, previous_h, recurrent_kernel, dtype) + ops.cast(
            recurrent_bias, dtype
        )
        gates = gates_of(projected[..., : 2 * units] + recurrent[..., : 2 * units])
        z, r = ops.split(gates, 2, axis=-1)
        recurrent_h = recurrent[..., 2 * units :]
        candidate = backend.tanh(projected[..., 2 * units :] + r * recurrent_h)
        for_candidate = (1 - z) * (1 - candidate * candidate)
        for_gates = [
            (previous_h - candidate) * z * (1 - z),
            for_candidate * recurrent_h * r * (1 - r),
        ]
        # The candidate's recurrent part passes through the reset gate, its input part does not.
        input_factors = ops.concatenate([*for_gates, for_candidate], axis=-1)
        factors = ops.concatenate([*for_gates, for_candidate * r], axis=-1)
        # A masked step gives nothing to its inputs, and all to the state before it.
        zero = ops.zeros((), dtype)
        factors, input_factors = _select(valid, factors, zero), _select(valid, input_factors, zero)
        z = _select(valid, z, ops.ones((), dtype))
        (dh,), (dhs,) = backend.scan(step, [dh], [dhs, factors, z], reverse=True)
        dhs = ops.concatenate([dhs, dhs, dhs], axis=-1)
        dx, drecurrent = dhs * input_factors, dhs * factors
        sums = [
            dkernel + _outer(backend, x, dx, kernel),
            drecurrent_kernel + _outer(backend, previous_h, drecurrent, recurrent_kernel),
            dbias + ops.sum(dx, axis=(0, 1)),
            drecurrent_bias + ops.sum(drecurrent, axis=(0, 1)),
        ]
        return [dh, *sums], [_matmul(backend, dx, transposed, x.dtype)]

    dhs, dh = gradients
    weights = (kernel, recurrent_kernel, bias, recurrent_bias)
    sums = [ops.zeros(ops.shape(w), dtype) for w in weights]
    size = chunk_size(x, 3 * units)
    xs = _with(valid, dhs, x, _previous(h, hs))
    results, (dx,) = in_chunks(backend, chunk, [dh, *sums], xs, size, reverse=True)
    return (dx, *_cast_like(results, arguments[1:6]))
