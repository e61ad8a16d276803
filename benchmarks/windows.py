"""How fast are the batches of `windows`, beside plain NumPy, tf.data, DataLoader and Grain?

    python benchmarks/windows.py [--repeats 15]

Windows of 100 steps of (channels=8, features=6) float32, one every 10 steps, in batches of 32, from
one recording of 100,000 steps and 40 of 2,500, in order and shuffled. All read the same windows
in one process, in turn; one call is an epoch. Then a sparse `.npy` file of 10 GiB: how much memory
the process holds while all its windows are read. Writes results/windows.json. What is not installed
of torch, TensorFlow and Grain is left out.
"""

import argparse
import os
import tempfile
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import common
import numpy as np

LENGTH, STRIDE, BATCH, AXES = 100, 10, 32, (8, 6)
CASES = {"one recording": (100_000,), "40 recordings": (2_500,) * 40}
GIB = 2**30


def places(recordings: list, shuffled: bool) -> list:
    """Recording and start of each window, in the order of an epoch."""
    found = [
        (at, start)
        for at, recording in enumerate(recordings)
        for start in range(0, len(recording) - LENGTH + 1, STRIDE)
    ]
    if shuffled:
        found = [found[i] for i in np.random.default_rng(0).permutation(len(found))]
    return found


def epochs(recordings: list, shuffled: bool) -> dict:
    """For each way to make batches a function that reads an epoch and counts the windows."""
    from multibackend_lstm import windows

    dataset = windows(recordings, LENGTH, STRIDE, batch_size=BATCH, shuffle=shuffled)
    order = places(recordings, shuffled)
    count = len(order)

    def ours():
        return sum(len(dataset[index][0]) for index in range(len(dataset)))

    def slices():
        total = 0
        for first in range(0, count, BATCH):
            chosen = order[first : first + BATCH]
            total += len(np.stack([recordings[at][s : s + LENGTH] for at, s in chosen]))
        return total

    found = {"windows": ours, "numpy": slices}
    if find_spec("torch"):
        import torch

        tensors = [torch.from_numpy(recording) for recording in recordings]

        class Windows(torch.utils.data.Dataset):
            def __len__(self):
                return count

            def __getitem__(self, index):
                at, start = order[index]
                return tensors[at][start : start + LENGTH]

        loader = torch.utils.data.DataLoader(Windows(), BATCH)
        found["DataLoader"] = lambda: sum(len(batch) for batch in loader)
    if find_spec("tensorflow"):
        import tensorflow as tf

        # As keras.utils.timeseries_dataset_from_array does it, for several recordings too.
        whole = tf.constant(np.concatenate(recordings))
        before = np.cumsum([0, *map(len, recordings)])
        starts = tf.constant([before[at] + start for at, start in order], "int64")
        batches = (
            tf.data.Dataset.from_tensor_slices(starts)
            .map(lambda start: whole[start : start + LENGTH], num_parallel_calls=tf.data.AUTOTUNE)
            .batch(BATCH)
            .prefetch(tf.data.AUTOTUNE)
        )
        found["tf.data"] = lambda: sum(int(batch.shape[0]) for batch in batches)
        gathered = (
            tf.data.Dataset.from_tensor_slices(starts)
            .batch(BATCH)
            .map(
                lambda first: tf.gather(whole, first[:, None] + tf.range(LENGTH, dtype="int64")),
                num_parallel_calls=tf.data.AUTOTUNE,
            )
            .prefetch(tf.data.AUTOTUNE)
        )
        found["tf.data, a gather a batch"] = lambda: sum(int(b.shape[0]) for b in gathered)
    if find_spec("grain"):
        import grain

        class Source:
            def __len__(self):
                return count

            def __getitem__(self, index):
                at, start = order[index]
                return recordings[at][start : start + LENGTH]

        loaded = grain.MapDataset.source(Source()).batch(BATCH)
        found["grain"] = lambda: sum(len(loaded[index]) for index in range(len(loaded)))
    assert {function() for function in found.values()} == {count}
    return found


def resident() -> float:
    """MiB that this process holds in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def big_file() -> dict:
    """Open 10 GiB, read all windows in order and then shuffled, and watch the memory."""
    from multibackend_lstm import windows

    before = resident()
    report: dict = {"GiB": 10, "resident_MiB_before": round(before)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "big.npy")
        steps = 10 * GIB // (4 * AXES[0] * AXES[1])
        np.lib.format.open_memmap(path, "w+", "float32", shape=(steps, *AXES))
        for name, shuffled in (("in order", False), ("shuffled", True)):
            start, peak = time.perf_counter(), 0.0
            dataset = windows(path, LENGTH, LENGTH, missing=None, shuffle=shuffled, batch_size=64)
            opened = time.perf_counter() - start
            for index in range(len(dataset)):
                dataset[index]
                peak = max(peak, resident()) if index % 10 == 0 else peak
            report[name] = {
                "opened_ms": round(opened * 1e3, 2),
                "resident_MiB_at_most": round(peak),
                "GiB_a_second": round(10 / (time.perf_counter() - start), 2),
            }
        many = windows(path, LENGTH, 1, missing=None, shuffle=True)
        for index in range(100):
            many[index]
        report["stride 1"] = {"windows": many.windows, "resident_MiB": round(resident())}
    return report


def main() -> None:
    """Measure, write the results, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "jax")  # none computes here; it holds least memory
    file = big_file() if Path("/proc/self/statm").exists() else None
    reports = []
    for name, lengths in CASES.items():
        rng = np.random.default_rng(0)
        recordings = [rng.normal(size=(n, *AXES)).astype("float32") for n in lengths]
        for shuffled in (False, True):
            functions = epochs(recordings, shuffled)
            seconds = common.alternate(functions, arguments.repeats)
            reports.append(
                {
                    "case": name,
                    "shuffled": shuffled,
                    "count": len(places(recordings, shuffled)),
                    **{key: common.summary(values) for key, values in seconds.items()},
                    "ratios": {
                        key: common.ratio(seconds["windows"], values)
                        for key, values in seconds.items()
                        if key != "windows"
                    },
                }
            )
    results = {"epochs": reports, "file": file}
    if find_spec("grain"):
        results["grain"] = version("grain")
    common.write_results("windows", __doc__.splitlines()[0], results)
    print(f"{'case':16}{'shuffled':10}{'windows, ms':>12}   ratio to each rival")
    for report in reports:
        ratios = ", ".join(f"{key} {value}" for key, value in report["ratios"].items())
        median = report["windows"]["median_ms"]
        print(f"{report['case']:16}{report['shuffled']!s:10}{median:12.1f}   {ratios}")
    print(file)


if __name__ == "__main__":
    main()
