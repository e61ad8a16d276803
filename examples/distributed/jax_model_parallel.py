"""JAX: weights divided too, `python jax_model_parallel.py --devices 4`.

Half of the devices share the batch, and each pair of them the weights.
"""

import argparse
import os

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--devices", type=int, default=4, help="parts of the CPU to take for devices")
known, _ = parser.parse_known_args()
os.environ["KERAS_BACKEND"] = "jax"
flags = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={known.devices}"
os.environ["JAX_PLATFORMS"] = "cpu"

import common  # noqa: E402
import keras  # noqa: E402

from multibackend_lstm.distribution import layout_map  # noqa: E402


def main() -> None:
    """Train."""
    options = common.add_options(parser).parse_args()
    if options.devices % 2:
        parser.error("--devices must be even: two devices share the weights")
    mesh = keras.distribution.DeviceMesh((options.devices // 2, 2), ("batch", "model"))
    # The plan is made from one model, and the model to train is built under it.
    plan = layout_map(common.new_model(options.solution), mesh, axis="model")
    keras.distribution.set_distribution(keras.distribution.ModelParallel(layout_map=plan))
    history = common.train(options)
    common.report(options, "jax ModelParallel", options.devices, history["loss"])


if __name__ == "__main__":
    main()
