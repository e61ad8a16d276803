"""JAX as a runtime."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras

from multibackend_lstm.backends import Refused
from multibackend_lstm.runtimes.backend_runtime import (
    BackendRuntime,
    LayerFunction,
    Loss,
    LossFunction,
    PullBack,
    TrainingStep,
)


class JAXRuntime(BackendRuntime):
    """The devices and settings of JAX, and jitted training steps."""

    trains = True

    def devices(self) -> list[str]:
        """Names of the devices the backend sees."""
        return [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()]

    def precision(self) -> dict[str, str]:
        """Settings that decide how exactly float32 is computed."""
        return {
            "float32 matmul": str(jax.config.jax_default_matmul_precision or "default"),
            "64-bit types": str(jax.config.jax_enable_x64),
        }

    def use_device(self, kind: str) -> str:
        """See `BackendRuntime`."""
        try:
            device = jax.devices(kind)[0]
        except RuntimeError as error:
            raise Refused(f"jax sees no {kind}: {error}") from None
        jax.config.update("jax_default_device", device)
        return f"{device.platform}:{device.id} {device.device_kind}"

    def strict_precision(self) -> dict[str, str]:
        """See `BackendRuntime`."""
        jax.config.update("jax_default_matmul_precision", "highest")
        return {"jax_default_matmul_precision": "highest"}

    def inference(self, model: keras.Model, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """See `BackendRuntime`: a jitted function of the model's variables."""
        variables = model.variables

        @jax.jit
        def run(values: Any, inputs: Any) -> Any:
            with keras.StatelessScope(zip(variables, values, strict=True)):
                return call(inputs)

        return lambda inputs: run([v.value for v in variables], inputs)

    def compiled_inference(self, model: keras.Model, example: Any) -> Callable[..., list[Any]]:
        """See `BackendRuntime`."""
        plain = self.plain_inference(model, example)
        variables = model.variables

        @jax.jit
        def run(values: Any, *leaves: Any) -> Any:
            with keras.StatelessScope(zip(variables, values, strict=True)):
                return plain(*leaves)

        # Once: asking each variable at each call costs as much as a small model.
        return functools.partial(run, [v.value for v in variables])

    def training_step(self, model: keras.Model, optimizer: Any, loss: Loss) -> TrainingStep:
        """See `BackendRuntime`."""
        groups = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)

        def value_of(trainable: Any, floating: Any, others: Any, inputs: Any, labels: Any) -> Any:
            pairs = [*zip(groups[0], trainable, strict=True), *zip(groups[1], others, strict=True)]
            with keras.StatelessScope(pairs, collect_losses=True) as scope:
                value = loss(_put(inputs, floating), labels)
            changed = [scope.get_current_value(v) for v in groups[1]]
            pairs_changed = zip(others, changed, strict=True)
            return value, [old if new is None else new for old, new in pairs_changed]

        @jax.jit
        def step(trainable: Any, others: Any, state: Any, inputs: Any, labels: Any) -> Any:
            floating = [x for x in inputs if jnp.issubdtype(x.dtype, jnp.floating)]
            gradients_of = jax.value_and_grad(value_of, argnums=(0, 1), has_aux=True)
            (value, others), (gradients, input_gradients) = gradients_of(
                trainable, floating, others, inputs, labels
            )
            if trainable:
                trainable, state = optimizer.stateless_apply(state, gradients, trainable)
            return (trainable, others, state), (value, input_gradients, gradients)

        def run(inputs: Any, labels: Any) -> Any:
            values = ([v.value for v in group] for group in groups)
            new_values, results = step(*values, inputs, labels)
            for group, new in zip(groups, new_values, strict=True):
                for variable, value in zip(group, new, strict=True):
                    variable.assign(value)
            return results

        return run

    def alone(self, layer: LayerFunction) -> Callable[[Sequence[Any]], list[Any]]:
        """See `BackendRuntime`: jitted."""
        variables = [*layer.trainable, *layer.others]

        @jax.jit
        def run(values: Any, tensors: Any) -> Any:
            with keras.StatelessScope(zip(variables, values, strict=True)):
                return layer.call(tensors)

        return lambda tensors: run([v.value for v in variables], tensors)

    def pull_back(self, layer: LayerFunction) -> PullBack:
        """See `BackendRuntime`: jitted."""

        @jax.jit
        def run(values: Any, rest: Any, tensors: Any, upstream: Any) -> Any:
            def outputs_of(floating: Any, values: Any) -> Any:
                pairs = [
                    *zip(layer.trainable, values, strict=True),
                    *zip(layer.others, rest, strict=True),
                ]
                with keras.StatelessScope(pairs) as scope:
                    outputs = layer.call(_put(tensors, floating))
                changed = [scope.get_current_value(v) for v in layer.others]
                now = [old if new is None else new for old, new in zip(rest, changed, strict=True)]
                return _floating(outputs), (outputs, now)

            floating, pull_back, (outputs, now) = jax.vjp(
                outputs_of, _floating(tensors), values, has_aux=True
            )
            given = [g.astype(x.dtype) for g, x in zip(upstream, floating, strict=True)]
            return outputs, *pull_back(given), now

        def with_values(tensors: Any, upstream: Any) -> Any:
            values = ([v.value for v in group] for group in (layer.trainable, layer.others))
            return run(*values, tensors, upstream)

        return with_values

    def apply_gradients(
        self, optimizer: Any, variables: Sequence[keras.Variable]
    ) -> Callable[[Sequence[Any]], None]:
        """See `BackendRuntime`: jitted."""
        stateless = jax.jit(optimizer.stateless_apply)

        def apply(gradients: Sequence[Any]) -> None:
            groups = (optimizer.variables, variables)
            state, values = ([v.value for v in group] for group in groups)
            values, state = stateless(state, list(gradients), values)
            for group, new in zip(groups, (state, values), strict=True):
                for variable, value in zip(group, new, strict=True):
                    variable.assign(value)

        return apply

    def gradients_at(self, loss: LossFunction) -> list[Any]:
        """See `BackendRuntime`: by the taps, since JAX differentiates by arguments alone."""
        loss.call(list(loss.tensors))
        zeros = [jnp.zeros_like(x) for x in loss.values()]

        def of(taps: Any, weights: Any) -> Any:
            with keras.StatelessScope(zip(loss.trainable, weights, strict=True)), loss.tapped(taps):
                return loss.call(list(loss.tensors))

        weights = [v.value for v in loss.trainable]
        by_taps, by_weights = jax.grad(of, argnums=(0, 1))(zeros, weights)
        return [*by_taps, *by_weights]


def _floating(tensors: Sequence[Any]) -> list[Any]:
    return [x for x in tensors if jnp.issubdtype(x.dtype, jnp.floating)]


def _put(inputs: Any, floating: Any) -> Any:
    """The inputs, those of a floating dtype taken from another list."""
    rest = iter(floating)
    return [next(rest) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in inputs]
