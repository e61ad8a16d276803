"""How long does a prediction by each artefact take, beside what torch's own exporter makes?

    python benchmarks/export_latency.py [--seconds 2] [--table]

Three models of 100 known steps are exported from every backend to every format, LiteRT with
`--fused` too, and predict batches of 1 and 32 in the format's own runtime, on one thread. The rival
is the same model written with `torch.nn.LSTM` and exported by `torch.onnx.export`, run by ONNX
Runtime in turn with each artefact, with the same weights; outputs must agree. Writes
results/export_latency.json, and the table of it into docs/export.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
from models import torch_model
from rich.progress import track

from multibackend_lstm.environment import set_backend, version_of
from multibackend_lstm.export.formats import FORMATS

NAME = "export_latency"
# Name, solution, shape of a sample, units.
MODELS = (
    ("`LSTM(128)`", "pre_reshape", (100, 32), 128),
    ("`reshape`", "reshape", (100, 8, 16), 64),
    ("`conv`", "conv", (100, 8, 16), 64),
)
BATCHES = (1, 32)
RUNTIMES = ("onnxruntime", "ai-edge-litert", "openvino", "tensorflow", "torch")
Call = Callable[[], np.ndarray]


def written(folder: Path) -> list[dict[str, Any]]:
    """Every artefact, and the rival of each model."""
    set_backend("jax")
    import torch  # isort: skip

    from multibackend_lstm import build_model
    from multibackend_lstm.porting import export

    cells: list[dict[str, Any]] = []
    for place, (title, solution, shape, units) in enumerate(MODELS):
        model = build_model(shape, solution, units=units)
        file, rival = folder / f"{place}.keras", folder / f"{place}.rival.onnx"
        model.save(file)
        torch.onnx.export(
            torch_model(solution, (*shape,), model.get_weights()).eval(),
            (torch.zeros(2, *shape),),
            rival,
            dynamo=False,
            input_names=["inputs"],
            dynamic_axes={"inputs": {0: "batch"}},
        )
        about = {"model": title, "shape": shape, "rival": str(rival)}
        for format, kind in FORMATS.items():
            cells += [
                {**about, "file": str(file), "format": format, "backend": backend, "batch": batch}
                for backend in kind.backends
                for batch in (None, *(BATCHES if format == "litert" else ()))
            ]
    for place, cell in enumerate(track(cells, description="exporting")):
        path = folder / str(place) / f"artefact{FORMATS[cell['format']].suffix}"
        options = {"backend": cell["backend"], "batch": cell["batch"], "check": False}
        report = export(
            cell["file"], path, cell["format"], fused=cell["batch"] is not None, **options
        )
        cell |= {"path": str(path), "notes": list(report.attempts[-1].notes)}
    return cells


def caller(format: str, path: str, x: np.ndarray, fused: bool = False) -> Call:
    """A prediction as the documentation shows it, from a NumPy array to a NumPy array."""
    if format == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {"inputs": x})[0]
    if format == "saved_model":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        loaded = tf.saved_model.load(path)
        return lambda: next(iter(loaded.serve(tf.constant(x)).values())).numpy()
    if format == "litert":
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(path, num_threads=1)
        place = interpreter.get_input_details()[0]["index"]
        interpreter.resize_tensor_input(place, x.shape)
        interpreter.allocate_tensors()
        output = interpreter.get_output_details()[0]["index"]

        def interpret() -> np.ndarray:
            if fused:
                interpreter.reset_all_variables()
            interpreter.set_tensor(place, x)
            interpreter.invoke()
            return interpreter.get_tensor(output)

        return interpret
    if format == "openvino":
        import openvino

        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        compiled = openvino.Core().compile_model(path, "CPU", settings)
        return lambda: compiled([x])[0]
    import torch

    torch.set_num_threads(1)
    program = torch.export.load(path).module()

    def run() -> np.ndarray:
        with torch.inference_mode():
            return next(iter(program(torch.from_numpy(x)).values())).numpy()

    return run


def in_turn(functions: dict[str, Call], limit: float) -> dict[str, list[float]]:
    """Seconds of each call, in blocks of each function in turn.

    A pause before each lets the threads of the other's pool go to sleep, which wait awake.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    blocks = 6
    for block in range(blocks):
        for name, function in functions.items():
            time.sleep(0.02)
            for _ in range(2):
                function()
            end = time.perf_counter() + limit / blocks / len(functions)
            taken = [common.timed(function)]
            while time.perf_counter() < end and len(taken) < 50:
                taken.append(common.timed(function))
            if block:  # the first warms up
                seconds[name] += taken
    return seconds


