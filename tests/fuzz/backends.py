"""What differs among backends: compiling a call, gradients, settings."""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import tree

from fuzz.cases import Structure
from fuzz.reference import Array

Arguments = dict[str, Any]
# By floating inputs (input, states), and by the trainable variables.
Gradients = tuple[list[Any], list[Any]]


class Backend:
    """A container (layer or model), called as `invoke` says.

    Args:
        container: the layer or model.
        invoke: calls a function as the container is called.
        structure: what it was built for.
    """

    def __init__(self, container: Any, invoke: Callable[..., Any], structure: Structure) -> None:
        self.container = container
        self.invoke = invoke
        self.structure = structure

    @staticmethod
    def settings(structure: Structure) -> contextlib.AbstractContextManager[Any]:
        """What holds while a case runs."""
        return contextlib.nullcontext()

    def jit(self, arguments: Arguments) -> Any:
        """A compiled call."""
        raise NotImplementedError

    def gradients(self, arguments: Arguments, cotangents: list[Array]) -> Gradients:
        """Of the sum of outputs times cotangents."""
        raise NotImplementedError

    def outputs(self, result: Any) -> list[Any]:
        """Outputs without the masks that a model gives behind them."""
        flat = tree.flatten(result)
        return flat[: len(flat) // 2] if self.structure.functional else flat


class Jax(Backend):
    """JAX."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        import jax

        self._call = jax.jit(self._stateless_call)
        self._gradients = jax.jit(jax.grad(self._loss))
        if self.structure.mode == "eager":
            self._gradients = jax.grad(self._loss)

    @staticmethod
    def settings(structure: Structure) -> contextlib.AbstractContextManager[Any]:
        """See `Backend`."""
        import jax

        if not hasattr(jax, "enable_x64"):  # before JAX 0.8
            from jax.experimental import enable_x64

            return enable_x64(structure.x64)
        return jax.enable_x64(structure.x64)

    def _stateless_call(self, trained: Any, others: Any, arguments: Arguments) -> Any:
        return self.invoke(
            lambda *args, **kwargs: self.container.stateless_call(trained, others, *args, **kwargs),
            arguments,
        )

    def _variables(self) -> tuple[list[Any], list[Any]]:
        return (
            [v.value for v in self.container.trainable_variables],
            [v.value for v in self.container.non_trainable_variables],
        )

    def jit(self, arguments: Arguments) -> Any:
        """See `Backend`."""
        trained, others = self._variables()
        result, others = self._call(trained, others, _tensors(arguments))
        variables = self.container.non_trainable_variables
        for variable, value in zip(variables, others, strict=True):
            variable.assign(value)
        return result

    def _loss(self, floating: Any, others: Any, arguments: Arguments, cotangents: Any) -> Any:
        inputs, trained = floating
        result, _ = self._stateless_call(trained, others, {**arguments, **inputs})
        outputs = self.outputs(result)
        return sum((y.astype(c.dtype) * c).sum() for y, c in zip(outputs, cotangents, strict=True))

    def gradients(self, arguments: Arguments, cotangents: list[Array]) -> Gradients:
        """See `Backend`."""
        import jax

        dtype = "float64" if self.structure.x64 else "float32"
        arguments = _tensors(arguments)
        inputs = {
            name: arguments[name]
            for name in ("x", "initial_state")
            if name in arguments and all(_floating(a) for a in tree.flatten(arguments[name]))
        }
        trained, others = self._variables()
        inputs_gradient, weights_gradient = self._gradients(
            (inputs, trained), others, arguments, [jax.numpy.asarray(c, dtype) for c in cotangents]
        )
        # A dictionary comes back in the order of its keys.
        ordered = [inputs_gradient[name] for name in inputs]
        return tree.flatten(ordered), list(weights_gradient)


def _tensors(arguments: Arguments) -> Arguments:
    import keras

    return tree.map_structure(
        lambda a: (
            keras.ops.convert_to_tensor(a, dtype=str(a.dtype)) if isinstance(a, np.ndarray) else a
        ),
        arguments,
    )


def _floating(x: Any) -> bool:
    import keras

    return keras.backend.standardize_dtype(x.dtype) in ("float16", "bfloat16", "float32", "float64")


class TensorFlow(Backend):
    """TensorFlow."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._functions: dict[Any, Any] = {}

    def _function(self, what: Callable[..., Any], *arguments: Any) -> Any:
        """`what` as a tf.function, with batch and time unknown where the structure says so."""
        import tensorflow as tf

        key = (what, tuple(arguments[0]))
        if key not in self._functions:

            def signature(x: Any) -> Any:
                shape = list(x.shape)
                if self.structure.unknown:
                    known = self.structure.shape[0] if self.structure.calls > 1 else None
                    shape[:1] = [known]
                    if shape[1:2] == [x_shape[1]]:
                        shape[1] = None
                return tf.TensorSpec(shape, x.dtype)

            x_shape = arguments[0]["x"].shape
            states = arguments[0].get("initial_state")
            specs = tf.nest.map_structure(signature, list(arguments))
            if states is not None:
                # Their second axis is that of units, whatever its size.
                specs[0]["initial_state"] = [
                    tf.TensorSpec([spec.shape[0], *state.shape[1:]], state.dtype)
                    for spec, state in zip(specs[0]["initial_state"], states, strict=True)
                ]
            if len(arguments) > 1:
                specs[1] = [tf.TensorSpec([None] * len(c.shape), c.dtype) for c in arguments[1]]
            self._functions[key] = tf.function(what, input_signature=specs, autograph=False)
        return self._functions[key](*arguments)

    def _call(self, arguments: Arguments) -> Any:
        return tree.flatten(self.invoke(self.container, arguments))

    def jit(self, arguments: Arguments) -> Any:
        """See `Backend`."""
        return self._function(self._call, _tensors(arguments))

    def _taped(self, arguments: Arguments, cotangents: list[Any]) -> Any:
        import tensorflow as tf

        given = [*tree.flatten([arguments["x"], arguments.get("initial_state", [])])]
        given = [x for x in given if x.dtype.is_floating]
        weights = [v.value for v in self.container.trainable_variables]
        with tf.GradientTape() as tape:
            for x in given:
                tape.watch(x)
            outputs = self.outputs(self.invoke(self.container, arguments))
            loss = sum(
                tf.reduce_sum(tf.cast(y, c.dtype) * c)
                for y, c in zip(outputs, cotangents, strict=True)
            )
        return tape.gradient(loss, (given, weights), unconnected_gradients="zero")

    def gradients(self, arguments: Arguments, cotangents: list[Array]) -> Gradients:
        """See `Backend`."""
        import tensorflow as tf

        arguments, given = _tensors(arguments), [tf.constant(c) for c in cotangents]
        if self.structure.mode == "eager":
            return self._taped(arguments, given)
        return self._function(self._taped, arguments, given)


class Torch(Backend):
    """PyTorch, which compiles nothing here: a call without gradients."""

    def jit(self, arguments: Arguments) -> Any:
        """See `Backend`."""
        import torch

        with torch.no_grad():
            return self.invoke(self.container, arguments)

    def gradients(self, arguments: Arguments, cotangents: list[Array]) -> Gradients:
        """See `Backend`."""
        import torch

        def leaf(x: Any) -> Any:
            x = x.detach().clone()
            return x.requires_grad_() if x.is_floating_point() else x

        arguments = tree.map_structure(leaf, _tensors(arguments))
        given = tree.flatten([arguments["x"], arguments.get("initial_state", [])])
        given = [x for x in given if x.requires_grad]
        weights = [v.value for v in self.container.trainable_variables]
        outputs = self.outputs(self.invoke(self.container, arguments))
        loss = sum(
            (y.double() * torch.tensor(c)).sum() for y, c in zip(outputs, cotangents, strict=True)
        )
        if not loss.requires_grad:  # of no step, or of none that is valid
            return [torch.zeros_like(x) for x in given], [torch.zeros_like(w) for w in weights]
        found = torch.autograd.grad(
            loss, [*given, *weights], allow_unused=True, materialize_grads=True
        )
        return list(found[: len(given)]), list(found[len(given) :])


BACKENDS: dict[str, type[Backend]] = {"jax": Jax, "tensorflow": TensorFlow, "torch": Torch}
