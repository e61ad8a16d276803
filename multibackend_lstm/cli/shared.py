"""What several commands share: options, and the one rule from errors to exit statuses."""

import errno
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from multibackend_lstm.environment import BACKENDS, BackendError, CouldNotRunError
from multibackend_lstm.files import WriteError

DEFAULT_BACKEND = (
    "Default: KERAS_BACKEND, else what Keras is configured to (TensorFlow), else JAX, else torch."
)

# What the system says of a place that takes no more.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

backend_option = click.option(
    "--backend",
    type=click.Choice(list(BACKENDS)),
    help=f"Backend to run on. {DEFAULT_BACKEND}",
)


class AnswerIsNo(click.ClickException):
    """What was asked for cannot be had of this model: status 1."""

    exit_code = 1


class CouldNotRun(click.ClickException):
    """Something needed is not installed, does not start or does not run: status 3."""

    exit_code = 3


@contextmanager
def exit_statuses() -> Iterator[None]:
    """End a command by the rule of docs/command_line.md, with one line on what went wrong.

    0 done and right, 1 the answer is no, 2 wrong use (arguments and files), 3 something needed
    could not run. A ValueError that this package raises says that an argument or a file is at
    fault; one from elsewhere, and any other exception, is a defect: its traceback is wanted.

    SIGTERM ends through Python as Ctrl-C does, so that workers end and no file is left. Both give
    the status that a shell gives them; click's own for Ctrl-C, 1, says that the answer is no.
    """

    def stop(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except CouldNotRunError as error:
        raise CouldNotRun(str(error)) from error
    except (ValueError, FileNotFoundError, WriteError, BackendError) as error:
        if isinstance(error, ValueError) and not _is_ours(error):
            raise
        raise click.UsageError(str(error)) from error
    except OSError as error:
        if error.errno not in _FULL:
            raise
        # Files at --out are a WriteError.
        reason = os.strerror(error.errno)
        if _raised_in(error).startswith(("click.", "rich.")):
            # Python would try again when it ends, and fail in words of its own.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.UsageError(f"cannot write to the standard output: {reason}.") from error
        raise click.UsageError(
            f"cannot write a temporary file to {tempfile.gettempdir()}: {reason}. "
            "Make room there, or set TMPDIR to another folder."
        ) from error
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_ours(error: BaseException) -> bool:
    """Whether code of this package raised an exception, not code that it called."""
    return _raised_in(error).startswith("multibackend_lstm.")


def _raised_in(error: BaseException) -> str:
    """The module of the innermost line of Python."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__"))


class Commands(click.Group):
    """A group whose commands all end by the one rule of `exit_statuses`."""

    def invoke(self, ctx: click.Context) -> Any:
        """As `click.Group.invoke`."""
        with exit_statuses():
            return super().invoke(ctx)
