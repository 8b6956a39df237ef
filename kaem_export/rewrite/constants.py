"""Compute what does not depend on the input, and name numbers as numbers.

Matches: nodes whose inputs are all constant, and scalars that are expanded to a shape only for an operator that
would broadcast them anyway. Leaves alone: everything that depends on the input.
After it: a layer's weights are one initializer each, so later rewrites find them, and no file holds factors of them.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import optimizer

from kaem_export.rewrite.editing import constant, swept, with_shapes

_NO_LIMIT = 1 << 40
_BROADCASTS = frozenset({"Add", "Sub", "Mul", "Div"})


def fold_constants(model: ir.Model) -> ir.Model:
    """Return the model with all constant expressions evaluated, in place."""
    optimizer.fold_constants(model, input_size_limit=_NO_LIMIT, output_size_limit=_NO_LIMIT)
    for node in model.graph:
        if node.op_type == "Expand":
            _spare_expansion(node)
    return with_shapes(swept(model))


def _spare_expansion(expand: ir.Node) -> None:
    """Let the readers of Expand(scalar, Shape(y)) that combine it with y read the scalar."""
    scalar, shape = expand.inputs
    number = constant(scalar)
    source = None if shape is None else shape.producer()
    if (
        number is None
        or number.ndim > 0
        or source is None
        or source.op_type != "Shape"
        or source.attributes.get_int("start", 0) != 0
    ):
        return
    whole = source.inputs[0]
    for user, index in tuple(expand.outputs[0].uses()):
        if user.op_type in _BROADCASTS and _has_shape_of(user.inputs[1 - index], whole):
            user.replace_input_with(index, scalar)


def _has_shape_of(value: ir.Value | None, whole: ir.Value | None) -> bool:
    """Whether a value certainly has the same shape as another: it is the other, or a product or sum of it."""
    if value is whole:
        return True
    return value is not None and whole is not None and value.shape is not None and value.shape == whole.shape
