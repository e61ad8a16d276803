"""What the examples share: options, the model and its training, and the report.

It imports keras, so import it once the engine has what it must have before that.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from multibackend_lstm import SOLUTIONS, build_model, flatten_features, load_basic_motions
from multibackend_lstm.training import same_run


def add_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Options of every example."""
    parser.add_argument("--solution", choices=SOLUTIONS, default="reshape")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=12, help="of all devices together")
    parser.add_argument("--checkpoint", type=Path, help="folder to go on from after a kill")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def new_model(solution: str) -> keras.Model:
    """A compiled model for BasicMotions; on TensorFlow it is made in the strategy's scope."""
    model = build_model((100, 2, 3), solution, units=16, outputs=4, task="multiclass", dropout=0.3)
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def data(solution: str) -> tuple[Any, Any]:
    """The training cases of BasicMotions and their labels."""
    motions = load_basic_motions()
    x = motions.x_train
    return (flatten_features(x) if solution == "pre_reshape" else x), motions.y_train


def train(options: argparse.Namespace, callbacks: Sequence[Any] = ()) -> dict[str, list[float]]:
    """Train by `same_run`: every process calls it with all the data."""
    return same_run(
        new_model(options.solution),
        *data(options.solution),
        seed=0,
        epochs=options.epochs,
        batch_size=options.batch_size,
        checkpoint=options.checkpoint,
        callbacks=callbacks,
        verbose=0,
    )


def report(options: argparse.Namespace, engine: str, devices: int, losses: list[float]) -> None:
    """Print the loss of each epoch."""
    if options.json:
        print(json.dumps({"engine": engine, "devices": devices, "loss": losses}))
        return
    for epoch, loss in enumerate(losses, start=1):
        print(f"epoch {epoch}: loss {loss:.6f} ({engine}, {devices} devices)")
