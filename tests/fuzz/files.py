"""Damage files of models and arrays at random: each must load, or be refused in one line.

nox -s fuzz_files -- --files 3000 --seed 0
"""

import argparse
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import safetensors.numpy
import torch

from multibackend_lstm.runtimes.errors import InputError
from multibackend_lstm.runtimes.loading import load_keras_model
from multibackend_lstm.torch_weights.state_dict import read_state_dict


def originals(folder):
    """One sound file of each kind, with what reads it."""
    model = keras.Sequential([keras.Input((None, 3)), keras.layers.LSTM(4), keras.layers.Dense(2)])
    arrays = {"weight": np.ones((8, 3), "float32"), "bias": np.ones(8, "float32")}
    for suffix in (".keras", ".h5"):
        model.save(folder / f"sound{suffix}")
        yield folder / f"sound{suffix}", load_keras_model
    np.savez(folder / "sound.npz", **arrays)
    yield folder / "sound.npz", read_state_dict
    safetensors.numpy.save_file(arrays, folder / "sound.safetensors")
    yield folder / "sound.safetensors", read_state_dict
    torch.save({k: torch.tensor(array) for k, array in arrays.items()}, folder / "sound.pt")
    yield folder / "sound.pt", read_state_dict


def damaged(content, draw):
    """The content, cut off, with bits flipped, or with a stretch of it overwritten."""
    content = bytearray(content)
    kind = draw.choice(("cut", "flip", "overwrite"))
    if kind == "cut":
        del content[draw.randrange(len(content)) :]
    elif kind == "flip":
        for _ in range(draw.randint(1, 8)):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    else:
        start = draw.randrange(len(content))
        stretch = draw.choice((bytes(8), b"\xff" * 8, b"99999999", draw.randbytes(16)))
        content[start : start + len(stretch)] = stretch
    return bytes(content)


def main():
    """Print what became of the files; the status is 1 if one ended otherwise than it may."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, outcomes, failed, start = random.Random(options.seed), Counter(), 0, time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sound = [(path, path.read_bytes(), read) for path, read in originals(folder)]
        for number in range(options.files):
            path, content, read = sound[number % len(sound)]
            bad = folder / f"bad{path.suffix}"
            bad.write_bytes(damaged(content, draw))
            try:
                read(bad)
                outcomes[path.suffix, "loaded"] += 1
            except InputError as error:
                outcomes[path.suffix, "refused"] += 1
                if "\n" in str(error):
                    failed += 1
                    print(f"file {number}: more than one line: {error}")
            except Exception as error:  # what a user would see as a bare traceback
                failed += 1
                print(f"file {number} ({path.suffix}): {type(error).__name__}: {error}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(dict(outcomes), f"{failed} failed, {time.monotonic() - start:.0f} s, {peak} MB at most")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
