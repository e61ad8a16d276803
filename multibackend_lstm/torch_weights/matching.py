"""Which part of a torch module belongs to which Keras layer."""

import itertools
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from multibackend_lstm.torch_weights.errors import MappingError, PortingError
from multibackend_lstm.torch_weights.graph import WeightedLayer
from multibackend_lstm.torch_weights.rules import SUPPORTED_MODULES
from multibackend_lstm.torch_weights.state_dict import StateDict
from multibackend_lstm.torch_weights.stored_forms import attention_of

_RECURRENT = re.compile(r"(weight_ih|weight_hh|bias_ih|bias_hh|weight_hr)_l(\d+)(_reverse)?")

# What to do about modules that are not supported, where there is something.
_INSTEAD = {
    "EmbeddingBag": "Build the Keras model with an Embedding and a GlobalAveragePooling1D (for "
    "mode='mean'), and pass module.state_dict(). ",
}

#: What settles a matching: torch prefixes, with the Keras layers they belong to. Several layers
#: stand for a recurrent module of several layers.
Mapped = Mapping[str, str | Sequence[str]]


@dataclass
class Part:
    """The tensors of a torch module that belong to one Keras layer.

    Attributes:
        prefix: the module's name, `"features.conv1"`; empty for the root.
        number: the layer's number within a recurrent module; None for any other.
        names: full names in the state dict, by the name within the module (of a recurrent one,
            without the layer's number: `weight_ih_reverse`).
        tied: further parts that hold the same weights, for one Keras layer that is shared.
    """

    prefix: str
    number: int | None
    names: dict[str, str]
    tied: list["Part"] = field(default_factory=list)

    @property
    def title(self) -> str:
        """What a message calls it."""
        name = self.prefix or "(root)"
        return name if self.number is None else f"{name}, layer {self.number}"


