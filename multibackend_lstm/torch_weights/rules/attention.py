"""`MultiHeadAttention` is `torch.nn.MultiheadAttention`: heads side by side in one axis there.

| Keras | torch.nn |
|---|---|
| query, key and value kernels `(in, heads, size)`, biases `(heads, size)` | `in_proj_weight` `(3 * heads * size, in)`, `in_proj_bias` |
| the same with keys or values of another width | `q_proj_weight`, `k_proj_weight` `(heads * size, kdim)`, `v_proj_weight` `(heads * size, vdim)` |
| output kernel `(heads, size, out)` | `out_proj.weight` `(out, heads * size)` |
"""  # noqa: E501

import math
from typing import Any

import keras

from multibackend_lstm.torch_weights.axes import Features
from multibackend_lstm.torch_weights.rules.base import Call, Rule, different
from multibackend_lstm.torch_weights.weights import Moved, Weight


class MultiHeadAttention(Rule):
    """`MultiHeadAttention` over one axis, whose heads are together as wide as its queries."""

    modules = ("MultiheadAttention",)
    outputs = "features"
    # In `dot_product_attention` of Keras 3.15 on TensorFlow, `tf.cast` makes a number a float32.
    not_in_float64 = "Keras's attention rounds 1 / sqrt(key_dim) to float32"

    def refusal(self, layer: Any, inputs: Features) -> str | None:
        """As in `Rule`."""
        size, width = layer.num_heads * layer.key_dim, inputs.shape[-1]
        widths = {layer.query_dense.kernel.shape[0], layer.output_dense.kernel.shape[-1]}
        config = layer.get_config()
        if layer.value_dim != layer.key_dim:
            return f"value_dim={layer.value_dim} is not key_dim={layer.key_dim}: leave it out"
        if widths != {size}:
            return (
                f"num_heads * key_dim = {size}, and queries and outputs have {sorted(widths)} "
                "features, where torch.nn has one size for these"
            )
        if len(inputs.shape) != 3 or config.get("use_gate") or config.get("sliding_window"):
            return "it attends over more than one axis, in a window, or with a gate"
        if inputs.axes[-1].order is not None:
            return f"a flatten before it has put its {width} features in another order"
        return None

    def weights(self, layer: Any, inputs: Features) -> list[Weight]:
        """As in `Rule`."""
        size = layer.num_heads * layer.key_dim
        found: list[Weight] = []
        projections = {"q": layer.query_dense, "k": layer.key_dense, "v": layer.value_dense}
        for kind, dense in projections.items():
            shape = (size, dense.kernel.shape[0])
            found.append(Moved(dense.kernel, f"{kind}_proj_weight", (1, 2, 0), shape))
            if dense.bias is not None:
                found.append(Moved(dense.bias, f"{kind}_proj_bias", shape=(size,)))
        output = layer.output_dense
        found.append(Moved(output.kernel, "out_proj.weight", (2, 0, 1), (size, size)))
        if output.bias is not None:
            found.append(Moved(output.bias, "out_proj.bias"))
        return found

    def differences(self, layer: Any, inputs: Features, module: Any) -> list[str]:
        """As in `Rule`."""
        expected = {"num_heads": layer.num_heads, "add_zero_attn": False}
        return different(expected, module)

    def assumption(self, layer: Any) -> str | None:
        """As in `Rule`."""
        return f"num_heads={layer.num_heads}, which a state dict does not hold"

    def call_keras(self, layer: Any, x: Any, original: Any) -> Any:
        """As in `Rule`; attention of a sequence to itself, or to one as wide as keys and values."""
        key, value = _widths(original)

        def of_width(width: int) -> Any:
            times = math.ceil(width / x.shape[-1])
            return (
                x if width == x.shape[-1] else keras.ops.concatenate([x] * times, -1)[..., :width]
            )

        return layer(x, of_width(value), of_width(key))

    def module_and_call(self, layer: Any, inputs: Features) -> tuple[Any, Call]:
        """As in `Rule`."""
        import torch

        key, value = _widths(layer)
        module = torch.nn.MultiheadAttention(
            layer.num_heads * layer.key_dim,
            layer.num_heads,
            bias=layer.output_dense.bias is not None,
            kdim=key,
            vdim=value,
            batch_first=True,
        )

        def call(module: Any, x: Any) -> Any:
            def of_width(width: int) -> Any:
                return torch.cat([x] * math.ceil(width / x.shape[-1]), -1)[..., :width]

            return module(x, of_width(key), of_width(value), need_weights=False)[0]

        return module, call


def _widths(layer: Any) -> tuple[int, int]:
    """Features of keys and of values."""
    return layer.key_dense.kernel.shape[0], layer.value_dense.kernel.shape[0]
