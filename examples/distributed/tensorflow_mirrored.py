"""TensorFlow: the batch divided among devices, `python tensorflow_mirrored.py --devices 4`.

The devices are parts of this CPU, which is for trying; without `--devices` all GPUs.
"""

import argparse
import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import common
import tensorflow as tf


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, help="parts of the CPU to take for devices")
    options = common.add_options(parser).parse_args()
    names = None
    if options.devices:
        cpu = tf.config.list_physical_devices("CPU")[0]
        parts = [tf.config.LogicalDeviceConfiguration()] * options.devices
        tf.config.set_logical_device_configuration(cpu, parts)
        names = [f"CPU:{number}" for number in range(options.devices)]
    strategy = tf.distribute.MirroredStrategy(names)
    with strategy.scope():
        history = common.train(options)
    devices = strategy.num_replicas_in_sync
    common.report(options, "tensorflow MirroredStrategy", devices, history["loss"])


if __name__ == "__main__":
    main()