@dataclass(frozen=True)
class Pair:
    """A Keras layer and the part of the torch module that holds its weights."""

    layer: WeightedLayer
    part: Part

    @property
    def parts(self) -> list[Part]:
        """The part, and those tied to it."""
        return [self.part, *self.part.tied]

    def full_names(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Tensors under their names in the state dict, tied ones under each."""
        return {part.names[name]: value for part in self.parts for name, value in tensors.items()}

    def short_names(self, tensors: Mapping[str, Any], part: Part | None = None) -> dict[str, Any]:
        """Tensors of a state dict under their names in the module, or in one tied to it."""
        names = (part or self.part).names
        return {name: tensors[names[name]] for name in self.layer.shapes}


def parts_of(state: StateDict) -> list[Part]:
    """The parts of a state dict, in its order; layers of a recurrent module by their numbers."""
    found: dict[tuple[str, int | None], Part] = {}
    for name in state.tensors:
        prefix, _, leaf = name.rpartition(".")
        attention = attention_of(prefix, state.tensors)
        if attention is not None:
            prefix, leaf = attention, f"out_proj.{leaf}"
        number = None
        match = _RECURRENT.fullmatch(leaf)
        if match:
            number = int(match[2])
            leaf = match[1] + (match[3] or "")
        found.setdefault((prefix, number), Part(prefix, number, {})).names[leaf] = name
    first = {prefix: position for position, (prefix, _) in reversed(list(enumerate(found)))}
    return sorted(found.values(), key=lambda part: (first[part.prefix], part.number or 0))


def named_parts(layers: Sequence[WeightedLayer]) -> list[Pair]:
    """Parts with names made of the Keras layers' own, `"block.conv"`."""
    pairs = []
    for layer in layers:
        prefix = layer.path.replace("/", ".")
        number = 0 if layer.rule.outputs == "sequence" else None
        names = {name: f"{prefix}.{part_name(name, number)}" for name in layer.shapes}
        pairs.append(Pair(layer, Part(prefix, number, names)))
    return pairs


def part_name(name: str, number: int | None) -> str:
    """The name in a module: `weight_ih_reverse` of layer 1 is `weight_ih_l1_reverse`."""
    if number is None:
        return name
    stem, reverse, _ = name.partition("_reverse")
    return f"{stem}_l{number}{reverse}"


def match(
    layers: Sequence[WeightedLayer], state: StateDict, mapping: Mapped | None = None
) -> list[Pair]:
    """Pair every Keras layer with weights with its part of the torch module.

    In this order: what `mapping` says; equal names on both sides; the only layer that fits; and
    among parts of the same shapes their order, where both sides have one.

    Raises:
        PortingError: if anything is left over or missing, does not fit, or is ambiguous.
    """
    parts = parts_of(state)
    calls = sum(layer.calls for layer in layers)
    if len(parts) == calls > len(layers):  # modules of several names, layers called so often
        modules = {prefix: id(module) for prefix, module in state.modules.items()}
        parts = _together(parts, lambda part: (part.number, modules.get(part.prefix, part.prefix)))
    if len(parts) > len(layers):
        ties = state.ties
        parts = _together(
            parts, lambda part: tuple((k, ties.get(name, name)) for k, name in part.names.items())
        )
    matching = _Matching(list(layers), parts, state)
    for part in parts:
        matching.check_supported(part)
    matching.by_mapping(mapping or {})
    matching.by_names()
    matching.by_shape()
    matching.by_order()
    matching.check_complete()
    return [Pair(layer, matching.found[i]) for i, layer in enumerate(layers)]


def _together(parts: Sequence[Part], identity: Callable[[Part], Hashable]) -> list[Part]:
    """One part for all of the same identity, the first, with the others tied to it."""
    kept: dict[Hashable, Part] = {}
    for part in parts:
        first = kept.setdefault(identity(part), part)
        if first is not part:
            first.tied.append(part)
    return list(kept.values())


class _Matching:
    def __init__(self, layers: list[WeightedLayer], parts: list[Part], state: StateDict) -> None:
        self.layers, self.parts, self.state = layers, parts, state
        self.found: dict[int, Part] = {}
        self._modules = state.modules
        self._common = _common_prefix(parts)

    def check_supported(self, part: Part) -> None:
        """Raise for a module that no Keras layer can stand for."""
        if "weight_hr" in part.names or "weight_hr_reverse" in part.names:
            raise PortingError(
                f"porting: {part.title} was made with `proj_size`, which no Keras layer has. "
                "Train it without `proj_size`, or add a Dense layer and port the layers one by one."
            )
        if "bias_k" in part.names:
            raise PortingError(
                f"porting: {part.title} was made with `add_bias_kv`, which puts a key and a value "
                "that are learned at the end of each sequence. No Keras layer does: train it "
                "without, or append them by a layer of your own and port the others one by one."
            )
        computed = ("weight_g", "original", "original0", "weight_orig")
        hint = next((name for name in part.names if name in computed), None)
        if hint is not None:
            raise PortingError(
                f"porting: {part.title} computes its weight from others ({part.names[hint]}). "
                "Bake it in before: torch.nn.utils.parametrize.remove_parametrizations(module, "
                "'weight'), or torch.nn.utils.remove_spectral_norm(module)."
            )
        module = self._modules.get(part.prefix)
        if module is not None and not self._kinds(module) & set(SUPPORTED_MODULES):
            raise PortingError(
                f"porting: module {part.title} of type {type(module).__name__} has weights "
                f"({', '.join(part.names)}) and is not supported. "
                + _INSTEAD.get(type(module).__name__, "")
                + f"Supported: {', '.join(SUPPORTED_MODULES)}."
            )

    def by_mapping(self, mapping: Mapped) -> None:
        """What the caller says."""
        for prefix, given in mapping.items():
            accepted = {prefix, f"{self._common}{prefix}"}
            parts = [part for part in self.parts if accepted & set(_prefixes(part))]
            if not parts:
                prefixes = ", ".join(repr(p) for p in dict.fromkeys(p.prefix for p in self.parts))
                raise MappingError(
                    f"porting: `mapping` names {prefix!r}, and there are no tensors "
                    f"'{prefix}.*'. There are: {prefixes}."
                )
            names = [given] if isinstance(given, str) else list(given)
            if len(names) != len(parts):
                raise MappingError(
                    f"porting: `mapping` gives {len(names)} Keras layer(s) for {prefix!r}, which "
                    f"has {len(parts)}: a recurrent module of several layers needs a list."
                )
            for name, part in zip(names, parts, strict=True):
                position = self._position(name)
                layer = self.layers[position]
                if not self._fits(part, layer):
                    raise self._error(f"{part.title} does not fit {name!r}, as `mapping` has it")
                first = self.found.setdefault(position, part)
                if first is part:
                    continue
                if layer.calls == 1:
                    raise MappingError(
                        f"porting: `mapping` names the Keras layer {name!r} twice, for "
                        f"{first.title} and {part.title}, and the model calls it once."
                    )
                first.tied.append(part)
                self.parts.remove(part)

    def by_names(self) -> None:
        """Equal names, if all are equal."""
        names = {layer.path.replace("/", "."): i for i, layer in self._free_layers()}
        parts = {part.prefix: part for part in self._free_parts()}
        if self._common and names.keys() != parts.keys():
            parts = {prefix.removeprefix(self._common): x for prefix, x in parts.items()}
        if names.keys() == parts.keys() and len(parts) == len(self._free_parts()):
            pairs = {i: parts[name] for name, i in names.items()}
            if all(self._fits(part, self.layers[i]) for i, part in pairs.items()):
                self.found |= pairs

    def by_shape(self) -> None:
        """The only part that fits a layer, or the only layer that a part fits, again and again."""
        while True:
            before = len(self.found)
            for i, layer in self._free_layers():
                fitting = [part for part in self._free_parts() if self._fits(part, layer)]
                if len(fitting) == 1:
                    self.found[i] = fitting[0]
            for part in self._free_parts():
                positions = [i for i, layer in self._free_layers() if self._fits(part, layer)]
                if len(positions) == 1:
                    self.found[positions[0]] = part
            if len(self.found) == before:
                return

    def by_order(self) -> None:
        """Parts that fit several layers each, in their order."""
        in_order = (
            self.state.ordered
            and len(self.parts) == len(self.layers)
            and all(
                self._fits(part, layer) for part, layer in zip(self.parts, self.layers, strict=True)
            )
        )
        while self._free_parts() and self._free_layers():
            parts, positions = self._alike(self._free_parts()[0])
            if len(parts) != len(positions) or not positions:
                return  # something is missing, as `check_complete` will say
            titles = ", ".join(part.title for part in parts)
            paths = ", ".join(self.layers[i].path for i in positions)
            ambiguous = f"{titles} fit {paths} in more than one way"
            numbered = _by_number(parts)
            if not self._one_behind_the_other(positions):
                raise self._error(f"{ambiguous}, and these do not run one after the other", True)
            if numbered is None and not in_order:
                raise self._error(
                    f"{ambiguous}, and "
                    + (
                        "the order of definition is not that of the Keras layers"
                        if self.state.ordered
                        else "the file does not keep the order of definition"
                    ),
                    True,
                )
            if numbered is not None and in_order and numbered != parts:
                raise self._error(f"{ambiguous}: their numbers and their order differ", True)
            chosen = numbered or parts
            if not all(
                self._fits(part, self.layers[i]) for part, i in zip(chosen, positions, strict=True)
            ):
                raise self._error(ambiguous, True)
            self.found |= dict(zip(positions, chosen, strict=True))

    def check_complete(self) -> None:
        """Raise if anything is left."""
        left = [part.title for part in self._free_parts()]
        missing = [layer.path for _, layer in self._free_layers()]
        problems = []
        if left:
            problems.append(f"no Keras layer fits {', '.join(left)}")
        if missing:
            problems.append(f"no tensors fit the Keras layers {', '.join(missing)}")
        problems += self._absent()
        if problems:
            raise self._error("; ".join(problems))

    def _absent(self) -> list[str]:
        """Tensors that a free part lacks, as files leave out all but one name of tied weights."""
        found = []
        for part in self._free_parts():
            has = {leaf: self.state.tensors[name].shape for leaf, name in part.names.items()}
            for _, layer in self._free_layers():
                lacks = {x: shape for x, shape in layer.shapes.items() if x not in has}
                if {**has, **lacks} != layer.shapes:
                    continue
                for leaf, shape in lacks.items():
                    name = f"{part.prefix}.{part_name(leaf, part.number)}"
                    alike = [n for n, x in self.state.tensors.items() if x.shape == shape]
                    found.append(
                        f"{name} is missing"
                        + (f". If it is tied, add it: state[{name!r}] = " if alike else "")
                        + " or ".join(f"state[{n!r}]" for n in alike)
                    )
        return found

    def _free_layers(self) -> list[tuple[int, WeightedLayer]]:
        return [(i, layer) for i, layer in enumerate(self.layers) if i not in self.found]

    def _free_parts(self) -> list[Part]:
        taken = {id(part) for part in self.found.values()}
        return [part for part in self.parts if id(part) not in taken]

    def _alike(self, part: Part) -> tuple[list[Part], list[int]]:
        """All parts and layers that fitting connects with a part."""
        parts, positions, grown = [part], list[int](), True
        while grown:
            before = len(parts) + len(positions)
            positions = [
                i for i, layer in self._free_layers() if any(self._fits(p, layer) for p in parts)
            ]
            parts = [
                p
                for p in self._free_parts()
                if p is part or any(self._fits(p, self.layers[i]) for i in positions)
            ]
            grown = len(parts) + len(positions) > before
        return parts, positions

    def _one_behind_the_other(self, positions: list[int]) -> bool:
        # `inputs.behind` of a layer holds the numbers of all before it.
        pairs = itertools.pairwise(positions)
        return all(earlier in self.layers[later].inputs.behind for earlier, later in pairs)

    def _fits(self, part: Part, layer: WeightedLayer) -> bool:
        shapes = {leaf: self.state.tensors[name].shape for leaf, name in part.names.items()}
        for name in layer.rule.optional - layer.shapes.keys():
            shapes.pop(name, None)
        module = self._modules.get(part.prefix)
        kind_fits = module is None or bool(self._kinds(module) & set(layer.rule.modules))
        return kind_fits and shapes == layer.shapes

    @staticmethod
    def _kinds(module: Any) -> set[str]:
        return {kind.__name__ for kind in type(module).__mro__}

    def _position(self, name: str) -> int:
        """The layer of a path, or of the last part of a path where that is unique."""
        positions = [i for i, layer in enumerate(self.layers) if layer.path == name]
        positions = positions or [
            i for i, layer in enumerate(self.layers) if layer.path.split("/")[-1] == name
        ]
        if len(positions) != 1:
            paths = ", ".join(repr(layer.path) for layer in self.layers)
            raise PortingError(
                f"porting: `mapping` names the Keras layer {name!r}, which must be one of those "
                f"with weights: {paths}."
            )
        return positions[0]

    def _error(self, problem: str, ambiguous: bool = False) -> PortingError:
        remedy = (
            "Settle it with `mapping`, {torch prefix: name of the Keras layer}"
            if ambiguous
            else "Nothing was changed. What there is"
        )
        return PortingError(f"porting: {problem}. {remedy}:\n{self._table()}")

    def _table(self) -> str:
        """Both sides, what belongs together in one line."""
        rows = [("torch", "", "Keras", "")]
        of_part = {id(part): self.layers[i] for i, part in self.found.items()}
        shown = set()
        for part in self.parts:
            layer = of_part.get(id(part))
            shapes = {leaf: self.state.tensors[name].shape for leaf, name in part.names.items()}
            rows.append((part.title, _shapes(shapes), *_layer_cells(layer)))
            shown.add(id(layer))
        rows += [("", "", *_layer_cells(x)) for x in self.layers if id(x) not in shown]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(
            "  ".join(
                (*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3])
            ).rstrip()
            for row in rows
        )


