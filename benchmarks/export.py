"""Which solution can be exported to which format, from which backend, and how exactly?

    python benchmarks/export.py

Models with unknown batch and time, most with a mask, are exported from every backend to every
format, loaded in the format's own runtime, and compared with Keras at several batch sizes and
lengths. Where that fails, the time is fixed, and then the batch size too. Writes
results/export.json, and the table of it into docs/export.md; `--tables` prints that and each error,
from the committed results.
"""

import argparse
import json
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
from rich.progress import track

from multibackend_lstm.environment import set_backend, version_of
from multibackend_lstm.export.formats import FORMATS
from multibackend_lstm.porting import ExportError, export

NAME = "export"
TIME, CHANNELS, FEATURES, UNITS = 10, 6, 3, 32
CONVERTERS = ("onnx", "onnxruntime", "tf2onnx", "openvino", "ai-edge-litert")
# What is fixed, from the most to the least useful.
FIXED: tuple[dict[str, int], ...] = ({}, {"time": TIME}, {"time": TIME, "batch": 2})


def models() -> dict[str, Callable[[], Any]]:
    """The models by name."""
    import keras

    import multibackend_lstm
    from multibackend_lstm import SOLUTIONS, build_model

    shape = (None, CHANNELS, FEATURES)

    def gru() -> Any:
        inputs = keras.Input(shape, name="inputs")
        x = keras.layers.Masking(0.0)(inputs)
        return keras.Model(inputs, keras.layers.Dense(1)(multibackend_lstm.GRU(UNITS)(x)))

    def stock() -> Any:
        inputs = keras.Input((None, FEATURES), name="inputs")
        x = keras.layers.LSTM(UNITS)(keras.layers.Masking(0.0)(inputs))
        return keras.Model(inputs, keras.layers.Dense(1)(x))

    def solution(name: str, **options: Any) -> Callable[[], Any]:
        return lambda: build_model(shape, name, units=UNITS, **options)

    return {
        **{f"`{name}`": solution(name, masking=0.0) for name in SOLUTIONS},
        "`reshape`, no mask": solution("reshape"),
        "`reshape`, bidirectional": solution("reshape", masking=0.0, bidirectional=True),
        "`reshape`, with `GRU`": gru,
        "`keras.layers.LSTM`": stock,
    }


def measure(folder: Path) -> list[dict[str, Any]]:
    """What became of each model in each format from each backend."""
    # Only builds and saves here: an export has processes of its own.
    set_backend("jax")
    import keras

    files = {}
    for index, (name, build) in enumerate(models().items()):
        keras.utils.set_random_seed(index)
        files[name] = folder / f"{index}.keras"
        build().save(files[name])
    cells = [
        (name, format, backend)
        for name in files
        for format, kind in FORMATS.items()
        for backend in kind.backends
    ]
    rows = []
    for name, format, backend in track(cells, description="exporting"):
        start = time.perf_counter()
        found = _cell(files[name], folder, format, backend)
        seconds = round(time.perf_counter() - start, 1)
        rows.append({"model": name, "format": format, "backend": backend, **found})
        rows[-1]["seconds"] = seconds
    return rows


def _cell(file: Path, folder: Path, format: str, backend: str) -> dict[str, Any]:
    path = folder / f"artefact{FORMATS[format].suffix}"
    errors = []
    for fixed in FIXED:
        try:
            report = export(
                file,
                path,
                format,
                backend=backend,
                check=True,
                overwrite=True,
                timeout=180,
                **fixed,
            )
        except ExportError as error:
            errors.append(str(error.report))
            continue
        size = sum(f.stat().st_size for f in _files(path) if f.is_file())
        return {
            "fixed": fixed,
            "difference": report.attempts[-1].difference,
            "bytes": size,
            "errors": errors,
        }
    return {"fixed": None, "difference": None, "bytes": None, "errors": errors}


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return list(path.rglob("*"))
    return [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]


def committed() -> list[dict[str, Any]]:
    """The rows of the committed results."""
    document = json.loads((common.RESULTS / f"{NAME}.json").read_text())
    rows: list[dict[str, Any]] = document["results"]["rows"]
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """What works, by model, format and backend."""
    pairs = list(dict.fromkeys((row["format"], row["backend"]) for row in rows))
    lines = [
        "| model | " + " | ".join(f"{f} from {b}" for f, b in pairs) + " |",
        "|---" * (len(pairs) + 1) + "|",
    ]
    for name in dict.fromkeys(row["model"] for row in rows):
        found = {(r["format"], r["backend"]): r for r in rows if r["model"] == name}
        lines.append(f"| {name} | " + " | ".join(_text(found[pair]) for pair in pairs) + " |")
    return "\n".join(lines) + "\n"


def tables() -> None:
    """Print what works, and the errors of what does not."""
    rows = committed()
    print(table(rows))
    # What each exporter said, first of a free time, and last of what still fails with fixed sizes.
    said: dict[str, list[str]] = {}
    for row in rows:
        for error in row["errors"] if row["fixed"] is None else row["errors"][:1]:
            names = said.setdefault(textwrap.shorten(error, 300), [])
            if row["model"] not in names:
                names.append(row["model"])
    for error, names in said.items():
        print(f"- {', '.join(names)}: {error}")


def _text(row: dict[str, Any]) -> str:
    if row["fixed"] is None:
        return "fails"
    fixed = " and ".join(row["fixed"])
    difference = f"{row['difference']:.0e}" if row["difference"] else "0"
    return (f"{fixed} fixed, " if fixed else "free, ") + difference


def main() -> None:
    """Measure and write, or print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", action="store_true", help="print them from committed results")
    if parser.parse_args().tables:
        tables()
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder))
    converters = {name: version_of(name) for name in CONVERTERS}
    common.write_results(NAME, __doc__.splitlines()[0], {"converters": converters, "rows": rows})
    common.write_table("export.md", NAME, table(committed()))


if __name__ == "__main__":
    main()
