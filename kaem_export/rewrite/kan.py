"""Kolmogorov-Arnold layers: fewer and longer runs over the features, and one accumulation.

A layer is y = B(x) C + b(x) W with features B (N, I, G), coefficients C (I G, O), base path b(x) W. The matrix product
is most of it; what is saved here is memory traffic around it.

1. Features are laid out (N, G, I), rows of C likewise. Every elementwise operator then runs along I inputs at once
   instead of G functions of one input at a time.
2. Gaussians exp(-((x - c) / w)^2 / 2) become exp(-(x a - c a)^2), a = 1 / (w sqrt 2): x a costs nothing, for it is
   taken before x meets the G centres; so two operators on (N, G, I) fewer and no division. Likewise (x - c) / w of
   other bumps.
3. The base path is accumulated on the features' product: Gemm(b(x), W, B(x) C) instead of a product and a sum.

Matches: MatMul(Reshape(B), C) with constant C, where B comes from Unsqueeze(x) by elementwise operators, slices and
joins along the axis of the functions; then Div(Sub(x, c), w) with w the same for all G, and sums of a matrix and a
product with constant weights.
Leaves alone: features that something else reads, or that come about otherwise, as wavelets with own scales do.
After it: the same features up to rounding; step 2 moves the argument by a few of its last bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from kaem_export.rewrite.editing import UNARY, Patch, constant, row_shape, sole_user, swept, with_shapes

_ELEMENTWISE = UNARY | {
    *("Add", "And", "Cast", "Div", "Equal", "Floor", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mul", "Not"),
    *("Or", "Pow", "Round", "Sub", "Where"),
}


def fold_kan_layers(model: ir.Model) -> ir.Model:
    """Return the model with its Kolmogorov-Arnold layers rewritten, in place."""
    for node in tuple(model.graph):
        if node.op_type == "MatMul":
            _move_functions_in_front(node)
    with_shapes(swept(model))
    for node in tuple(model.graph):
        if node.op_type == "Div":
            _scale_before_centres(node)
    with_shapes(swept(model))
    for node in tuple(model.graph):
        if node.op_type == "Exp":
            _square_once(node)
    for node in tuple(model.graph):
        if node.op_type == "Add":
            _accumulate(node)
    return with_shapes(swept(model))


def _move_functions_in_front(product: ir.Node) -> None:
    """Lay the features of one layer out as (N, G, I) instead of (N, I, G)."""
    weight = constant(product.inputs[1])
    reshape = None if product.inputs[0] is None else product.inputs[0].producer()
    if weight is None or weight.ndim != 2 or reshape is None or reshape.op_type != "Reshape":
        return
    if sole_user(reshape.outputs[0]) is not product or reshape.inputs[0] is None:
        return
    features = reshape.inputs[0]
    sides = row_shape(features)
    if sides is None or len(sides) != 2 or sides[0] * sides[1] != len(weight):
        return
    region = _feature_nodes(features, reshape)
    if region is None:
        return
    for node in region:
        _swap_axes(node)
    patch = Patch(product, f"{product.outputs[0].name}_kan")
    rows = weight.reshape(*sides, -1).swapaxes(0, 1).reshape(weight.shape)
    product.replace_input_with(1, patch.constant(rows, "coefficients"))


def _feature_nodes(features: ir.Value, reader: ir.Node) -> list[ir.Node] | None:
    """Return the nodes from Unsqueeze(x) to the features, or None where one of them is not as described above."""
    region: dict[ir.Node, None] = {}
    waiting = [features]
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if node is None or len(row_shape(value) or ()) != 2 or not _keeps_axes(node):
            return None
        if node not in region:
            region[node] = None
            if node.op_type != "Unsqueeze":
                data = node.inputs[:1] if node.op_type == "Slice" else node.inputs
                waiting += [entry for entry in data if entry is not None and constant(entry) is None]
    allowed = {*region, reader}
    for node in region:
        result = node.outputs[0]
        if result.is_graph_output() or not {user for user, _ in result.uses()} <= allowed:
            return None
    return list(region)


def _keeps_axes(node: ir.Node) -> bool:
    """Whether a node does the same to (N, I, G) for every input i: elementwise, or along the functions' axis."""
    if node.op_type == "Unsqueeze":
        axes = constant(node.inputs[1])
        return axes is not None and axes.tolist() in ([2], [-1]) and len(row_shape(node.inputs[0]) or ()) == 1
    if node.op_type == "Slice":
        axes = constant(node.inputs[3]) if len(node.inputs) > 3 else None
        return (
            axes is not None and axes.tolist() in ([2], [-1]) and all(constant(v) is not None for v in node.inputs[1:])
        )
    if node.op_type == "Concat":
        return node.attributes.get_int("axis") in (2, -1) and all(constant(value) is None for value in node.inputs)
    return node.op_type in _ELEMENTWISE and all(_has_three_axes(value) for value in node.inputs if value is not None)


def _has_three_axes(value: ir.Value) -> bool:
    array = constant(value)
    if array is None:
        return len(row_shape(value) or ()) == 2
    return array.ndim < 3 or array.shape[0] == 1


