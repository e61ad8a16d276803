"""The batches of `windows` for other loops than Keras's: torch, tf.data and Grain."""

from collections.abc import Iterator
from typing import Any

import numpy as np


class _Places:
    """A sampler for `torch.utils.data.DataLoader`: places of batches, a new epoch each time."""

    def __init__(self, batches: int) -> None:
        self.batches, self.epoch = batches, 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # Counted with the first place: DataLoader begins iterators that it never asks.
        epoch, self.epoch = self.epoch, self.epoch + 1
        for index in range(self.batches):
            yield index, epoch


class _Batches:
    """Batches by `(index, epoch)`, or by the number of a batch counted through all epochs."""

    def __init__(self, dataset: Any, epochs: int = 1) -> None:
        self.dataset, self.epochs = dataset, epochs

    def __len__(self) -> int:
        return len(self.dataset) * self.epochs

    def __getitem__(self, place: Any) -> tuple[Any, ...]:
        if not isinstance(place, tuple):
            epoch, index = divmod(int(place), len(self.dataset))
            place = (index, epoch)
        return self.dataset.batch(*place)


def to_torch(dataset: Any, workers: int = 0, **options: Any) -> Any:
    """A `torch.utils.data.DataLoader` of the batches of `windows`.

    Each pass over it is an epoch, the first that of `epoch=0`. The batches are those of the
    dataset, tuples (and dictionaries) of tensors, whatever the number of workers.

    Example:
        >>> dataset = windows(np.zeros((200, 2, 3)), length=50, horizon=1)
        >>> x, y = next(iter(to_torch(dataset)))
        >>> tuple(x.shape)                                      # (batch, time, channels, features)
        (32, 50, 2, 3)

    Args:
        dataset: what `windows` returns.
        workers: processes that prepare batches; 0 for none.
        **options: other arguments of `DataLoader`, such as `pin_memory`.
    """
    from torch.utils.data import DataLoader, default_convert

    return DataLoader(
        _Batches(dataset),
        batch_size=None,
        sampler=_Places(len(dataset)),
        num_workers=workers,
        **{"collate_fn": default_convert, **options},
    )


def to_tensorflow(dataset: Any, workers: int = 1) -> Any:
    """A `tf.data.Dataset` of the batches of `windows`.

    Each pass over it is an epoch, the first that of `epoch=0`.

    Example:
        >>> dataset = windows(np.zeros((200, 2, 3)), length=50, horizon=1)
        >>> x, y = next(iter(to_tensorflow(dataset)))
        >>> tuple(x.shape)                                      # (batch, time, channels, features)
        (32, 50, 2, 3)

    Args:
        dataset: what `windows` returns.
        workers: threads that prepare batches ahead.
    """
    import tensorflow as tf

    first = dataset.batch(0, 0)
    flat = [np.asarray(part) for part in tf.nest.flatten(first)]
    epochs = iter(range(2**62))

    def places() -> Iterator[tuple[int, int]]:
        epoch = next(epochs)
        return ((index, epoch) for index in range(len(dataset)))

    def batch(index: Any, epoch: Any) -> list[np.ndarray]:
        return list(tf.nest.flatten(dataset.batch(int(index), int(epoch))))

    def as_tensors(index: Any, epoch: Any) -> Any:
        parts = tf.numpy_function(batch, [index, epoch], [part.dtype for part in flat])
        for part, like in zip(parts, flat, strict=True):
            part.set_shape((None, *like.shape[1:]))
        return tf.nest.pack_sequence_as(first, parts)

    spec = (tf.TensorSpec((), "int64"), tf.TensorSpec((), "int64"))
    found = tf.data.Dataset.from_generator(places, output_signature=spec)
    found = found.map(as_tensors, num_parallel_calls=workers, deterministic=True)
    return found.apply(tf.data.experimental.assert_cardinality(len(dataset))).prefetch(2)


def to_grain(dataset: Any, epochs: int = 1) -> Any:
    """A `grain.MapDataset` of the batches of `windows`, of so many epochs in turn.

    `.to_iter_dataset()` of it reads ahead by threads, `.mp_prefetch()` by processes, in the same
    order.

    Example:
        >>> dataset = windows(np.zeros((200, 2, 3)), length=50, horizon=1)
        >>> x, y = to_grain(dataset, epochs=10)[0]
        >>> x.shape                                             # (batch, time, channels, features)
        (32, 50, 2, 3)

    Args:
        dataset: what `windows` returns.
        epochs: how many epochs; each has its own order.
    """
    import grain

    return grain.MapDataset.source(_Batches(dataset, epochs))
