"""What happens before Keras is imported: it gets a backend that is installed, or one clear error.

Keras reads `KERAS_BACKEND` once, while it is imported, and takes TensorFlow where nothing is set,
installed or not. Many modules of this package import keras, and so do its users. One place comes
before them all: a finder, which Python asks for Keras's first submodule. Where keras was imported
before this package, all that is left is to warn if `KERAS_BACKEND` was set too late.

Importing this module imports neither keras nor a backend.
"""

import logging
import os
import sys
import warnings
from importlib.machinery import ModuleSpec
from typing import Any

_told = False


class _BeforeKeras:
    """A finder that finds nothing: once Keras begins to be imported, it settles the backend."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        # Not "keras" itself: that is also looked for by those who only ask whether it is installed.
        if name.startswith("keras."):
            settle_backend()
            # Only now: after an error the next import is to find it again.
            sys.meta_path.remove(self)
        return None


def prepare_keras_import() -> None:
    """Settle the backend as soon as keras is imported, or warn if that comes too late.

    Called while this package is imported.
    """
    if "keras" in sys.modules:
        warn_of_late_choice(stacklevel=4)
    else:
        sys.meta_path.insert(0, _BeforeKeras())


def settle_backend() -> None:
    """Check the user's choice of a backend; where there is none, choose an installed one.

    The choice is put into `KERAS_BACKEND`, for Keras and for child processes, and logged: as a
    warning where others could have been meant, else as information.

    Raises:
        BackendError: as `environment.choose_backend`.
    """
    from multibackend_lstm import environment

    chosen = environment.choose_backend(known=environment.keras_backends())
    if os.environ.get("KERAS_BACKEND") or environment.keras_configuration()[1]:
        return
    os.environ["KERAS_BACKEND"] = chosen
    others = [name for name in environment.installed_backends() if name != chosen]
    logging.getLogger("multibackend_lstm").log(
        logging.WARNING if others else logging.INFO,
        "Keras runs on %s, since KERAS_BACKEND is not set.%s",
        chosen,
        f" {' and '.join(others)} could be chosen too." if others else "",
    )


def warn_of_late_choice(stacklevel: int = 3) -> None:
    """Warn, once, if `KERAS_BACKEND` names another backend than Keras already runs on.

    Args:
        stacklevel: as in `warnings.warn`, of the line to show.
    """
    global _told
    keras = sys.modules.get("keras")
    name = os.environ.get("KERAS_BACKEND")
    if _told or keras is None or not name or name == keras.backend.backend():
        return
    _told = True
    warnings.warn(
        f"KERAS_BACKEND is {name!r}, but Keras was imported before that was set, and runs on "
        f"{keras.backend.backend()!r} until this process ends. Set KERAS_BACKEND before keras is "
        "imported, best in the shell.",
        stacklevel=stacklevel,
    )
