"""The recurrences of LSTM and GRU over all steps, forwards and backwards, in `keras.ops`.

A backend differentiates a loop by saving every intermediate of every step, and adds up the
gradient of the recurrent kernel step by step. Here the backward pass is written out: the
forward loop saves the gates alone, and the recurrent kernel's gradient is one matrix product
over all steps after the loop. A backend's file supplies the loop (`scan`) and tells its
automatic differentiation which function is the gradient of which.

Everything here has time first, `(time, batch, ...)`. `valid` is a boolean `(time, batch, 1)`
tensor or None: where it is False the step leaves the states as they are. States, and all that
is computed from them, have the dtype of the given states; matrix products that of the kernel.
"""

from collections.abc import Callable
from typing import Any

from keras import ops

# scan(step, states, xs, reverse=False) -> (states, ys), where step(states, x) -> (states, y)
Scan = Callable[..., Any]


def _steps(valid: Any, *xs: Any) -> list[Any]:
    """What the loop runs over; without a mask there is nothing to select."""
    return [*xs] if valid is None else [*xs, valid]


def _previous(first: Any, all_steps: Any) -> Any:
    """The states before each step, from the initial ones and those after each step."""
    return ops.concatenate([ops.expand_dims(first, 0), all_steps[:-1]], axis=0)


def _kernel_gradient(inputs: Any, gradients: Any) -> Any:
    """Sum over steps and samples of the outer products: one matrix product."""
    flat_inputs = ops.reshape(inputs, (-1, inputs.shape[-1]))
    flat_gradients = ops.reshape(gradients, (-1, gradients.shape[-1]))
    return ops.matmul(ops.transpose(flat_inputs), flat_gradients)


def lstm_forward(scan: Scan, z: Any, h: Any, c: Any, kernel: Any, valid: Any) -> Any:
    """LSTM over all steps.

    Args:
        scan: the backend's loop.
        z: `(time, batch, 4 * units)` inputs times the input kernel plus bias; gates i, f, g, o.
        h: `(batch, units)` initial hidden state.
        c: `(batch, units)` initial cell state.
        kernel: `(units, 4 * units)` recurrent kernel.
        valid: see the module.

    Returns:
        `(hs, h, c)` and, for the backward pass, `(cs, gates)`: hidden states after each step
        `(time, batch, units)`, the final states, cell states after each step, and gates.
    """

    def step(states: Any, x: Any) -> Any:
        h, c = states
        z_t, *valid_t = x
        z_t = z_t + ops.cast(ops.matmul(ops.cast(h, kernel.dtype), kernel), z_t.dtype)
        i, f, g, o = ops.split(ops.cast(z_t, c.dtype), 4, axis=-1)
        i, f, g, o = ops.sigmoid(i), ops.sigmoid(f), ops.tanh(g), ops.sigmoid(o)
        new_c = f * c + i * g
        new_h = o * ops.tanh(new_c)
        if valid_t:
            new_c = ops.where(valid_t[0], new_c, c)
            new_h = ops.where(valid_t[0], new_h, h)
        return [new_h, new_c], [new_h, new_c, ops.concatenate([i, f, g, o], axis=-1)]

    (h, c), (hs, cs, gates) = scan(step, [h, c], _steps(valid, z))
    return (hs, h, c), (cs, gates)


def lstm_backward(
    scan: Scan,
    saved: tuple[Any, ...],
    gradients: tuple[Any, Any, Any],
) -> tuple[Any, Any, Any, Any]:
    """Gradients of `lstm_forward`.

    Args:
        scan: the backend's loop.
        saved: `(h, c, kernel, valid, hs, cs, gates)`, arguments and results of `lstm_forward`.
        gradients: of `(hs, h, c)`.

    Returns:
        Gradients of `(z, h, c, kernel)`.
    """
    h, c, kernel, valid, hs, cs, gates = saved
    transposed = ops.transpose(kernel)

    def step(states: Any, x: Any) -> Any:
        dh, dc = states
        dh_t, c_t, previous_c, gates_t, *valid_t = x
        dh = dh + dh_t
        i, f, g, o = ops.split(gates_t, 4, axis=-1)
        tanh_c = ops.tanh(c_t)
        new_dc = dc + dh * o * (1 - tanh_c * tanh_c)
        dz = ops.concatenate(
            [
                new_dc * g * i * (1 - i),
                new_dc * previous_c * f * (1 - f),
                new_dc * i * (1 - g * g),
                dh * tanh_c * o * (1 - o),
            ],
            axis=-1,
        )
        if valid_t:
            dz = ops.where(valid_t[0], dz, ops.zeros_like(dz))
        new_dh = ops.cast(ops.matmul(ops.cast(dz, kernel.dtype), transposed), dh.dtype)
        new_dc = new_dc * f
        if valid_t:
            new_dh = ops.where(valid_t[0], new_dh, dh)
            new_dc = ops.where(valid_t[0], new_dc, dc)
        return [new_dh, new_dc], [dz]

    dhs, dh, dc = gradients
    xs = _steps(valid, dhs, cs, _previous(c, cs), gates)
    (dh, dc), (dz,) = scan(step, [dh, dc], xs, reverse=True)
    dz = ops.cast(dz, kernel.dtype)
    dkernel = _kernel_gradient(ops.cast(_previous(h, hs), kernel.dtype), dz)
    return dz, dh, dc, dkernel


