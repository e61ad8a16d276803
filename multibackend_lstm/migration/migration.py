"""migrate: an old model file becomes a Keras 3 model without stored functions."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
from packaging.version import InvalidVersion, Version

from multibackend_lstm.files import replacing
from multibackend_lstm.migration import cudnn, operations, stored_weights
from multibackend_lstm.migration.configs import needed, translate
from multibackend_lstm.migration.model_files import open_model_file
from multibackend_lstm.migration.resolution import Resolver, Step, instantiate
from multibackend_lstm.runtimes.loading import ModelFileError
from multibackend_lstm.upgrading import Upgrade, upgrade_config

# What reading a configuration raises where a value is of another kind than Keras writes.
_MALFORMED = (KeyError, TypeError, AttributeError, IndexError, ValueError)


@dataclass
class Migration:
    """What became of a file.

    Attributes:
        path: the old file.
        keras_version: of the Keras that wrote it.
        model: the uncompiled Keras 3 model, with the old weights; None where functions are left.
        steps: everything that was done, and what was left.
        out: where it was written, if it was.
        needed: this package's classes and functions that the model is made of. Without any, it
            loads wherever Keras is; with some, this package has to be imported before.
    """

    path: Path
    keras_version: str
    model: Any = None
    steps: list[Step] = field(default_factory=list)
    out: Path | None = None
    needed: list[str] = field(default_factory=list)

    def of(self, *actions: str) -> list[Step]:
        """The steps with these actions."""
        return [step for step in self.steps if step.action in actions]

    @property
    def left(self) -> list[Step]:
        """Stored functions that were not shown to merge or split axes only."""
        return self.of("left")

    @property
    def complete(self) -> bool:
        """Whether nothing is left, and every weight is a finite number."""
        return not self.of("left", "not finite")

    def save(self, out: Path) -> None:
        """Write the model to a `.keras` file, whole or not at all."""
        with replacing(out) as temporary:
            self.model.save(temporary)
        self.out = out

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "path": str(self.path),
            "keras_version": self.keras_version,
            "out": None if self.out is None else str(self.out),
            "complete": self.complete,
            "needed": self.needed,
            "steps": [asdict(step) | {"reshapes": list(step.reshapes)} for step in self.steps],
        }


def migrate(
    path: str | Path,
    out: str | Path | None = None,
    *,
    upgrade: bool = False,
    replacements: Mapping[str, keras.layers.Layer | str] | None = None,
    custom_objects: Mapping[str, Any] | None = None,
) -> Migration:
    """Turn an old model file into a Keras 3 model that loads in safe mode on every backend.

    Nothing stored in the file is run. A `Lambda` whose stored bytecode spells out the last step,
    scaling by constants, or a sum, mean, maximum, `expand_dims`, `squeeze` or transposition, is
    replaced by a model of these `keras.ops`, see `migration/bytecode.py`. Another is replaced by
    `keras.layers.Reshape` where the shapes stored around it prove a merge or
    split of axes, see `migration/lambdas.py`; a `tf.reshape`, `tf.expand_dims` or
    `tf.squeeze` outside of a layer where its stored arguments say so. Shapes cannot exclude that a
    function also moves or scales values: compare predictions, as
    `multibackend-lstm migrate --verify` does.

    What Keras 3 refuses or reads otherwise is translated: `time_major`, `batch_input_shape`,
    configurations without modules (keras#19898), modules of other Keras versions, calls of nested
    models, `hard_sigmoid`, which has another slope in Keras 3. Weights are carried over by layer
    and name, and all shapes are checked before any is allocated. The optimizer, the
    metrics and their state are dropped.

    Example:
        >>> migration = migrate("old.h5", "new.keras")
        >>> [(step.place, step.detail) for step in migration.of("replaced")]
        [('merge', 'Reshape: (10, 3, 5) -> (10, 15), as LSTM takes (batch, time, 15)')]

    Args:
        path: a whole model in `.h5`, `.hdf5` or `.keras`, of Keras 2, tf.keras or Keras 3. It is
            not changed.
        out: a `.keras` file to write, unless a function is left.
        upgrade: put this package's layers in the place of Keras's, as `multibackend_lstm.upgrade`.
        replacements: layers for stored functions, by the name of the `Lambda`, where you know
            what it computes: `{"scale": keras.layers.Rescaling(2.0)}`. They have no weights. A
            text stands for Keras's own operation: `last_step`, `scale:FACTOR,OFFSET`, `sum:AXIS`,
            `mean:AXIS`, `max:AXIS`, `expand_dims:AXIS`, `squeeze:AXIS` or `transpose:AXES`, where
            axis 0 is the batch.
        custom_objects: classes and functions of your own that the file names.

    Returns:
        A `Migration`. Its `model` is None if a function is left; then nothing is written.

    Raises:
        ModelFileError: (a `ValueError`) for a file that is damaged, incomplete or unsafe, a class
            that is not known, or weights that do not fit their layers.
        ValueError: for an `out` that is no `.keras` file or is `path` itself, or a replacement
            for a layer that there is not.
        FileNotFoundError: if there is no such file.
    """
    path = Path(path)
    out = None if out is None else Path(out)
    if out is not None:
        check_out(path, out)
    named = {
        name: operations.parse(layer) if isinstance(layer, str) else layer
        for name, layer in (replacements or {}).items()
    }
    file = open_model_file(path)
    migration = Migration(path, file.keras_version)
    notes: list[str] = []
    try:
        config = translate(
            file.config,
            keras_2=file.keras_2,
            lists_single_tensors=file.lists_single_tensors,
            custom_objects=custom_objects or {},
            notes=notes,
            ours=upgrade,
        )
        cudnn.convert_weights(file)
        resolver = Resolver(file, config, named, custom_objects or {}, ours=upgrade)
        with ThreadPoolExecutor(1) as thread:
            thread.submit(_resolve, resolver, config).result()
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}{_if_newer(file.keras_version)}") from error
    except _MALFORMED as error:
        raise ModelFileError(
            f"{path}: the configuration is not as Keras writes it: {type(error).__name__} {error}"
        ) from error
    resolver.check_replacements()
    for note in notes:
        place, _, detail = note.partition(": ")
        migration.steps.append(Step(place, "translated", detail))
    if file.compiled:
        detail = "the arguments of compile and the state of optimizer and metrics are dropped"
        migration.steps.append(Step("the model", "translated", detail))
    migration.steps += resolver.steps
    for name, array in file.arrays():
        bad = array.size - int(np.isfinite(array).sum()) if array.dtype.kind == "f" else 0
        if bad:
            detail = f"{bad} of {array.size} values are NaN or infinite; carried over as they are"
            migration.steps.append(Step(name, "not finite", detail))
    if migration.left:
        return migration
    moved = resolver.moved(config)
    if upgrade:
        result = Upgrade(None)
        upgrade_config(config, result, custom_objects or {})
        for place, name in result.replaced.items():
            migration.steps.append(Step(place, "upgraded", name))
        for place, reason in result.left.items():
            migration.steps.append(Step(place, "not upgraded", reason))
    migration.needed = sorted(needed(config))
    migration.model = instantiate(config, custom_objects or {}, "the model")
    stored_weights.load(migration.model, file, moved)
    if out is not None:
        migration.save(out)
    return migration


#: The name of `migrate` before it was that of the command.
replace_lambdas = migrate


def check_out(path: Path, out: Path) -> None:
    """Raise a ValueError unless a model of the file `path` may be written to `out`."""
    if out.suffix != ".keras":
        raise ValueError(f"migrate: `out` must end in .keras. Received {str(out)!r}.")
    if out.exists() and path.exists() and out.samefile(path):
        raise ValueError(f"migrate: `out` must be another file than `path`, {path}.")


def _if_newer(version: str) -> str:
    """A remedy where a newer Keras than this one wrote the file."""
    try:
        newer = Version(version) > Version(keras.__version__)
    except InvalidVersion:
        return ""
    return f" Keras {version} wrote it, and this is {keras.__version__}: upgrade." if newer else ""


def _resolve(resolver: Resolver, config: dict[str, Any]) -> None:
    """Resolve a model with variables that have shapes and no values: no size allocates anything.

    Keras would give them values once the next such scope ends. It keeps what it still has to do
    by thread, so this runs in one that ends here.
    """
    with keras.StatelessScope(initialize_variables=False):
        resolver.model(config, ())
