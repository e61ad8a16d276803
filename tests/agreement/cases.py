"""Models, layers and mischief that workers import: they find this file on the path of the tests."""

import inspect
import os
import sys
import time
from importlib.util import find_spec

import keras
import numpy as np
from keras import ops

import multibackend_lstm as ml


@keras.saving.register_keras_serializable(package="cases")
class Doubled(keras.layers.Layer):
    """A layer of somebody else's."""

    def call(self, x):
        return 2 * x


class Unregistered(Doubled):
    """Found by its module alone."""


@keras.saving.register_keras_serializable(package="cases")
class Random(keras.layers.Layer):
    """Draws random numbers in a way that nobody can turn off."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, x, training=False):
        return x + keras.random.normal(ops.shape(x), seed=self.seeds) if training else x


@keras.saving.register_keras_serializable(package="cases")
class DropoutOff(ml.Dropout):
    """A thousandth off in training, but on the backend that computes the truth."""

    def call(self, x, training=False):
        off = training and keras.backend.backend() != "tensorflow"
        return super().call(x, training=training) * (1.001 if off else 1)


@keras.saving.register_keras_serializable(package="cases")
class Crashes(keras.layers.Layer):
    """Ends the process where it is run outside of the parent."""

    def call(self, x):
        if "runtimes.serve" in " ".join(os.sys.orig_argv) and not symbolic(x):
            os._exit(3)
        return x


@keras.saving.register_keras_serializable(package="cases")
class Fails(keras.layers.Layer):
    """Raises where it is run outside of the parent."""

    def call(self, x):
        if "runtimes.serve" in " ".join(os.sys.orig_argv) and not symbolic(x):
            raise RuntimeError("no such luck")
        return x


def symbolic(x):
    """Whether there are no values yet, as while a model is built."""
    return isinstance(x, keras.KerasTensor) or "meta" in str(getattr(x, "device", ""))


def sleep(seconds):
    """What a worker can be asked to do too long."""
    time.sleep(seconds)


def imported(name):
    """Whether something has imported a module."""
    return name in sys.modules


def installed(name):
    """Whether a module could be imported."""
    return find_spec(name) is not None


def end(status):
    """What a worker can be asked to die of."""
    os.write(2, b"the last words\n")
    os._exit(status)


def small():
    """A model."""
    return keras.Sequential([keras.Input((5, 3)), keras.layers.LSTM(4), keras.layers.Dense(2)])


def with_inputs():
    """A model and its inputs."""
    return small(), np.ones((3, 5, 3), "float32")


def not_a_model():
    """Something else."""
    return 3


def torch_dense():
    """In PyTorch, the product of `test_file_targets.cases_model`."""
    import torch

    module = torch.nn.Linear(4, 2)
    with torch.no_grad():
        module.weight.copy_(torch.arange(8.0).reshape(4, 2).T)
        module.bias.fill_(1.0)
    return module


def no_module():
    return 0


class OwnOrder(keras.layers.Layer):
    """Creates its weights in another order in a worker, as a backend's own layer may."""

    def build(self, shape):
        names = ["first", "second"]
        if "runtimes.serve" in " ".join(os.sys.orig_argv):
            names.reverse()
        for name in names:
            setattr(self, name, self.add_weight(shape=(shape[-1],), name=name))

    def call(self, x):
        return x * self.first + 3.0 * self.second


class Nothing(keras.layers.Layer):
    """Returns nothing beside what it was given."""

    def call(self, x):
        return x, None


