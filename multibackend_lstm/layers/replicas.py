"""Which rows of a global batch a device or process computes, where each draws for its own alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from multibackend_lstm import backends

# First row in the global batch, and number of rows here.
_ROWS: ContextVar[tuple[Any, int] | None] = ContextVar("rows", default=None)


@contextmanager
def global_rows(first: Any, count: int) -> Iterator[None]:
    """What is called within gets some rows of a batch that several processes share.

    Dropout and noise then draw for each row what one process draws for it that has the whole
    batch. It is for a loop of your own, as around PyTorch's `DistributedDataParallel`. Under
    `keras.distribution` on JAX and in the scope of a `tf.distribute.Strategy` layers know their
    rows without it.

    Example:
        >>> layer, x = Dropout(0.5, seed=0), np.ones((4, 3))
        >>> with global_rows(2, 2):  # of the second of two processes
        ...     half = layer(x[2:], training=True)

    Args:
        first: the first row's place in the whole batch.
        count: number of rows here, the size of the first axis of the inputs.

    Raises:
        ValueError: for a negative place, or no rows.
    """
    if (isinstance(first, int) and first < 0) or count < 1:
        raise ValueError(
            "global_rows: `first` must be 0 or more, and `count` 1 or more. Received "
            f"first={first}, count={count}."
        )
    token = _ROWS.set((first, count))
    try:
        yield
    finally:
        _ROWS.reset(token)


def first_entry(
    name: str, shape: Sequence[Any], mask_shape: Sequence[int | None] | None = None
) -> Any:
    """Where the entries of this replica begin in the flattened mask of the global batch.

    Args:
        name: of the layer, for its errors.
        shape: `(batch, ...)` of the inputs; the batch may be folded with axes behind it.
        mask_shape: of a mask that broadcasts to the inputs; None, whole or for an axis, for
            theirs.

    Raises:
        ValueError: if the rows of the mask cannot be told from those of other replicas.
    """
    rows = _ROWS.get()
    sizes: list[Any] = [*shape]
    if mask_shape is not None:
        pairs = zip(mask_shape, shape, strict=True)
        sizes = [given if size is None else size for size, given in pairs]
    has_rows = mask_shape is None or mask_shape[0] is None
    if not has_rows and sizes[0] == 1:
        return 0  # one mask for all rows
    if rows is None:
        first = backends.active().rows_before(sizes[0])
    else:
        first, count = rows
        if sizes[0] % count:
            raise ValueError(
                f"{name}: the first axis must hold the {count} rows that `global_rows` was told. "
                f"Received the shape {tuple(shape)}."
            )
        first = first * (sizes[0] // count)
    if not isinstance(first, int) or first:
        if not has_rows:
            raise ValueError(
                f"{name}: `noise_shape` must begin with None or 1 where several devices share a "
                f"batch. Received {tuple(mask_shape or ())}."
            )
        for size in sizes[1:]:
            first = first * size
    return first
