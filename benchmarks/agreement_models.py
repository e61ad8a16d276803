"""Do well-known models agree on every backend, how long does that take, and how much memory?

    python benchmarks/agreement_models.py
    python benchmarks/agreement_models.py --models ConvNeXtTiny T5
    python benchmarks/agreement_models.py --table            # Markdown, from the committed JSON

Models of `keras.applications`, with drawn weights, and T5 and Whisper of KerasHub in small, which
are left out where `keras_hub` cannot be imported; nothing is downloaded. Each is compared in a
process of its own on all installed backends, with the default settings of `agree`, workers' start
included. Nothing else should run on the machine.
"""

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import common
import numpy as np

NAME = "agreement_models"
QUESTION = "Do well-known models agree on every backend, in what time and memory?"
#: Seconds that ConvNeXtTiny may take on 2 cores.
TARGET_SECONDS = 240


def application(name: str, size: int) -> Any:
    """A model of `keras.applications` for small images, and such images."""
    import keras

    made = getattr(keras.applications, name)
    model = made(input_shape=(size, size, 3), weights=None, classes=10)
    return model, np.random.default_rng(0).uniform(0, 255, (2, size, size, 3)).astype("float32")


def convnext_tiny() -> Any:
    """28 million weights."""
    return application("ConvNeXtTiny", 32)


def mobilenet_small() -> Any:
    """For 32 pixels, which its strides reduce to one."""
    return application("MobileNetV3Small", 32)


def mobilenet_small_64() -> Any:
    """For 64 pixels."""
    return application("MobileNetV3Small", 64)


def t5() -> Any:
    """Encoder and decoder with relative positions, two layers each."""
    from keras_hub.models import T5Backbone

    model = T5Backbone(
        vocabulary_size=50, num_layers=2, num_heads=2, hidden_dim=16, intermediate_dim=32,
        key_value_dim=8,
    )  # fmt: skip
    ids, masks = _tokens(9), _mask(9)
    inputs = {
        "encoder_token_ids": ids,
        "encoder_padding_mask": masks,
        "decoder_token_ids": ids[:, ::-1].copy(),
        "decoder_padding_mask": masks,
    }
    return model, inputs


def whisper() -> Any:
    """Audio features to tokens, two layers each."""
    from keras_hub.models import WhisperBackbone

    model = WhisperBackbone(
        vocabulary_size=50, num_layers=2, num_heads=2, hidden_dim=16, intermediate_dim=32,
        max_encoder_sequence_length=20, max_decoder_sequence_length=12,
    )  # fmt: skip
    features = np.random.default_rng(0).normal(size=(2, 30, model.num_mels)).astype("float32")
    inputs = {
        "encoder_features": features,
        "decoder_token_ids": _tokens(8),
        "decoder_padding_mask": _mask(8),
    }
    return model, inputs


def _tokens(length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 50, (2, length)).astype("int32")


def _mask(length: int) -> np.ndarray:
    mask = np.ones((2, length), "int32")
    mask[1, length // 2 :] = 0
    return mask


MODELS = {
    "ConvNeXtTiny": "agreement_models:convnext_tiny",
    "MobileNetV3Small": "agreement_models:mobilenet_small",
    "MobileNetV3Small, 64 pixels": "agreement_models:mobilenet_small_64",
    "T5": "agreement_models:t5",
    "Whisper": "agreement_models:whisper",
}
OF_KERAS_HUB = ("T5", "Whisper")


def main() -> None:
    """Measure, print, and write the results; or print those that were written."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=[*MODELS], default=[*MODELS])
    parser.add_argument("--one", choices=[*MODELS], help=argparse.SUPPRESS)
    parser.add_argument("--table", action="store_true", help="print a Markdown table and end")
    parser.add_argument("--dry-run", action="store_true", help="write no file")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.one)))
        return
    if not options.table:
        found = []
        for name in options.models:
            if name in OF_KERAS_HUB and importlib.util.find_spec("keras_hub") is None:
                print(f"{name} is left out: pip install keras-hub", file=sys.stderr)
                continue
            command = [sys.executable, __file__, "--one", name]
            ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found.append(json.loads(ran.stdout.splitlines()[-1]))
            print(found[-1], file=sys.stderr, flush=True)
        if options.dry_run:
            print(table(found))
            return
        results = {"models": found, "targets_to_reach": {"ConvNeXtTiny": TARGET_SECONDS}}
        print(f"wrote {common.write_results(NAME, QUESTION, results)}", file=sys.stderr)
    document = json.loads((common.RESULTS / f"{NAME}.json").read_text())
    print(table(document["results"]["models"]))


def measured(name: str) -> dict[str, Any]:
    """One model: what is found, the time that it took, and the largest memory of each process."""
    warnings.filterwarnings("ignore", message=".*__array__ implementation")
    os.environ.setdefault("KERAS_BACKEND", "numpy")
    sys.path.insert(0, str(Path(__file__).parent))
    from multibackend_lstm import agreement

    start = time.perf_counter()
    report = agreement.check(MODELS[name], timeout=1200)
    seconds = time.perf_counter() - start
    own, largest = (
        round(resource.getrusage(who).ru_maxrss / 1024)
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return {
        "model": name,
        "targets": [result.target for result in report.results],
        "agrees": report.agrees,
        "findings": [f"{f.verdict}: {f.message}" for f in report.findings],
        "layers": len(report.layers),
        "score": round(report.score, 2),
        "seconds": round(seconds, 1),
        "peak_mb": {"parent": own, "largest_worker": largest},
    }


def table(found: list[dict[str, Any]]) -> str:
    """A line a model."""
    lines = [
        "| model | layers | agrees | largest score | seconds | MB, largest process |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for one in found:
        memory, seconds = max(one["peak_mb"].values()), one["seconds"]
        agrees = "yes" if one["agrees"] else "no"
        lines.append(
            f"| {one['model']} | {one['layers']} | {agrees} | {one['score']} | {seconds:.0f} "
            f"| {memory:,} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
