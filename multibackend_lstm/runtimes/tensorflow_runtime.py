"""TensorFlow as a runtime."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from multibackend_lstm.backends import Refused
from multibackend_lstm.runtimes.backend_runtime import (
    BackendRuntime,
    LayerFunction,
    Loss,
    LossFunction,
    PullBack,
    TrainingStep,
)


class TensorFlowRuntime(BackendRuntime):
    """The devices and settings of TensorFlow, and training steps with its gradient tape.

    Inference is not compiled: tracing costs more than it saves in a comparison.
    """

    trains = True

    def devices(self) -> list[str]:
        """Names of the devices the backend sees."""
        return [
            device.name.removeprefix("/physical_device:")
            for device in tf.config.list_physical_devices()
        ]

    def precision(self) -> dict[str, str]:
        """Settings that decide how exactly float32 is computed."""
        return {
            "TF32 on GPU": str(tf.config.experimental.tensor_float_32_execution_enabled()),
            "oneDNN": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "default"),
        }

    def use_device(self, kind: str) -> str:
        """See `BackendRuntime`; TensorFlow itself chooses a GPU wherever it sees one."""
        found = [device.name for device in tf.config.list_logical_devices(kind.upper())]
        if not found:
            raise Refused(f"tensorflow sees no {kind}")
        return found[0].removeprefix("/device:")

    def strict_precision(self) -> dict[str, str]:
        """See `BackendRuntime`."""
        tf.config.experimental.enable_tensor_float_32_execution(False)
        return {"tensor_float_32_execution": "False"}

    def compiled_inference(self, model: keras.Model, example: Any) -> Callable[..., list[Any]]:
        """See `BackendRuntime`: by XLA, or as a graph for a layer that says XLA cannot take it."""
        plain = self.plain_inference(model, example)
        by_xla = all(layer.supports_jit for layer in model._flatten_layers())
        graph = tf.function(plain, autograph=False, jit_compile=by_xla)
        return graph.get_concrete_function(*tree.flatten(example))

    def training_step(self, model: keras.Model, optimizer: Any, loss: Loss) -> TrainingStep:
        """See `BackendRuntime`."""
        variables = model.trainable_variables

        @tf.function
        def run(inputs: Any, labels: Any) -> Any:
            floating = [x for x in inputs if x.dtype.is_floating]
            with tf.GradientTape() as tape:
                tape.watch(floating)
                value = loss(inputs, labels)
            found = tape.gradient(
                value, [*floating, *(v.value for v in variables)], unconnected_gradients="zero"
            )
            found = [tf.convert_to_tensor(gradient) for gradient in found]
            gradients = found[len(floating) :]
            if variables:
                optimizer.apply(gradients, variables)
            return value, found[: len(floating)], gradients

        return run

    def alone(self, layer: LayerFunction) -> Callable[[Sequence[Any]], list[Any]]:
        """See `BackendRuntime`: a graph, which loops over time faster."""
        compiled: Callable[[Sequence[Any]], list[Any]] = tf.function(layer.call, autograph=False)
        return compiled

    def pull_back(self, layer: LayerFunction) -> PullBack:
        """See `BackendRuntime`."""

        @tf.function(autograph=False)
        def run(tensors: Any, upstream: Any) -> Any:
            sources = [x for x in tensors if x.dtype.is_floating]
            with tf.GradientTape() as tape:
                tape.watch(sources)
                outputs = layer.call(tensors)
            floating = [x for x in outputs if x.dtype.is_floating]
            found = tape.gradient(
                floating,
                [*sources, *(v.value for v in layer.trainable)],
                [tf.cast(g, x.dtype) for g, x in zip(upstream, floating, strict=True)],
                unconnected_gradients="zero",
            )
            found = [tf.convert_to_tensor(gradient) for gradient in found]
            changed = [tf.identity(v.value) for v in layer.others]
            return outputs, found[: len(sources)], found[len(sources) :], changed

        pull_back: PullBack = run
        return pull_back

    def gradients_at(self, loss: LossFunction) -> list[Any]:
        """See `BackendRuntime`."""
        with tf.GradientTape() as tape:
            tape.watch([x for x in loss.tensors if x.dtype.is_floating])
            value = loss.call(list(loss.tensors))
        sources = [*loss.values(), *(v.value for v in loss.trainable)]
        found = tape.gradient(value, sources, unconnected_gradients="zero")
        return [tf.convert_to_tensor(gradient) for gradient in found]
