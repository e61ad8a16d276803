"""What several commands share."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from multibackend_lstm.environment import BACKENDS, BackendError

DEFAULT_BACKEND = (
    "Default: KERAS_BACKEND, else what Keras is configured to (TensorFlow), else JAX, else torch."
)

backend_option = click.option(
    "--backend",
    type=click.Choice(list(BACKENDS)),
    help=f"Backend to run on. {DEFAULT_BACKEND}",
)


class Commands(click.Group):
    """A group whose commands answer a wrong or missing backend in one line, as wrong use."""

    def invoke(self, ctx: click.Context) -> Any:
        """As `click.Group.invoke`."""
        try:
            return super().invoke(ctx)
        except BackendError as error:
            raise click.UsageError(str(error)) from error


@contextmanager
def ending_cleanly() -> Iterator[None]:
    """End through Python on SIGTERM as on Ctrl-C, so that workers end and no file is left.

    Both give the status that a shell gives them; click's own for Ctrl-C, 1, says "disagrees".
    """

    def stop(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    finally:
        signal.signal(signal.SIGTERM, before)
