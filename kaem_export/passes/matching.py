"""Operators that more than one rewrite looks for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from kaem_export.passes.editing import UNARY, constant, row_shape


def is_elementwise(node: ir.Node) -> bool:
    """Whether it maps every element of its first input by itself, with constants for the rest."""
    further = [constant(value) for value in node.inputs[1:] if value is not None]
    return node.op_type in UNARY and all(array is not None and array.ndim == 0 for array in further)


def is_doubling(node: ir.Node) -> bool:
    """Whether it is a ConvTranspose that doubles images of a known size: kernel 4, stride 2, padding 1, no groups.

    Its weights are constant and float32, and so is its bias if it has one.
    """
    weight = constant(node.inputs[1]) if node.op_type == "ConvTranspose" else None
    if weight is None or weight.shape[2:] != (4, 4) or weight.dtype != np.float32:
        return False
    if row_shape(node.inputs[0]) is None or (len(node.inputs) > 2 and constant(node.inputs[2]) is None):
        return False
    get = node.attributes.get_ints
    return (
        tuple(get("strides", (1, 1))) == (2, 2)
        and tuple(get("pads", (0, 0, 0, 0))) == (1, 1, 1, 1)
        and not any(get("output_padding", (0, 0)))
        and tuple(get("dilations", (1, 1))) == (1, 1)
        and node.attributes.get_int("group", 1) == 1
        and node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
    )
