"""Writing files so that nothing half-written stands under a final name."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class WriteError(OSError):
    """A file or folder that cannot be written, with the reason in one line."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and move it to `path` once the block succeeds.

    The temporary name keeps the suffix, by which Keras and NumPy choose the format.

    Raises:
        WriteError: if the disk is full, or the folder may not be written.
    """
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        discard(temporary)


def discard(path: Path) -> None:
    """Remove what an unfinished writing may have left; the error that ended it is the one to see.

    A read-only disk refuses to remove even what is not there.
    """
    with suppress(OSError):
        path.unlink()


def append(path: Path, text: str) -> None:
    """Add text to the end of a file, all of it or none.

    Raises:
        WriteError: if the disk is full, or the file may not be written.
    """
    before = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        if path.exists() and path.stat().st_size > before:
            os.truncate(path, before)
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from error


def check_writable(folder: Path) -> None:
    """Create a folder if need be, and raise a `WriteError` if no file can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise WriteError(f"cannot write to the folder {folder}: {error.strerror}") from error


def why_full(folder: Path, size: int) -> str | None:
    """Why no file of so many bytes can be written to a folder; None if one can.

    For writers of other libraries, whose errors do not tell a full disk from a fault of their own.
    """
    probe = folder / f".{uuid.uuid4().hex}"
    try:
        probe.write_bytes(bytes(size))
    except OSError as error:
        return error.strerror or str(error)
    finally:
        discard(probe)
    return None
