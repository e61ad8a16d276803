"""Messages between the process that compares and its workers: a JSON header and arrays.

A message is the length of its header and of its arrays (8 bytes each), the header as JSON in
UTF-8, and the arrays as an `.npz` archive. Nothing is ever pickled or unpickled.
"""

import io
import json
import struct
import threading
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

_LENGTHS = struct.Struct(">QQ")

#: NumPy reads an array's header by `ast.literal_eval`, of which two at a time now and then fail
#: ("AST constructor recursion depth mismatch", CPython 3.11), so that readers take turns.
READING = threading.Lock()


def send(
    stream: IO[bytes], header: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None
) -> None:
    """Write one message.

    Raises:
        BrokenPipeError: if nobody reads any more.
        ValueError: if an array holds Python objects.
    """
    packed = io.BytesIO()
    if arrays:
        if any(array.dtype.hasobject for array in arrays.values()):
            raise ValueError("an array of objects is not sent, since it would be pickled")
        # NumPy before 2.1 would take `allow_pickle=False` for one more array.
        named: dict[str, Any] = dict(arrays)
        np.savez(packed, **named)
    text = json.dumps(header).encode()
    stream.write(_LENGTHS.pack(len(text), packed.tell()))
    stream.write(text)
    stream.write(packed.getbuffer())
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read one message.

    Raises:
        EOFError: if the stream ends, within a message too.
    """
    text_length, arrays_length = _LENGTHS.unpack(_read(stream, _LENGTHS.size))
    header = json.loads(_read(stream, text_length))
    arrays: dict[str, np.ndarray] = {}
    if arrays_length:
        content = io.BytesIO(_read(stream, arrays_length))
        with READING, np.load(content, allow_pickle=False) as packed:
            arrays = {name: packed[name] for name in packed.files}
    return header, arrays


def _read(stream: IO[bytes], length: int) -> bytes:
    parts = []
    while length:
        part = stream.read(length)
        if not part:
            raise EOFError("the other process has ended")
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
