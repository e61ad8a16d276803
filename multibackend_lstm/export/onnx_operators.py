"""The operators `LSTM` and `GRU` of ONNX in the place of the nodes that stand for them."""

from typing import Any

#: As in `backends/tensorflow_operators.py`, which cannot be imported without TensorFlow.
TOKEN = "onnx:"


def register_operators() -> None:
    """Tell tf2onnx what becomes of the nodes, for the rest of this process."""
    from tf2onnx.handler import tf_op

    tf_op("PyFunc")(_PyFunc)


class _PyFunc:
    """The handler, in the form that tf2onnx wants."""

    @classmethod
    def version_7(cls, ctx: Any, node: Any, **kwargs: Any) -> None:
        """For this version of ONNX's operators and later ones."""
        _to_operator(ctx, node)


def _to_operator(graph: Any, node: Any) -> None:
    """Put the operator in a node's place.

    The node's inputs are those of the operator, but for the lengths, which come last if there are
    any; its outputs are those of the operator.
    """
    token = node.get_attr_value("token")
    token = token.decode() if isinstance(token, bytes) else token
    if not token.startswith(TOKEN):
        raise ValueError(f"the Python function {node.name} cannot be in an ONNX graph")
    kind, _, variant = token.removeprefix(TOKEN).partition(" ")
    states = len(node.output) - 1
    x, kernel, recurrent_kernel, bias, *rest = node.input
    lengths = rest[states] if len(rest) > states else ""
    attributes: dict[str, Any] = {"hidden_size": graph.get_shape(recurrent_kernel)[-1]}
    if kind == "GRU":
        attributes["linear_before_reset"] = int(not variant)
    outputs, dtypes = list(node.output), [graph.get_dtype(x) for x in node.output]
    shapes = [graph.get_shape(x) for x in node.output]
    graph.remove_node(node.name)
    graph.make_node(
        kind,
        [x, kernel, recurrent_kernel, bias, lengths, *rest[:states]],
        attr=attributes,
        outputs=outputs,
        name=node.name,
        shapes=shapes,
        dtypes=dtypes,
    )
