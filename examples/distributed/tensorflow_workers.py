"""TensorFlow: several processes, on one machine or on several.

    python tensorflow_workers.py --workers 2      # starts both here

On several machines set TF_CONFIG on each, and start it without `--workers`. The loop is written
out, since `fit` of Keras 3 fails with this strategy (keras#20585).
"""

import argparse
import json
import os
import sys

import processes

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
    import keras

    from multibackend_lstm.agreement import fit_order, initialize

    options = common.add_options(parser).parse_args()
    x, y = common.data(options.solution)
    with strategy.scope():
        model = common.new_model(options.solution)
        initialize(model, seed=0)
        model.optimizer.build(model.trainable_variables)

    def step_of_replica(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        """The share of these rows in the mean over the whole batch."""
        replica = tf.distribute.get_replica_context()
        rows = replica.all_reduce("SUM", tf.cast(tf.shape(x)[0], "float32"))
        with tf.GradientTape() as tape:
            probabilities = model(x, training=True)
            losses = keras.losses.sparse_categorical_crossentropy(y, probabilities)
            loss = tf.reduce_sum(losses) / rows
        variables = model.trainable_variables
        # Keras's optimizer adds up the gradients of all replicas.
        model.optimizer.apply(tape.gradient(loss, variables), variables)
        return tf.reduce_sum(losses)

    @tf.function(reduce_retracing=True, autograph=False)
    def step(batch: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        return strategy.reduce("SUM", strategy.run(step_of_replica, args=batch), axis=None)

    losses = []
    for epoch in range(options.epochs):
        order = fit_order(len(x), seed=0, epoch=epoch)
        batches = tf.data.Dataset.from_tensor_slices((x[order], y[order]))
        # Each worker takes its rows of each batch.
        batches = strategy.experimental_distribute_dataset(batches.batch(options.batch_size))
        losses.append(sum(float(step(batch)) for batch in batches) / len(x))
    if strategy.cluster_resolver.task_id == 0:
        common.report(options, "tensorflow workers", strategy.num_replicas_in_sync, losses)


def start_all(count: int) -> int:
    """Start all processes here."""
    workers = [f"127.0.0.1:{port}" for port in processes.free_ports(count)]
    command = [sys.executable, *sys.orig_argv[1:]]
    commands = []
    for number in range(count):
        task = {"type": "worker", "index": number}
        config = json.dumps({"cluster": {"worker": workers}, "task": task})
        commands.append((command, {**os.environ, "TF_CONFIG": config}))
    return processes.run_all(commands)


if __name__ == "__main__":
    main()
