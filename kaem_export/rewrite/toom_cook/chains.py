"""Which parts of a graph can be computed in the large-batch form of `layer.py`.

A chain is a dense layer that gives the images of the first transposed convolution, if there is one, suitable transposed
convolutions with elementwise operators between and after them, and what alone reads their result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from kaem.engines.session import open_session
from kaem_export.rewrite.editing import Patch, constant, is_doubling, is_elementwise, repeated, row_shape, sole_user
from kaem_export.rewrite.toom_cook.maps import NUM_POINTS, TILE
from kaem_train.fitting.decoder_graph import IR_VERSION, OPSET

_MOST_SHARE = 0.75
"""Of a layer's operations that the rewritten one may need: small savings are lost again in memory traffic."""
_LEVELS = (0.01, 100.0)
"""Between which the channel of ones must stay after an activation, lest biases lose digits."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Operators that follow each other, each the only reader of the one before.

    Attributes:
        dense: A Gemm, elementwise operators and the Reshape of what they give to images; none where something else
            gives the images.
        nodes: Suitable layers and the elementwise operators between and after them.
        rest: What follows and stays as it is: a branch of an If copies what it returns, so it should return the last
            few channels and not the many before them.
    """

    dense: tuple[ir.Node, ...]
    nodes: tuple[ir.Node, ...]
    rest: tuple[ir.Node, ...]

    @property
    def all_nodes(self) -> tuple[ir.Node, ...]:
        """All of it, in order."""
        return (*self.dense, *self.nodes, *self.rest)

    @property
    def source(self) -> ir.Value:
        """What the first of them reads now, for an earlier chain may have been replaced meanwhile."""
        return _input(self.all_nodes[0])

    @property
    def images(self) -> ir.Value:
        """What the first layer reads: of images (N, C, H, W)."""
        return _input(self.nodes[0])

    @property
    def result(self) -> ir.Value:
        """What the last of them gives."""
        return self.all_nodes[-1].outputs[0]

    @property
    def layers(self) -> tuple[ir.Node, ...]:
        """The transposed convolutions among `nodes`."""
        return tuple(node for node in self.nodes if node.op_type == "ConvTranspose")

    @property
    def most_summed(self) -> int:
        """The most products, biases among them, that one number of the large-batch form is a sum of."""
        sizes = [len(np.asarray(constant(layer.inputs[1]))) for layer in self.layers]
        if self.dense:
            sizes.append((row_shape(self.source) or (0,))[0])
        return 1 + max(sizes)


def chains(model: ir.Model) -> list[Chain]:
    """Return all chains of a graph whose shapes are known, in order."""
    found: list[Chain] = []
    used: set[ir.Node] = set()
    for node in model.graph:
        if node in used or not _is_suitable(node):
            continue
        nodes, level = [node], 1.0
        while (user := sole_user(nodes[-1].outputs[0])) is not None:
            if not _is_suitable(user) and not is_elementwise(user):
                break
            level = 1.0 if user.op_type == "ConvTranspose" else level_after(user, level)
            if not _LEVELS[0] <= abs(level) <= _LEVELS[1]:
                break
            nodes.append(user)
        rest: list[ir.Node] = []
        while (user := sole_user([*nodes, *rest][-1].outputs[0])) is not None and _stays(user):
            rest.append(user)
        used |= {*nodes, *rest}
        found.append(Chain(_dense(node), tuple(nodes), tuple(rest)))
    return found


def _is_suitable(node: ir.Node) -> bool:
    if not is_doubling(node):
        return False
    _, height, width = row_shape(node.inputs[0]) or (0, 0, 0)
    return height == width and height % TILE == 0 and _saves_much(np.asarray(constant(node.inputs[1])), height)


def _saves_much(weight: NDArray[Any], side: int) -> bool:
    num_inputs, num_outputs = weight.shape[:2]
    points = side // TILE * NUM_POINTS
    core = (2 * points) ** 2 * num_inputs * num_outputs
    maps = points * side * (TILE + points) * num_inputs + 4 * points * side * (points + side) * num_outputs
    return bool(core + maps <= _MOST_SHARE * 16 * side * side * num_inputs * num_outputs)


def _stays(node: ir.Node) -> bool:
    """Whether a node can follow a chain into a branch: an unsuitable layer, or an elementwise operator."""
    is_layer = node.op_type == "ConvTranspose" and all(constant(value) is not None for value in node.inputs[1:])
    return is_elementwise(node) or (is_layer and not _is_suitable(node))


def _dense(layer: ir.Node) -> tuple[ir.Node, ...]:
    """Return the Gemm that gives a layer's images and what lies between, or nothing."""
    reshape = _sole_producer(layer)
    if reshape is None or reshape.op_type != "Reshape" or constant(reshape.inputs[1]) is None:
        return ()
    nodes = [reshape]
    while (before := _sole_producer(nodes[0])) is not None and is_elementwise(before):
        nodes.insert(0, before)
    level = 1.0
    for activation in nodes[:-1]:
        level = level_after(activation, level)
        if not _LEVELS[0] <= abs(level) <= _LEVELS[1]:
            return ()
    sides = row_shape(reshape.outputs[0])
    is_whole = sides is not None and row_shape(reshape.inputs[0]) == (math.prod(sides),)
    return (before, *nodes) if before is not None and is_whole and _is_dense(before) else ()


def _is_dense(node: ir.Node) -> bool:
    """Whether it is a Gemm of rows with constant weights, and one offset for all rows."""
    if node.op_type != "Gemm" or row_shape(node.inputs[0]) is None:
        return False
    weight = constant(node.inputs[1])
    has_offset = len(node.inputs) > 2 and node.inputs[2] is not None
    offset = constant(node.inputs[2]) if has_offset else np.zeros(1, np.float32)
    is_plain = (
        node.attributes.get_int("transA", 0) == 0
        and node.attributes.get_float("alpha", 1.0) == 1.0
        and node.attributes.get_float("beta", 1.0) == 1.0
    )
    if weight is None or weight.dtype != np.float32 or offset is None:
        return False
    return is_plain and (offset.ndim < 2 or offset.shape[0] == 1)


def _sole_producer(node: ir.Node) -> ir.Node | None:
    """Return what gives a node's first input, if that is read by nothing else."""
    value = _input(node)
    return value.producer() if sole_user(value) is node else None


def _input(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    if value is None:
        raise TypeError(f"{node.op_type} has no input")
    return value


def level_after(activation: ir.Node, level: float) -> float:
    """What an elementwise operator makes of a channel that is `level` everywhere."""
    source = ir.Value(name="level", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape((1,)))
    end = ir.node("Identity", [source], outputs=[ir.Value(name="result", type=source.type, shape=source.shape)])
    graph = ir.Graph([source], end.outputs, nodes=[end], opset_imports={"": OPSET}, name="level")
    end.replace_input_with(0, repeated(Patch(end, "level"), activation, source))
    model = ir.to_proto(ir.Model(graph, ir_version=IR_VERSION))
    session = open_session(model.SerializeToString(), "cpu", source="the activation")
    return float(session.run(None, {"level": np.array([level], np.float32)})[0][0])
