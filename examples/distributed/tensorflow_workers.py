"""TensorFlow: several processes, on one machine or on several.

    python tensorflow_workers.py --workers 2      # starts both here

On several machines set TF_CONFIG on each, and start it without `--workers`.
"""

import argparse
import json
import os
import socket
import subprocess
import sys

os.environ["KERAS_BACKEND"] = "tensorflow"

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--workers", type=int, help="start so many processes here")


def main() -> None:
    """Train, or start the processes that do."""
    import tensorflow as tf

    if "TF_CONFIG" not in os.environ:
        known, _ = parser.parse_known_args()
        sys.exit(start_all(known.workers or 1))
    # First of all, before anything is computed.
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    import common

    options = common.add_options(parser).parse_args()
    with strategy.scope():
        history = common.train(options)
    if strategy.cluster_resolver.task_id == 0:
        devices = strategy.num_replicas_in_sync
        common.report(options, "tensorflow workers", devices, history["loss"])


def start_all(count: int) -> int:
    """Start all processes here; the largest exit status."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    workers = [f"127.0.0.1:{server.getsockname()[1]}" for server in servers]
    for server in servers:
        server.close()
    processes = []
    for number in range(count):
        task = {"type": "worker", "index": number}
        config = json.dumps({"cluster": {"worker": workers}, "task": task})
        command = [sys.executable, *sys.orig_argv[1:]]
        processes.append(subprocess.Popen(command, env={**os.environ, "TF_CONFIG": config}))
    statuses = [process.wait() for process in processes]
    for number, status in enumerate(statuses):
        if status:
            print(f"worker {number} ended with status {status}", file=sys.stderr)
    return max(abs(status) for status in statuses)


if __name__ == "__main__":
    main()