def _layer_cells(layer: WeightedLayer | None) -> tuple[str, str]:
    if layer is None:
        return "-", ""
    return f"{layer.path} ({type(layer.layer).__name__})", _shapes(layer.shapes)


def _shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())


def _prefixes(part: Part) -> list[str]:
    return [part.prefix, *(each.prefix for each in part.tied)]


def _common_prefix(parts: Sequence[Part]) -> str:
    """What all names begin with: "model." of Lightning, "module." of DataParallel."""
    names = [part.prefix.split(".")[:-1] for part in parts]
    shared = itertools.takewhile(lambda pieces: len(set(pieces)) == 1, zip(*names, strict=False))
    return "".join(f"{pieces[0]}." for pieces in shared)


def _by_number(parts: list[Part]) -> list[Part] | None:
    """The parts in the order of the numbers in their names; None if they differ in more."""

    def pieces(part: Part) -> list[str]:
        # Keras leaves out the first number: conv, conv_1, conv_2.
        prefix = part.prefix if re.search(r"_\d+$", part.prefix) else f"{part.prefix}_0"
        return re.split(r"(\d+)", f"{prefix}.{part.number}")

    if len({tuple(pieces(part)[::2]) for part in parts}) > 1:
        return None
    return sorted(parts, key=lambda part: [int(number) for number in pieces(part)[1::2]])
