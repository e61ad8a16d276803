"""Which windows there are: runs of them at equal distances, so that millions need no list."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np


@dataclass(frozen=True)
class Run:
    """Windows of one recording: their starts are `first`, `first + stride`, ... .

    `steps` is the number of valid steps of each, `length` or less for a ragged one.
    """

    recording: int
    first: int
    count: int
    steps: int


@dataclass(frozen=True)
class Span:
    """What a window reads, seen from its start.

    Args:
        length: steps of a full window.
        stride: steps from one start to the next.
        horizon: steps from a window's last one to that of its target.
        target_length: target steps of a window; they end `horizon` steps behind its last one.
    """

    length: int
    stride: int
    horizon: int
    target_length: int

    def reads(self, start: int, steps: int) -> tuple[int, int]:
        """First step, and that behind the last, that a window and its targets read."""
        last = start + steps - 1 + self.horizon
        return min(start, last - self.target_length + 1), last + 1

    def runs_of(self, recording: int, low: int, high: int, ragged: bool) -> list[Run]:
        """The windows of the steps `low` to before `high`, which are without a gap.

        The first starts so that its targets are in there too.
        """
        before, reach = self.reads(0, self.length)
        start = low - before
        count = max(0, (high - start - reach) // self.stride + 1) if high - start >= reach else 0
        runs = [Run(recording, start, count, self.length)] if count else []
        if ragged:
            first = start + count * self.stride
            covered = start if not count else first - self.stride + self.length
            steps = min(self.length, high - self.horizon - first)
            if steps > 0 and covered < high - self.horizon:
                runs.append(Run(recording, first, 1, steps))
        return runs

    def within(self, run: Run, low: int, high: int) -> Run:
        """Those windows of a run that read nothing outside of the steps `low` to before `high`."""
        begin, end = self.reads(run.first, run.steps)
        skipped = max(0, -((begin - low) // self.stride)) if begin < low else 0
        last = (high - end) // self.stride  # the last window that ends in time
        count = max(0, min(run.count - 1, last) - skipped + 1)
        return replace(run, first=run.first + skipped * self.stride, count=count)


@dataclass(frozen=True)
class Runs:
    """Runs as arrays, and the way from a window's number to its place."""

    recording: np.ndarray
    first: np.ndarray
    count: np.ndarray
    steps: np.ndarray

    @classmethod
    def of(cls, runs: Iterable[Run]) -> Self:
        """The runs that hold windows."""
        table = np.array(
            [(r.recording, r.first, r.count, r.steps) for r in runs if r.count], dtype="int64"
        ).reshape(-1, 4)
        return cls(*np.ascontiguousarray(table.T))

    def __iter__(self) -> Iterator[Run]:
        columns = (self.recording, self.first, self.count, self.steps)
        return (Run(*map(int, row)) for row in zip(*columns, strict=True))

    @cached_property
    def ends(self) -> np.ndarray:
        """Number of the window behind each run."""
        return np.cumsum(self.count)

    @property
    def total(self) -> int:
        """How many windows there are."""
        return int(self.count.sum())

    def locate(self, numbers: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Recording, start and valid steps of windows, by their numbers."""
        run = np.searchsorted(self.ends, numbers, side="right")
        within = numbers - (self.ends[run] - self.count[run])
        return self.recording[run], self.first[run] + within * stride, self.steps[run]
