"""The process of one target: `python -m multibackend_lstm.runtimes.serve MODULE:CLASS OPTIONS`.

OPTIONS are the arguments of the `Runtime` in JSON. It answers requests, one at a time, until its
input ends. What libraries print goes to the error stream. Requests, and what answers them:

    (none, at the start) -> {"ready": module:class, "parts", device, versions, precision switches}
    {"do": "run", ...} + arrays -> {"tensor": ...} + array, or {"failed": part, "reason"}, ...;
        {"done"}
    {"do": ...}, whatever else the runtime has in its `requests`

Whatever goes wrong in a request is answered by {"error": ...}: a message, and where it arose.
"""

import gc
import itertools
import json
import os
import queue
import re
import sys
import threading
import traceback
from importlib import import_module
from typing import Any, BinaryIO

from multibackend_lstm.hiding import without_jax
from multibackend_lstm.runtimes.errors import InputError
from multibackend_lstm.runtimes.messages import receive, send
from multibackend_lstm.runtimes.runtime import Answer, Runtime


def main(name: str, options: str) -> None:
    """Serve requests; see the module."""
    requests, answer = _streams()
    try:
        module, _, cls = name.partition(":")
        with without_jax():
            made = getattr(import_module(module), cls)
        runtime: Runtime = made(**json.loads(options))
        ready = runtime.start()
        answer(
            {"ready": name, "parts": runtime.parts, "set_switches": {}, "float64": False, **ready}
        )
        gc.freeze()  # so that collections need not look at what libraries brought
    except Exception as error:
        answer({"error": described(error)})
        return
    for number in itertools.count(1):
        header, arrays = requests.get()
        try:
            runtime.requests[header.pop("do")](answer, arrays, **header)
        except InputError as error:
            answer({"error": described(error), "refusal": str(error)})
        except Exception as error:  # the answer is the report; the worker serves on
            answer({"error": described(error)})
        if number % 10 == 0:
            gc.collect()  # a model is a knot of references that big arrays hang on


def _streams() -> tuple["queue.Queue[Any]", Answer]:
    """A queue of requests, and a function that answers them.

    The process ends as soon as nobody can send requests any more, whatever it computes.
    """
    incoming: BinaryIO = os.fdopen(os.dup(0), "rb")
    outgoing: BinaryIO = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # standard output belongs to the messages
    requests: queue.Queue[Any] = queue.Queue()

    def read() -> None:
        try:
            while True:
                requests.put(receive(incoming))
        except EOFError:
            os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return requests, lambda *message: send(outgoing, *message)


def described(error: Exception) -> str:
    """Type, message and the innermost lines of an error."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    message = re.sub(r"\x1b\[\d+m", "", str(error))  # without Keras's bold type
    message = message.split("\n\nArguments received by")[0].replace("\n\n", " ")
    if len(message) > 600:
        message = f"{message[:600]} ..."
    places = "; ".join(f"{os.path.basename(f.filename)}:{f.lineno} in {f.name}" for f in frames)
    return f"{type(error).__name__}: {message} ({places})"


if __name__ == "__main__":
    main(*sys.argv[1:])
