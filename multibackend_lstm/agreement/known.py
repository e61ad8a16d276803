"""Disagreements that are known upstream: a finding that one explains is named after it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from multibackend_lstm.agreement.comparison import ALONE
from multibackend_lstm.runtimes.upstream import affects, upstream_problems


def known_disagreements() -> list[dict[str, Any]]:
    """The entries of `runtimes/upstream.toml` that say how a finding of theirs is recognised."""
    return [problem for problem in upstream_problems() if "groups" in problem]


def explanation(
    *,
    target: str,
    group: str,
    failed: bool,
    message: str,
    layer: str | None,
    layers: Mapping[str, Mapping[str, Any]],
    versions: Mapping[str, str],
    operations: Sequence[str] = (),
) -> dict[str, Any] | None:
    """The entry that explains a finding, or None.

    Args:
        target: such as `"torch@cpu"`.
        group: in which it was found.
        failed: whether something could not run, rather than ran and differed.
        message: its text, which holds the error of a part that failed.
        layer: path of the layer that it blames; None if that is not known.
        layers: module, class and config of all layers of the model by path.
        versions: of the packages in the target's environment.
        operations: inside of the layer, that are off alone.
    """
    backend = target.partition("@")[0]
    for entry in known_disagreements():
        blamed = layers.values() if layer is None else [layers[layer]]
        if (
            backend in entry["backends"]
            and affects(entry, versions.get(entry["package"]))
            and group in entry["groups"]
            and ("error" in entry) == failed
            and re.search(entry.get("error", ""), message)
            and (group != ALONE or _any_inside(operations, entry.get("operations", [])))
            and _any_matches(blamed, entry["layers"], entry.get("config", {}))
            and _any_matches(layers.values(), entry.get("together_with", [".*"]), {})
        ):
            return entry
    return None


def _any_inside(operations: Sequence[str], wanted: list[str]) -> bool:
    return not wanted or any(found.split()[-1] in wanted for found in operations)


def _any_matches(layers: Any, classes: list[str], config: dict[str, Any]) -> bool:
    """Whether some layer, or one inside it, is of a class with these settings."""
    return any(
        re.fullmatch("|".join(classes), found["class_name"])
        and all(found["config"].get(key) == value for key, value in config.items())
        for layer in layers
        for found in _inside(layer)
    )


def _inside(config: Any) -> Iterator[dict[str, Any]]:
    """The config itself and those within it that are of an object."""
    if isinstance(config, Mapping):
        if isinstance(config.get("class_name"), str) and isinstance(config.get("config"), dict):
            yield dict(config)
        for value in config.values():
            yield from _inside(value)
    elif isinstance(config, list):
        for value in config:
            yield from _inside(value)
