"""The backend that Keras runs on as a runtime: its devices, its precision, and training steps.

The class computes eagerly and without gradients, as the NumPy and OpenVINO backends do. Backends
that train have a subclass each.
"""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any, NamedTuple

import keras
from keras import ops, tree

from multibackend_lstm.backends import Refused

#: A scalar of lists of tensors, `loss(inputs, labels)`.
Loss = Callable[[Any, Any], Any]
#: `step(inputs, labels)`; see `BackendRuntime.training_step`.
TrainingStep = Callable[[Any, Any], Any]

#: `pull_back(tensors, upstream)`, of the gradient of a loss by each floating output, which returns
#: outputs, the gradients by floating tensors and by variables, and the others' values afterwards.
PullBack = Callable[
    [Sequence[Any], Sequence[Any]], tuple[list[Any], list[Any], list[Any], list[Any]]
]


class LayerFunction(NamedTuple):
    """What a layer computes alone.

    Attributes:
        call: takes and returns a list of tensors.
        trainable: variables that it reads and that have gradients.
        others: the other variables, which it may change.
    """

    call: Callable[[Sequence[Any]], list[Any]]
    trainable: Sequence[keras.Variable]
    others: Sequence[keras.Variable]


class LossFunction(NamedTuple):
    """What a model computes in training, and what comes up on the way.

    Attributes:
        call: the loss, a scalar of a list of tensors.
        tensors: its argument.
        values: gives the tensors that came up, once the loss is computed.
        trainable: variables that it reads and that have gradients.
        tapped: within `tapped(taps)` one of the taps is added to each of these tensors.
    """

    call: Callable[[list[Any]], Any]
    tensors: Sequence[Any]
    values: Callable[[], Sequence[Any]]
    trainable: Sequence[keras.Variable]
    tapped: Callable[[Sequence[Any]], AbstractContextManager[None]]


# Module and class of each subclass, imported where its backend runs.
_SUBCLASSES = {
    "tensorflow": ("tensorflow_runtime", "TensorFlowRuntime"),
    "torch": ("torch_runtime", "TorchRuntime"),
    "jax": ("jax_runtime", "JAXRuntime"),
}


class BackendRuntime:
    """A backend without devices to choose from, precision settings and gradients."""

    #: Whether it has gradients, and so can train.
    trains = False

    def devices(self) -> list[str]:
        """Names of the devices the backend sees."""
        return ["CPU"]

    def precision(self) -> dict[str, str]:
        """Settings that decide how exactly float32 is computed."""
        return {}

    def use_device(self, kind: str) -> str:
        """Compute on a device of a kind from now on.

        Args:
            kind: `"cpu"` or `"gpu"`.

        Returns:
            The device's name.

        Raises:
            Refused: if there is none.
        """
        if kind != "cpu":
            raise Refused(f"{keras.backend.backend()} computes on the CPU alone")
        return "CPU"

    def strict_precision(self) -> dict[str, str]:
        """Turn off all that computes float32 in less than float32; returns the switches so set."""
        return {}

    def inference(self, model: keras.Model, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """A model's call as the backend's `predict` runs it.

        States of the model are left as they are where that is a compiled function of them.

        Args:
            model: whose variables the call reads.
            call: calls the model with its argument, and returns tensors.
        """
        return call

    def plain_inference(self, model: keras.Model, example: Any) -> Callable[..., list[Any]]:
        """A model's call in inference, not compiled.

        Args:
            model: of one argument.
            example: such an argument.

        Returns:
            A function of the leaves of such an argument, in the order of `keras.tree.flatten`,
            arrays or tensors, that returns the leaves of what the model does.
        """

        def run(*leaves: Any) -> list[Any]:
            tensors = [ops.convert_to_tensor(x) for x in leaves]
            outputs = model(tree.pack_sequence_as(example, tensors), training=False)
            return list(tree.flatten(outputs))

        return run

    def compiled_inference(self, model: keras.Model, example: Any) -> Callable[..., list[Any]]:
        """`plain_inference`, compiled once for the shapes of an example.

        Whether weights that change afterwards change it too is the backend's.
        """
        return self.plain_inference(model, example)

    def training_step(self, model: keras.Model, optimizer: Any, loss: Loss) -> TrainingStep:
        """A step of training that also returns gradients.

        Args:
            model: whose variables each step changes.
            optimizer: one of Keras, built on the model's trainable variables.
            loss: a scalar from lists of tensors, `loss(inputs, labels)`.

        Returns:
            `step(inputs, labels) -> (loss, input gradients, weight gradients)`. Only inputs of a
            floating dtype have gradients; a gradient that does not depend on the loss is 0.

        Raises:
            Refused: if the backend has no gradients.
        """
        raise Refused(f"{keras.backend.backend()} has no gradients")

    def alone(self, layer: LayerFunction) -> Callable[[Sequence[Any]], list[Any]]:
        """A layer as inference runs it."""
        return layer.call

    def pull_back(self, layer: LayerFunction) -> PullBack:
        """A layer in training, with its gradients.

        Raises:
            Refused: if the backend has no gradients.
        """
        raise Refused(f"{keras.backend.backend()} has no gradients")

    def apply_gradients(
        self, optimizer: Any, variables: Sequence[keras.Variable]
    ) -> Callable[[Sequence[Any]], None]:
        """One update of the variables, as a function of their gradients."""
        return lambda gradients: optimizer.apply(list(gradients), list(variables))

    def gradients_at(self, loss: LossFunction) -> list[Any]:
        """The gradients of a loss by what comes up on the way to it, then by its variables.

        Raises:
            Refused: if the backend has no gradients.
        """
        raise Refused(f"{keras.backend.backend()} has no gradients")


@functools.cache
def active() -> BackendRuntime:
    """That of the backend that Keras runs on."""
    if keras.backend.backend() not in _SUBCLASSES:
        return BackendRuntime()
    module, name = _SUBCLASSES[keras.backend.backend()]
    runtime: BackendRuntime = getattr(import_module(f"{__package__}.{module}"), name)()
    return runtime
