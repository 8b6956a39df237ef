"""How a rewrite reads and changes a graph: constants, shapes per row, new nodes in the place of an old value.

Fix the number of rows.

Matches: any graph whose inputs and outputs begin with the free dimension N. Leaves alone: nothing.
After it: N is a number everywhere; a runtime that is given another number of rows refuses it.

Which nodes are the prior: those that `latent` depends on. Narrow types stop there, for tables need float32.

Operators that more than one rewrite looks for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common
from onnxscript import GraphBuilder

from kaem_export.onnx_builder import Op

UNARY = frozenset(
    {
        *(
            "Abs",
            "Celu",
            "Clip",
            "Elu",
            "Erf",
            "Exp",
            "Gelu",
            "HardSigmoid",
            "HardSwish",
            "Identity",
            "LeakyRelu",
            "Mish",
        ),
        *("Neg", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Tanh", "ThresholdedRelu"),
    }
)
"""Operators that map every element of their first input by itself; further inputs are scalars."""


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """Return the array that a value always has, or None where it depends on the graph's input."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def row_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the shape behind the first axis, which counts the batch; None where any of it is unknown."""
    if value is None or value.shape is None or len(value.shape) == 0:
        return None
    sides = value.shape.dims[1:]
    return tuple(map(int, sides)) if all(isinstance(side, int) for side in sides) else None  # type: ignore[arg-type]


def sole_user(value: ir.Value) -> ir.Node | None:
    """Return the only node that reads a value; None where there are several, or the graph's caller reads it too."""
    users = {node for node, _ in value.uses()}
    return next(iter(users)) if len(users) == 1 and not value.is_graph_output() else None


def other_input(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """Return the input of a node of two inputs that is not `value`; None where it is `value` as well."""
    rest = [entry for entry in node.inputs if entry is not value]
    return rest[0] if len(rest) == 1 else None


class Patch:
    """New nodes that will stand in front of one node of a graph.

    Args:
        place: The node that they come before.
        prefix: Beginning of the names of what is made.
    """

    def __init__(self, place: ir.Node, prefix: str) -> None:
        graph = place.graph
        if not isinstance(graph, ir.Graph):
            raise TypeError("the node is in no graph")
        self._graph, self._place, self._prefix = graph, place, prefix
        self._taken = {*graph.initializers, *(value.name for node in graph for value in node.outputs)}
        self._count = 0

    def node(self, kind: str, inputs: Iterable[ir.Value | None], **attributes: Any) -> ir.Value:
        """Add a node of one output and return that."""
        return self.nodes(kind, inputs, 1, **attributes)[0]

    def nodes(self, kind: str, inputs: Iterable[ir.Value | None], outputs: int, **attributes: Any) -> list[ir.Value]:
        """Add a node and return its outputs."""
        values = [ir.Value(name=self._name(kind.lower())) for _ in range(outputs)]
        node = ir.node(kind, list(inputs), attributes, outputs=values, name=values[0].name)
        self._graph.insert_before(self._place, node)
        return values

    def constant(self, array: NDArray[Any], what: str = "constant") -> ir.Value:
        """Add an initializer."""
        name = self._name(what)
        tensor = ir.tensor(np.array(array, order="C"), name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        self._graph.register_initializer(value)
        return value

    def write(self, build: Callable[[Op], ir.Value]) -> ir.Value:
        """Add the nodes that a function writes with onnxscript's builder, and return what it returns."""
        builder = GraphBuilder(ir.Graph([], [], nodes=[], opset_imports=self._graph.opset_imports))
        result = build(builder.op)
        for name, value in list(builder.graph.initializers.items()):
            del builder.graph.initializers[name]
            value.name = self._name(name)
            self._graph.register_initializer(value)
        nodes = list(builder.graph)
        builder.graph.remove(nodes)
        for node in nodes:
            for value in node.outputs:
                value.name = self._name(node.op_type.lower())
            node.name = node.outputs[0].name
        self._graph.insert_before(self._place, nodes)
        return result

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let every reader of `old`, the graph's caller included, read `new`, which takes over name, type and shape."""
        name = old.name
        new.type, new.shape = old.type, old.shape
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        old.name = f"{name}_replaced"
        new.name = name

    def _name(self, what: str) -> str:
        while True:
            self._count += 1
            name = f"{self._prefix}_{what}_{self._count}"
            if name not in self._taken:
                return name


def repeated(patch: Patch, node: ir.Node, value: ir.Value) -> ir.Value:
    """Write a node down once more, for another first input; its other inputs are constants."""
    further = [None if entry is None else patch.constant(np.asarray(constant(entry))) for entry in node.inputs[1:]]
    return patch.node(node.op_type, [value, *further], **dict(node.attributes))


def with_shapes(model: ir.Model) -> ir.Model:
    """Infer the shapes of all values, as far as onnx can."""
    # It logs a traceback where it cannot; what that means for the graph is said once, by whoever checks it.
    logging.getLogger("onnx_ir").setLevel(logging.CRITICAL)
    common.ShapeInferencePass(check_type=True, strict_mode=True, data_prop=True)(model)
    return model


def swept(model: ir.Model) -> ir.Model:
    """Remove nodes and constants that nothing reads, and further copies of equal constants; put nodes in order."""
    ir.passes.Sequential(
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.DeduplicateInitializersPass(),
        common.TopologicalSortPass(),
    )(model)
    return model


def fix_batch(model: ir.Model, rows: int) -> ir.Model:
    """Return the model for exactly so many rows, in place."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None:
            value.shape = ir.Shape([rows, *value.shape.dims[1:]])
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    return with_shapes(swept(model))


def prior_nodes(model: ir.Model) -> list[ir.Node]:
    """Return the nodes that the output `latent` depends on, in order."""
    found: set[ir.Node] = set()
    waiting = [value for value in model.graph.outputs if value.name == "latent"]
    while waiting:
        node = waiting.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            waiting += [value for value in node.inputs if value is not None]
    return [node for node in model.graph if node in found]


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