def _swap_axes(node: ir.Node) -> None:
    patch = Patch(node, f"{node.outputs[0].name}_swapped")
    if node.op_type == "Unsqueeze":
        node.replace_input_with(1, patch.constant(np.array([1], np.int64), "axis"))
    elif node.op_type == "Slice":
        node.replace_input_with(3, patch.constant(np.array([1], np.int64), "axis"))
    elif node.op_type == "Concat":
        node.attributes["axis"] = ir.AttrInt64("axis", 1)
    else:
        for index, value in enumerate(node.inputs):
            array = constant(value)
            if array is not None and array.size > 1:
                node.replace_input_with(index, patch.constant(np.atleast_2d(array).swapaxes(-1, -2)))
    node.outputs[0].shape = None


def _scale_before_centres(divide: ir.Node) -> None:
    """(Unsqueeze(x) - c) / w -> Unsqueeze(x / w) - c / w, w (1, I) or a number."""
    width = constant(divide.inputs[1])
    minus = None if divide.inputs[0] is None else divide.inputs[0].producer()
    if width is None or minus is None or minus.op_type != "Sub" or sole_user(minus.outputs[0]) is not divide:
        return
    expand, centres = minus.inputs[0].producer() if minus.inputs[0] else None, constant(minus.inputs[1])
    if expand is None or expand.op_type != "Unsqueeze" or centres is None or not _is_axis_one(expand):
        return
    inputs = row_shape(expand.inputs[0])
    if inputs is None or centres.ndim != 2 or width.size not in (1, inputs[0]) or not width.all():
        return
    if width.size > 1 and width.shape != (1, inputs[0]):
        return
    patch = Patch(divide, f"{divide.outputs[0].name}_scaled")
    inverse = 1.0 / width.astype(np.float64)
    near = patch.node("Mul", [expand.inputs[0], patch.constant(_float32(inverse.reshape(1, -1)), "inverse_width")])
    far = patch.constant(_float32(centres * inverse), "centres")
    wide = patch.node("Unsqueeze", [near, expand.inputs[1]])
    patch.replace(divide.outputs[0], patch.node("Sub", [wide, far]))


def _is_axis_one(expand: ir.Node) -> bool:
    axes = constant(expand.inputs[1])
    return axes is not None and axes.tolist() == [1]


def _square_once(exp: ir.Node) -> None:
    """Exp(-t t / 2), t = Unsqueeze(x s) - c -> Exp(-(d d)), d = t / sqrt 2, the root within s and c."""
    outer = None if exp.inputs[0] is None else exp.inputs[0].producer()
    if outer is None or outer.op_type != "Mul" or sole_user(outer.outputs[0]) is not exp:
        return
    for halved, t in (outer.inputs, outer.inputs[::-1]):
        inner = None if halved is None else halved.producer()
        if t is None or inner is None or inner.op_type != "Mul" or sole_user(inner.outputs[0]) is not outer:
            continue
        factor = next((constant(value) for value in inner.inputs if value is not t), None)
        root = None if factor is None or factor.size != 1 or t not in inner.inputs else float(-factor.reshape(()))
        minus = t.producer()
        if (
            root is None
            or root <= 0
            or minus is None
            or minus.op_type != "Sub"
            or {n for n, _ in t.uses()} != {inner, outer}
        ):
            continue
        expand, centres = minus.inputs[0].producer() if minus.inputs[0] else None, constant(minus.inputs[1])
        scale = (
            None
            if expand is None or expand.op_type != "Unsqueeze" or expand.inputs[0] is None
            else expand.inputs[0].producer()
        )
        if scale is None or scale.op_type != "Mul" or centres is None or expand is None:
            continue
        inverse = constant(scale.inputs[1])
        if inverse is None:
            continue
        patch = Patch(exp, f"{exp.outputs[0].name}_gaussian")
        near = patch.node("Mul", [scale.inputs[0], patch.constant(_float32(inverse * np.sqrt(root)), "inverse_width")])
        wide = patch.node("Unsqueeze", [near, expand.inputs[1]])
        d = patch.node("Sub", [wide, patch.constant(_float32(centres * np.sqrt(root)), "centres")])
        patch.replace(exp.outputs[0], patch.node("Exp", [patch.node("Neg", [patch.node("Mul", [d, d])])]))
        return


def _accumulate(add: ir.Node) -> None:
    """Add(y, MatMul(x, W)) -> Gemm(x, W, y) for matrices; of two products the smaller one is accumulated."""
    sides = row_shape(add.outputs[0])
    products = []
    for value in add.inputs:
        node = None if value is None else value.producer()
        if node is None or node.op_type != "MatMul" or sole_user(node.outputs[0]) is not add:
            continue
        weight = constant(node.inputs[1])
        if weight is not None and weight.ndim == 2 and len(row_shape(node.inputs[0]) or ()) == 1:
            products.append((len(weight), node))
    if sides is None or len(sides) != 1 or not products:
        return
    _, smaller = min(products, key=lambda entry: entry[0])
    rest = next((value for value in add.inputs if value is not smaller.outputs[0]), None)
    if rest is None or rest.dtype != ir.DataType.FLOAT:
        return
    patch = Patch(add, f"{add.outputs[0].name}_accumulated")
    patch.replace(add.outputs[0], patch.node("Gemm", [*smaller.inputs, rest]))


def _float32(array: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(array).astype(np.float32)