def gru_forward(scan: Scan, z: Any, h: Any, kernel: Any, bias: Any, valid: Any) -> Any:
    """GRU (`reset_after=True`) over all steps.

    Args:
        scan: the backend's loop.
        z: `(time, batch, 3 * units)` inputs times the input kernel plus bias; gates z, r, h.
        h: `(batch, units)` initial state.
        kernel: `(units, 3 * units)` recurrent kernel.
        bias: `(3 * units,)` recurrent bias.
        valid: see the module.

    Returns:
        `(hs, h)` and, for the backward pass, `(gates,)`: states after each step, final state,
        and gates z, r, candidate and the candidate's recurrent part.
    """
    units = kernel.shape[0]

    def step(states: Any, x: Any) -> Any:
        (h,) = states
        x_t, *valid_t = x
        recurrent = ops.matmul(ops.cast(h, kernel.dtype), kernel) + bias
        x_t, recurrent = ops.cast(x_t, h.dtype), ops.cast(recurrent, h.dtype)
        x_zr, x_h = x_t[:, : 2 * units], x_t[:, 2 * units :]
        recurrent_zr, recurrent_h = recurrent[:, : 2 * units], recurrent[:, 2 * units :]
        zr = ops.sigmoid(x_zr + recurrent_zr)
        z, r = zr[:, :units], zr[:, units:]
        candidate = ops.tanh(x_h + r * recurrent_h)
        new_h = z * h + (1 - z) * candidate
        if valid_t:
            new_h = ops.where(valid_t[0], new_h, h)
        return [new_h], [new_h, ops.concatenate([zr, candidate, recurrent_h], axis=-1)]

    (h,), (hs, gates) = scan(step, [h], _steps(valid, z))
    return (hs, h), (gates,)


def gru_backward(
    scan: Scan,
    saved: tuple[Any, ...],
    gradients: tuple[Any, Any],
) -> tuple[Any, Any, Any, Any]:
    """Gradients of `gru_forward`.

    Args:
        scan: the backend's loop.
        saved: `(h, kernel, valid, hs, gates)`, arguments and results of `gru_forward`.
        gradients: of `(hs, h)`.

    Returns:
        Gradients of `(z, h, kernel, bias)`.
    """
    h, kernel, valid, hs, gates = saved
    transposed = ops.transpose(kernel)

    def step(states: Any, x: Any) -> Any:
        (dh,) = states
        dh_t, previous_h, gates_t, *valid_t = x
        dh = dh + dh_t
        z, r, candidate, recurrent_h = ops.split(gates_t, 4, axis=-1)
        dcandidate = dh * (1 - z) * (1 - candidate * candidate)
        dz = dh * (previous_h - candidate) * z * (1 - z)
        dr = dcandidate * recurrent_h * r * (1 - r)
        # The candidate's recurrent part passes through the reset gate, its input part does not.
        drecurrent = ops.concatenate([dz, dr, dcandidate * r], axis=-1)
        if valid_t:
            drecurrent = ops.where(valid_t[0], drecurrent, ops.zeros_like(drecurrent))
            dcandidate = ops.where(valid_t[0], dcandidate, ops.zeros_like(dcandidate))
        product = ops.matmul(ops.cast(drecurrent, kernel.dtype), transposed)
        new_dh = dh * z + ops.cast(product, dh.dtype)
        if valid_t:
            new_dh = ops.where(valid_t[0], new_dh, dh)
        return [new_dh], [drecurrent, dcandidate]

    dhs, dh = gradients
    xs = _steps(valid, dhs, _previous(h, hs), gates)
    (dh,), (drecurrent, dcandidate) = scan(step, [dh], xs, reverse=True)
    drecurrent = ops.cast(drecurrent, kernel.dtype)
    units = kernel.shape[0]
    dz = ops.concatenate(
        [drecurrent[..., : 2 * units], ops.cast(dcandidate, kernel.dtype)], axis=-1
    )
    dkernel = _kernel_gradient(ops.cast(_previous(h, hs), kernel.dtype), drecurrent)
    return dz, dh, dkernel, ops.sum(drecurrent, axis=(0, 1))
