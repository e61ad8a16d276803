"""JAX: the batch divided among devices, `python jax_data_parallel.py --devices 4`.

The devices are parts of this CPU, which is for trying; without `--devices` all that JAX finds.
"""

import argparse
import os

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--devices", type=int, help="parts of the CPU to take for devices")
known, _ = parser.parse_known_args()
os.environ["KERAS_BACKEND"] = "jax"
if known.devices:  # before JAX starts
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={known.devices}"
    os.environ["JAX_PLATFORMS"] = "cpu"

import common  # noqa: E402
import keras  # noqa: E402


def main() -> None:
    """Train."""
    options = common.add_options(parser).parse_args()
    devices = keras.distribution.list_devices()
    # From here on every model has its weights on all devices, and `fit` divides each batch.
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices))
    history = common.train(options)
    common.report(options, "jax DataParallel", len(devices), history["loss"])


if __name__ == "__main__":
    main()