def timed(cells: list[dict[str, Any]], limit: float) -> list[dict[str, Any]]:
    """Latencies of artefacts of one format."""
    rows = []
    for cell in cells:
        fused = cell["batch"] is not None
        for batch in (cell["batch"],) if fused else BATCHES:
            x = np.random.default_rng(0).normal(size=(batch, *cell["shape"])).astype("float32")
            functions = {
                "artefact": caller(cell["format"], cell["path"], x, fused),
                "rival": caller("onnx", cell["rival"], x),
            }
            np.testing.assert_allclose(*(f() for f in functions.values()), atol=1e-5)
            seconds = in_turn(functions, limit)
            found = {name: common.summary(taken) for name, taken in seconds.items()}
            medians = [found[name]["median_ms"] for name in ("artefact", "rival")]
            rows.append(
                {
                    **{key: cell[key] for key in ("model", "format", "backend", "notes")},
                    "fused": fused,
                    "batch": batch,
                    **found,
                    "ratio": round(medians[0] / medians[1], 3),
                }
            )
    return rows


def measure(limit: float) -> list[dict[str, Any]]:
    """All latencies, each format's in a process of its own."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cells = written(Path(folder))
        for format in track(FORMATS, description="predicting"):
            given = [cell for cell in cells if cell["format"] == format]
            process = subprocess.run(
                [sys.executable, __file__, "--worker", "--seconds", str(limit)],
                input=json.dumps(given),
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            rows += json.loads(process.stdout.splitlines()[-1])
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Milliseconds and ratio to the rival, by artefact, model and batch size."""
    columns = [(name, batch) for name, *_ in MODELS for batch in BATCHES]
    found = {(r["format"], r["backend"], r["fused"], r["model"], r["batch"]): r for r in rows}
    artefacts = list(dict.fromkeys(key[:3] for key in found))
    lines = [
        "| artefact | " + " | ".join(f"{name}, batch {batch}" for name, batch in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    rivals = (
        np.median([r["rival"]["median_ms"] for r in rows if (r["model"], r["batch"]) == column])
        for column in columns
    )
    lines.append("| `torch.nn.LSTM`, ONNX | " + " | ".join(f"{x:.2f}" for x in rivals) + " |")
    for format, backend, fused in artefacts:
        cells = (found[format, backend, fused, *column] for column in columns)
        text = (f"{row['artefact']['median_ms']:.2f} ({row['ratio']:.2f})" for row in cells)
        title = f"`{format}` from {backend}" + (", `--fused`" if fused else "")
        lines.append(f"| {title} | " + " | ".join(text) + " |")
    return "\n".join(lines) + "\n"


def write_table() -> None:
    """Put the table of the committed results into the documentation."""
    rows = json.loads((common.RESULTS / f"{NAME}.json").read_text())["results"]["rows"]
    common.write_table("export.md", NAME, table(rows))


def main() -> None:
    """Measure and write; or only the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="for an artefact and a batch")
    parser.add_argument("--table", action="store_true", help="write it from committed results")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(timed(json.load(sys.stdin), options.seconds)))
        return
    if not options.table:
        rows = measure(options.seconds)
        runtimes = {name: version_of(name) for name in RUNTIMES}
        results = {"runtimes": runtimes, "rows": rows}
        common.write_results(NAME, __doc__.splitlines()[0], results)
    write_table()


if __name__ == "__main__":
    main()