class Subclassed(keras.Model):
    """Has no weights before its first call."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.nothing = Nothing()
        self.dense = keras.layers.Dense(2)

    def call(self, x):
        return self.dense(self.nothing(x)[0])


def subclassed():
    """A model that is not built, and its inputs."""
    return Subclassed(), np.ones((3, 4), "float32")


def subclassed_alone():
    """A model that is not built."""
    return Subclassed()


def classes():
    """The numbers of classes, of which there is no gradient."""
    inputs = keras.Input((4,))
    x = keras.layers.Dense(3)(inputs)
    return keras.Model(inputs, keras.ops.argmax(x, axis=-1))


def classes_as_floats():
    """The same as floats."""
    inputs = keras.Input((4,))
    x = keras.ops.cast(keras.ops.argmax(keras.layers.Dense(3)(inputs), axis=-1), "float32")
    return keras.Model(inputs, x)


@keras.saving.register_keras_serializable(package="cases")
class Restless(keras.layers.Layer):
    """Gives something else by 1e-4 each time, outside of the parent and in float32."""

    def call(self, x):
        if symbolic(x) or self.compute_dtype == "float64":
            return x
        return x * (1 + 1e-4 * np.random.default_rng().normal())


@keras.saving.register_keras_serializable(package="cases")
class CrashesAlone(keras.layers.Layer):
    """Ends the process where it is called alone in float32."""

    def call(self, x):
        alone = any(frame.filename.endswith("isolation.py") for frame in inspect.stack(0))
        if alone and not symbolic(x) and self.compute_dtype != "float64":
            os._exit(3)
        return x


_MATMUL = []


def break_matmul():
    """Have every product of matrices of this process be off by 1e-4."""
    from keras.src.backend import numpy as backend_numpy

    old = backend_numpy.matmul
    _MATMUL.append(old)
    backend_numpy.matmul = lambda *arguments: old(*arguments) * (1 + 1e-4)


def mend_matmul():
    """Undo it."""
    from keras.src.backend import numpy as backend_numpy

    backend_numpy.matmul = _MATMUL.pop()


@keras.saving.register_keras_serializable(package="cases")
class OffForOne(keras.layers.Layer):
    """Wrong where a batch has one sample, but for the float64 run."""

    def call(self, x):
        return 1.01 * x if self.compute_dtype == "float32" and x.shape[0] == 1 else 1.0 * x


@keras.saving.register_keras_serializable(package="cases")
class OffAtZero(keras.layers.Layer):
    """Wrong at 0, but for the float64 run."""

    def call(self, x):
        return ops.where(x == 0, 0.1, x) if self.compute_dtype == "float32" else x + 0.0


def inputs_of_three():
    return np.random.default_rng(3).normal(size=(3, 5, 2)).astype("float32")


@keras.saving.register_keras_serializable(package="cases")
class WithoutConfig(keras.layers.Layer):
    """Cannot be built again."""

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def get_config(self):
        raise RuntimeError("factor is a secret")

    def call(self, x):
        return x * self.factor


def without_config():
    inputs = keras.Input((3,))
    layers = [WithoutConfig(2.0, name="secret"), keras.layers.Dense(2)]
    return keras.Model(inputs, keras.Sequential(layers, name="inner")(inputs))


def _off():
    return 1 + 1e-3 * (keras.backend.floatx() == "float32")


@keras.saving.register_keras_serializable(package="cases")
class OffLoss(keras.losses.Loss):
    """A thousandth off, but in the float64 run."""

    def call(self, y_true, y_pred):
        return ops.mean(ops.square(y_true - y_pred), axis=-1) * _off()


@keras.saving.register_keras_serializable(package="cases")
class OffSGD(keras.optimizers.SGD):
    """Goes a thousandth too far, but in the float64 run."""

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient * _off(), variable, learning_rate)


@keras.saving.register_keras_serializable(package="cases")
class OffAdd(keras.Operation):
    """An operation that is a thousandth off, but in the float64 run."""

    def __init__(self, number, *, name=None):
        super().__init__(name=name)
        self.number = number

    def call(self, x):
        return (x + self.number) * (_off() if "float32" in str(x.dtype) else 1.0)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


@keras.saving.register_keras_serializable(package="cases")
class OffDense(keras.layers.Dense):
    """A Dense whose outputs are a thousandth off, but in the float64 run."""

    def call(self, x):
        return super().call(x) * (1.001 if self.compute_dtype == "float32" else 1)


@keras.saving.register_keras_serializable(package="cases")
class LosesMask(keras.layers.Layer):
    """Passes its input on, and its mask but on one backend; the float64 run does always."""

    def __init__(self, backend=None, **kwargs):
        super().__init__(**kwargs)
        self.backend, self.supports_masking = backend, True

    def call(self, x):
        return x * 1.0

    def compute_mask(self, x, previous_mask=None):
        wrong = self.backend == keras.backend.backend() and self.compute_dtype != "float64"
        return None if wrong else previous_mask

    def get_config(self):
        return {**super().get_config(), "backend": self.backend}


@keras.saving.register_keras_serializable(package="cases")
class LateSGD(keras.optimizers.SGD):
    """A hundredth off from the third update on, but in the float64 run."""

    def update_step(self, gradient, variable, learning_rate):
        late = ops.cast(self.iterations > 1, gradient.dtype)
        super().update_step(gradient * (1 + 10 * (_off() - 1) * late), variable, learning_rate)


@keras.saving.register_keras_serializable(package="cases")
class Positions(keras.layers.Layer):
    """Adds sines of up to thousands, of which float32 has few digits; off on one backend."""

    def __init__(self, backend=None, **kwargs):
        super().__init__(**kwargs)
        self.backend = backend

    def call(self, x):
        position = ops.arange(x.shape[1], dtype=self.compute_dtype)[:, None]
        rate = ops.power(ops.cast(0.7, self.compute_dtype), ops.arange(x.shape[2]))
        y = x + ops.sin(position * ops.cast(rate, self.compute_dtype))
        wrong = self.backend == keras.backend.backend() and self.compute_dtype != "float64"
        return y * (1.003 if wrong else 1)

    def get_config(self):
        return {**super().get_config(), "backend": self.backend}
