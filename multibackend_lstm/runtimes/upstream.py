"""Problems of Keras that are known upstream: one register, for `doctor` and for `agree`."""

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

from packaging.specifiers import SpecifierSet

from multibackend_lstm import environment


@cache
def upstream_problems() -> tuple[dict[str, Any], ...]:
    """The entries of `upstream.toml`, each with its `reference`, such as `keras#20902`."""
    text = (files(__package__) / "upstream.toml").read_text(encoding="utf-8")
    return tuple(
        {**problem, "reference": _reference(problem["upstream"])}
        for problem in tomllib.loads(text)["problem"]
    )


def _reference(address: str) -> str:
    *_, repository, _, number = address.split("/")
    return f"{repository}#{number}"


def affects(problem: dict[str, Any], version: str | None) -> bool:
    """Whether a problem is one of this version of its package; None is one not installed."""
    return version is not None and SpecifierSet(problem["versions"]).contains(
        version, prereleases=True
    )


def known_problems() -> list[dict[str, Any]]:
    """The entries that concern the versions and backends that are installed here."""
    installed = set(environment.installed_backends())
    return [
        problem
        for problem in upstream_problems()
        if affects(problem, environment.version_of(problem["package"]))
        and installed & set(problem["backends"])
    ]
