"""How long does one step of a stream take, beside the same step written for its engine by hand?

    python benchmarks/streaming.py [--engine jax ...] [--steps 100000] [--long 1000000]
        [--long-engine jax ...]

A `reshape` model with LSTM(64) of (channels=8, features=16), batch 1, sample by sample through
`Stream.step`: from a NumPy array to a NumPy array. On each backend and engine in a process of its
own, in turn with its rival: on torch `torch.nn.LSTMCell` and `Linear` in a loop, on ONNX Runtime
the file that `torch.onnx.export` makes of `torch.nn.LSTM` with its states as inputs and outputs,
run by the session itself. Then 1,000 series in one batch; and on the engines of `--long-engine`
(ONNX Runtime and JAX) `--long` steps, of which the memory is watched; 0 for none. Writes
results/streaming.json.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np

AXES = (8, 16)
UNITS = 64
ENGINES = ("torch", "jax", "tensorflow", "onnxruntime", "litert", "openvino")
SERIES = 1000


def percentiles(seconds: np.ndarray) -> dict[str, float]:
    """Of single steps, in milliseconds."""
    found = np.percentile(seconds * 1e3, [50, 99, 99.9])
    return dict(zip(("p50_ms", "p99_ms", "p99_9_ms"), np.round(found, 4).tolist(), strict=True))


def in_turn(functions: dict[str, Callable[[Any], Any]], steps: int) -> dict[str, Any]:
    """Seconds of every step, in blocks of each function in turn."""
    x = np.random.default_rng(0).normal(size=(64, *AXES)).astype("float32")
    block, seconds = max(1, steps // 20), {name: [] for name in functions}
    for function in functions.values():
        for sample in x:
            function(sample)
    for _ in range(steps // block):
        for name, function in functions.items():
            for number in range(block):
                start = time.perf_counter()
                function(x[number % 64])
                seconds[name].append(time.perf_counter() - start)
    return {name: percentiles(np.array(taken)) for name, taken in seconds.items()}


def lstm_cell() -> Callable[[Any], Any]:
    """The step in plain PyTorch."""
    import torch

    cell, head = torch.nn.LSTMCell(AXES[0] * AXES[1], UNITS), torch.nn.Linear(UNITS, 1)
    state = (torch.zeros(1, UNITS), torch.zeros(1, UNITS))

    def step(sample: Any) -> Any:
        nonlocal state
        with torch.inference_mode():
            state = cell(torch.from_numpy(sample).reshape(1, -1), state)
            return head(state[0]).numpy()

    return step


def exported_by_hand(folder: str) -> Callable[[Any], Any]:
    """The step of torch.nn.LSTM in ONNX Runtime, with nothing around it."""
    import onnxruntime
    import torch

    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = torch.nn.LSTM(AXES[0] * AXES[1], UNITS, batch_first=True)
            self.head = torch.nn.Linear(UNITS, 1)

        def forward(self, x: Any, h: Any, c: Any) -> Any:
            _, (h, c) = self.lstm(x.reshape(1, 1, -1), (h, c))
            return self.head(h[0]), h, c

    zeros = torch.zeros(1, 1, UNITS)
    path = Path(folder, "hand.onnx")
    example = (torch.zeros(1, *AXES), zeros, zeros)
    # The exporter that needs no further package; either writes one LSTM operator.
    torch.onnx.export(Step().eval(), example, str(path), dynamo=False, input_names=["x", "h", "c"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]
    state = [zeros.numpy(), zeros.numpy()]

    def step(sample: Any) -> Any:
        nonlocal state
        y, *state = session.run(None, dict(zip(names, [sample[None], *state], strict=True)))
        return y

    return step


def bare_step(stream: Any) -> Callable[[Any], Any]:
    """The exported or compiled step with its states carried, without what `Stream` checks."""
    engine, state = stream._engine, list(stream._state)

    def step(sample: Any) -> Any:
        nonlocal state
        output, *state = engine.run([sample[None], *state])
        return engine.to_numpy(output)

    return step


def resident() -> float:
    """MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(engine: str, steps: int, long: int) -> dict[str, Any]:
    """One engine and its rival."""
    from multibackend_lstm import Stream, build_model

    model = build_model((None, *AXES), "reshape", units=UNITS)
    runtime = engine if engine in ("onnxruntime", "litert", "openvino") else None
    stream = Stream(model, runtime=runtime)
    functions: dict[str, Callable[[Any], Any]] = {"stream": stream.step, "bare": bare_step(stream)}
    with tempfile.TemporaryDirectory() as folder:
        if engine == "torch":
            functions["rival"] = lstm_cell()
        if engine == "onnxruntime":
            functions["rival"] = exported_by_hand(folder)
        found: dict[str, Any] = {"engine": engine, "steps": steps, **in_turn(functions, steps)}
    if "rival" in functions:
        for name in ("stream", "bare"):
            found[f"{name}_ratio"] = round(found[name]["p50_ms"] / found["rival"]["p50_ms"], 3)
    many = Stream(model, batch_size=SERIES, runtime=runtime)
    batch = np.random.default_rng(1).normal(size=(SERIES, *AXES)).astype("float32")
    taken = [common.timed(lambda: many.step(batch)) for _ in range(60)][10:]
    found["series_a_second"] = round(SERIES / float(np.median(taken)))
    if long:
        sample, memory = batch[0], []
        for number in range(long):
            if number % max(1, long // 10) == 0:
                memory.append(round(resident(), 1))
            stream.step(sample)
        found["long"] = {"steps": long, "resident_mib": [*memory, round(resident(), 1)]}
    return found


def main() -> None:
    """Run each engine in a process of its own, write the results, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", action="append", choices=ENGINES, default=[])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--long", type=int, default=1_000_000)
    parser.add_argument("--long-engine", action="append", choices=ENGINES, default=[])
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(arguments.engine[0], arguments.steps, arguments.long)))
        return
    reports = []
    for engine in arguments.engine or ENGINES:
        backend = engine if engine in ("torch", "jax", "tensorflow") else "torch"
        is_long = engine in (arguments.long_engine or ("onnxruntime", "jax"))
        options = ["--steps", str(arguments.steps), "--long", str(is_long * arguments.long)]
        reports += common.on_each_backend(__file__, ["--engine", engine, *options], [backend])
    common.write_results("streaming", __doc__.splitlines()[0], reports)
    print(f"{'engine':13}{'p50, ms':>9}{'p99':>9}{'p99.9':>9}{'of rival':>10}{'series/s':>11}")
    for report in reports:
        times = "".join(f"{value:9.3f}" for value in report["stream"].values())
        ratio = f"{report['stream_ratio']:10.2f}" if "rival" in report else " " * 10
        print(f"{report['engine']:13}{times}{ratio}{report['series_a_second']:11,}")


if __name__ == "__main__":
    main()
