"""torch modules that a function builds, with the weights of a file."""

import sys
from collections.abc import Mapping
from typing import Any

from multibackend_lstm.environment import install_command
from multibackend_lstm.runtimes.imports import imported
from multibackend_lstm.torch_weights.conversion import load_checked
from multibackend_lstm.torch_weights.errors import MissingPackageError, PortingError
from multibackend_lstm.torch_weights.state_dict import StateDict, read_state_dict


def built_module(name: str) -> Any:
    """The `torch.nn.Module` that the function `package.module:function` returns.

    Raises:
        PortingError: if PyTorch is not installed, or it returns something else.
        CaseError: if there is no such function.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"porting: {name} builds a torch module, which needs torch: {install_command('torch')}"
        ) from error
    module = imported(name)()
    if not isinstance(module, torch.nn.Module):
        raise PortingError(
            f"porting: {name} must return a torch.nn.Module. Received {type(module).__name__}."
        )
    return module.eval()


def load(module: Any, source: Any, key: str | None) -> Any:
    """The module with the weights of a state dict or file.

    What all names in the file begin with ("model.", "module.") may be missing in the module. Tied
    weights may be in the file under one of their names.

    Raises:
        PortingError: if names or shapes differ, or tied weights hold different values.
    """
    torch = sys.modules["torch"]
    wanted = module.state_dict()
    given = _without_prefix(read_state_dict(source, key).originals, set(wanted))
    given = _with_tied(given, read_state_dict(module))
    differences = [f"{name} is missing" for name in wanted if name not in given]
    differences += [f"{name} is not the module's" for name in given if name not in wanted]
    differences += [
        f"{name} has the shape {tuple(x.shape)}, and {tuple(wanted[name].shape)} in the module"
        for name, x in given.items()
        if name in wanted and tuple(x.shape) != tuple(wanted[name].shape)
    ]
    if differences:
        raise PortingError(
            f"porting: the weights are not those of the module, {type(module).__name__}: "
            + "; ".join(differences)
        )
    tensors = {
        name: torch.as_tensor(x).to(dtype=wanted[name].dtype, device=wanted[name].device)
        for name, x in given.items()
    }
    load_checked(module, tensors)
    return module


def _without_prefix(given: Mapping[str, Any], wanted: set[str]) -> dict[str, Any]:
    found = dict(given)
    while not wanted & found.keys():
        first = {name.partition(".")[0] for name in found}
        if len(first) != 1 or any("." not in name for name in found):
            return dict(given)
        found = {name.partition(".")[2]: value for name, value in found.items()}
    return found


def _with_tied(given: Mapping[str, Any], state: StateDict) -> dict[str, Any]:
    found = dict(given)
    for name, first in state.ties.items():
        if name in found:
            found.setdefault(first, found[name])
    for name, first in state.ties.items():
        if first in found:
            found.setdefault(name, found[first])
    return found
