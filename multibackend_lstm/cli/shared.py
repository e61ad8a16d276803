"""What several commands share."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from multibackend_lstm.environment import BACKENDS

backend_option = click.option(
    "--backend",
    type=click.Choice(list(BACKENDS)),
    help="Backend to run on. Default: KERAS_BACKEND, else JAX, else the first one installed.",
)


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
