"""Tied weights: one weight under several names in PyTorch, or of several layers in Keras.

`decoder.weight = encoder.weight` and `self.b = self.a` tie in PyTorch; a layer that is called more
than once ties in Keras. Each side may keep apart what the other ties, as long as the values are
equal. The gradients of what is kept apart add up to the gradient of what is tied.
"""

from collections.abc import Callable, Sequence

import numpy as np

from multibackend_lstm.torch_weights.matching import Pair
from multibackend_lstm.torch_weights.running import Values
from multibackend_lstm.torch_weights.state_dict import StateDict

#: Names of tensors that hold one weight.
Tied = tuple[str, ...]


def tied_groups(pairs: Sequence[Pair], state: StateDict) -> list[Tied]:
    """Names that are tied on either side, and alone those that share a Keras weight with such."""
    uses = [
        (id(weight.variable), leaf, part.names[leaf])
        for pair in pairs
        for part in pair.parts
        for weight in pair.layer.weights
        for leaf in weight.shapes
    ]
    ties = state.ties
    group_of: dict[str, set[str]] = {}
    first_of: dict[tuple[int, str], str] = {}
    for variable, leaf, name in uses:
        others = (ties.get(name, name), first_of.setdefault((variable, leaf), name))
        merged = {name}.union(*(group_of.get(other, {other}) for other in others))
        group_of |= dict.fromkeys(merged, merged)
    mixed = {variable for variable, _, name in uses if len(group_of[name]) > 1}
    order = [name for variable, _, name in uses if variable in mixed]
    return list(dict.fromkeys(tuple(n for n in order if n in group_of[name]) for name in order))


def sum_in_keras(pairs: Sequence[Pair], tied: Tied, values: Values) -> np.ndarray | None:
    """The gradient of all Keras weights that are tied, in PyTorch's form; None where one has none.

    Args:
        pairs: layers and their parts.
        tied: names of the tensors.
        values: what Keras computed.
    """
    found: dict[tuple[int, str], np.ndarray] = {}
    for pair in pairs:
        for weight in pair.layer.weights:
            leaves = [leaf for leaf in weight.shapes if pair.part.names[leaf] in tied]
            gradient = values.gradients.get(id(weight.variable))
            if not leaves:
                continue
            if gradient is None:  # not trainable
                return None
            parts = weight.to_torch(gradient, gradient=True)
            found |= {(id(weight.variable), leaf): parts[leaf] for leaf in leaves}
    total: np.ndarray = np.sum(list(found.values()), axis=0)
    return total


def sum_in_torch(tied: Tied, state: StateDict) -> Callable[[Values], np.ndarray]:
    """A function that adds up the gradients of the parameters that are tied.

    Args:
        tied: names of the tensors.
        state: the module's.
    """
    parameters = dict(state.module.named_parameters(remove_duplicate=False))
    stored = {name: state.sources[name] for name in tied}
    names = {
        (*(id(parameters[source]) for source in sources), part): name
        for name, (sources, part) in stored.items()
        if all(source in parameters for source in sources)
    }.values()

    def total(values: Values) -> np.ndarray:
        added: np.ndarray = np.sum([values.gradients[name] for name in names], axis=0)
        return added

    return total
