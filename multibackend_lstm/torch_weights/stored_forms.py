"""Weights that PyTorch stores in another form than its modules use them.

Weight normalisation stores magnitude and direction, `weight_g` and `weight_v` (or
`parametrizations.weight.original0` and `original1`), and uses `g * v / norm(v)`.

`MultiheadAttention` stores three projections one below the other, `in_proj_weight` and
`in_proj_bias`; here they are `q_proj_weight`, `k_proj_weight`, `v_proj_weight`, as it stores them
where keys or values have another width, and so are biases.

Everything here takes and gives arrays by their names, with whatever prefix.
"""

import re
from collections.abc import Iterable, Mapping

import numpy as np

Arrays = dict[str, np.ndarray]
#: Of each tensor as it is used: the stored ones that it is made of, and which part of them it is.
Sources = dict[str, tuple[tuple[str, ...], int]]

_MAGNITUDE = re.compile(r"(?P<new>(.*\.)?parametrizations\.\w+)\.original0|(?P<old>.+)_g")
_PROJECTION = re.compile(r"((?:.*\.)?)in_proj_(weight|bias)")


def used_form(stored: Mapping[str, np.ndarray]) -> tuple[Arrays, Sources]:
    """The tensors as modules use them, and what they are made of.

    Args:
        stored: by name.
    """
    norms = _weight_norms(stored)
    directions = {direction for _, direction in norms.values()}
    weight_of = {magnitude: weight for weight, (magnitude, _) in norms.items()}
    tensors: Arrays = {}
    sources: Sources = {}
    for name, value in stored.items():
        if name in weight_of:
            weight = weight_of[name]
            tensors[weight] = _normalised(*(stored[part] for part in norms[weight]))
            sources[weight] = norms[weight], 0
        elif name not in directions:
            for i, (part, each) in enumerate(split_projections({name: value}).items()):
                tensors[part] = each
                sources[part] = (name,), i
    return tensors, sources


def stored_form(used: Mapping[str, np.ndarray], stored: Mapping[str, np.ndarray]) -> Arrays:
    """The tensors as they are stored, from those that modules use.

    Args:
        used: by name.
        stored: those that they take the place of.
    """
    norms = _weight_norms(stored)
    found: Arrays = {}
    for name, value in stack_projections(used).items():
        if name in norms:
            magnitude, direction = norms[name]
            norm = _norm(value, stored[magnitude].shape).astype(value.dtype)
            found |= {magnitude: norm.reshape(stored[magnitude].shape), direction: value}
        else:
            found[name] = value
    return found


def split_projections(tensors: Mapping[str, np.ndarray]) -> Arrays:
    """The projections of queries, keys and values by names of their own."""
    found: Arrays = {}
    for name, value in tensors.items():
        match = _PROJECTION.fullmatch(name)
        if match and value.ndim and value.shape[0] % 3 == 0:
            for kind, part in zip("qkv", np.split(value, 3), strict=True):
                found[f"{match[1]}{kind}_proj_{match[2]}"] = part
        else:
            found[name] = value
    return found


def stack_projections(tensors: Mapping[str, np.ndarray]) -> Arrays:
    """The inverse of `split_projections`."""
    found: Arrays = {}
    for name, value in tensors.items():
        match = re.fullmatch(r"((?:.*\.)?)([qkv])_proj_(weight|bias)", name)
        if match is None:
            found[name] = value
            continue
        parts = [tensors[f"{match[1]}{kind}_proj_{match[3]}"] for kind in "qkv"]
        if len({part.shape for part in parts}) > 1:  # keys or values of another width (`kdim`)
            found[name] = value
        elif match[2] == "q":
            found[f"{match[1]}in_proj_{match[3]}"] = np.concatenate(parts)
    return found


def attention_of(prefix: str, names: Iterable[str]) -> str | None:
    """The prefix of the attention module whose `out_proj` a prefix is; None if it is none."""
    parent, _, last = prefix.rpartition(".")
    query = f"{parent}.q_proj_weight" if parent else "q_proj_weight"
    return parent if last == "out_proj" and query in names else None


def _weight_norms(stored: Mapping[str, np.ndarray]) -> dict[str, tuple[str, str]]:
    """Weights under weight normalisation, with the names of magnitude and direction."""
    found = {}
    for name, magnitude in stored.items():
        match = _MAGNITUDE.fullmatch(name)
        if match is None:
            continue
        if match["new"]:
            weight = match["new"].replace("parametrizations.", "")
            direction = f"{match['new']}.original1"
        else:
            weight, direction = match["old"], f"{match['old']}_v"
        if direction in stored and _fits(magnitude.shape, stored[direction].shape):
            found[weight] = name, direction
    return found


def _fits(magnitude: tuple[int, ...], direction: tuple[int, ...]) -> bool:
    """Whether a magnitude is one for all, or one for each index along some axes."""
    pairs = zip(magnitude, direction, strict=False)
    return not magnitude or (
        len(magnitude) == len(direction) and all(size in (1, full) for size, full in pairs)
    )


def _norm(direction: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The norm over the axes that a magnitude has one number for."""
    axes = tuple(i for i in range(direction.ndim) if not shape or shape[i] == 1)
    return np.sqrt((direction.astype("float64") ** 2).sum(axes, keepdims=True))


def _normalised(magnitude: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """`g * v / norm(v)`, rounded once; NaN, which is refused by name later, where v is zero."""
    with np.errstate(invalid="ignore", divide="ignore"):
        exact = magnitude.astype("float64") * direction / _norm(direction, magnitude.shape)
    return exact.astype(direction.dtype)
