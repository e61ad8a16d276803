"""JAX: several processes, on one machine or on several.

python jax_processes.py --processes 2                        # starts both here
python jax_processes.py --processes 2 --process 0 --address 10.0.0.1:1234   # on each machine
"""

import argparse
import os
import sys

import processes

os.environ["KERAS_BACKEND"] = "jax"

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--processes", type=int, default=2)
parser.add_argument("--process", type=int, help="which one this is, from 0")
parser.add_argument("--address", help="of process 0, with a port")


def main() -> None:
    """Train, or start the processes that do."""
    import common
    import keras

    options = common.add_options(parser).parse_args()
    if options.process is None:
        sys.exit(start_all(options.processes))
    keras.distribution.initialize(options.address, options.processes, options.process)
    # Each process gives `fit` its own rows of each batch (which `same_run` chooses).
    keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
    history = common.train(options)
    if options.process == 0:
        common.report(options, "jax processes", options.processes, history["loss"])


def start_all(count: int) -> int:
    """Start all processes here."""
    address = f"127.0.0.1:{processes.free_ports(1)[0]}"
    command = [sys.executable, *sys.orig_argv[1:], "--address", address]
    commands = [[*command, "--process", str(number)] for number in range(count)]
    return processes.run_all([(one, os.environ) for one in commands])


if __name__ == "__main__":
    main()
