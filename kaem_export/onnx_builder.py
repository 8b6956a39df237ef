"""How graphs are written here: onnxscript's builder, on the opset and the IR version of all artifacts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any, Protocol

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript import GraphBuilder

from kaem_train.fitting.decoder_graph import IR_VERSION, OPSET


class Op(Protocol):
    """Writes one node a call, named by its operator, and returns its output: `op.Add(x, 1.0)`."""

    @property
    def builder(self) -> GraphBuilder:
        """Builder of the graph, or of one inside it."""

    def __getattr__(self, operator: str) -> Callable[..., ir.Value]:
        """Return what writes a node: inputs in order, numbers and lists as constants, attributes by name."""


def start_graph(source: str, columns: int) -> tuple[GraphBuilder, ir.Value]:
    """Return the builder of an empty graph, and its one input: float32 (N, columns)."""
    graph = ir.Graph(name="kaem", inputs=[], outputs=[], nodes=[], opset_imports={"": OPSET})
    builder = GraphBuilder(graph)
    return builder, builder.input(source, ir.DataType.FLOAT, ["N", columns])


def add_constant(op: Op, value: NDArray[Any] | np.generic, what: str) -> ir.Value:
    """Add an array to the outermost graph.

    Args:
        op: Builder of a graph, or of one inside it.
        value: The array; its element type is kept.
        what: Name to give it; a number is put behind where the graph has that name already.
    """
    taken = op.builder.root.graph.initializers
    name = next(name for number in count() if (name := f"{what}_{number}" if number else what) not in taken)
    return op.builder.initializer(ir.tensor(np.asarray(value, order="C"), name=name), name, qualify=False)


def split(op: Op, value: ir.Value, sizes: Sequence[int], axis: int) -> list[ir.Value]:
    """Cut a value into parts of given sizes along an axis."""
    return _list_outputs(op.Split(value, list(sizes), axis=axis, _outputs=len(sizes)))


def split_evenly(op: Op, value: ir.Value, num_parts: int, axis: int) -> list[ir.Value]:
    """Cut a value into so many equal parts along an axis."""
    return _list_outputs(op.Split(value, axis=axis, num_outputs=num_parts, _outputs=num_parts))


def write_loop(
    op: Op, num_steps: int, write_step: Callable[..., Sequence[ir.Value]], starts: dict[str, ir.Value]
) -> list[ir.Value]:
    """Run a body so many times.

    Args:
        op: Builder of the graph around it.
        num_steps: Number of runs.
        write_step: Writes the body: it gets a builder, the number of the step, int64, and the values that are carried,
            and returns those of the next step.
        starts: Values that are carried, of known type and shape, by the names that they have in the body.

    Returns:
        Values after the last step, of the types and shapes that they have at the start.
    """

    def write(op: Op, step: ir.Value, goes_on: ir.Value, *carried: ir.Value) -> list[ir.Value]:
        return [op.Identity(goes_on), *write_step(op, step, *carried)]

    op.builder.push_module("body")  # else names inside could be names outside
    try:
        body = op.builder.subgraph(
            write,
            [
                ir.val("step", ir.DataType.INT64, ()),
                ir.val("goes_on", ir.DataType.BOOL, ()),
                *(ir.val(name, value.dtype, value.shape) for name, value in starts.items()),
            ],
            [
                ir.val("still_goes_on", ir.DataType.BOOL, ()),
                *(ir.val(f"next_{name}", value.dtype, value.shape) for name, value in starts.items()),
            ],
            name="body",
        )
    finally:
        op.builder.pop_module()
    ends = _list_outputs(op.Loop(num_steps, True, *starts.values(), body=body, _outputs=len(starts)))
    for end, start in zip(ends, starts.values(), strict=True):
        end.type, end.shape = start.type, start.shape
    return ends


def _list_outputs(outputs: ir.Value | Iterable[ir.Value]) -> list[ir.Value]:
    """Return what a node of one or several outputs gives as a list."""
    return [outputs] if isinstance(outputs, ir.Value) else list(outputs)


def to_model(builder: GraphBuilder, **outputs: ir.Value) -> onnx.ModelProto:
    """Return the model of a finished graph, its outputs by name."""
    for name, value in outputs.items():
        builder.add_output(value, name)
    return ir.to_proto(ir.Model(builder.graph, ir_version=IR_VERSION))


def move_graph(source: ir.Graph, builder: GraphBuilder, prefix: str, inputs: list[ir.Value]) -> list[ir.Value]:
    """Write a copy of a graph into the one that is being built, its weights too.

    Args:
        source: Graph whose inputs get values.
        builder: Builder of the graph, or of one inside it.
        prefix: Prefix of the names of all that comes.
        inputs: Values in the place of the source's inputs, in order.

    Returns:
        Values of its outputs.
    """
    copy = source.clone()
    for graph in (copy, *copy.subgraphs()):
        for node in graph:
            node.name = f"{prefix}{node.name}" if node.name else None  # empty names may repeat, others may not
        for value in list(graph.initializers.values()):
            if value.const_value is not None:  # a copy shares it with the source, and a name is given to both
                value.const_value = ir.Tensor(value.const_value.numpy(), dtype=value.dtype, name=value.name)
        values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
        for value in dict.fromkeys([*values, *graph.initializers.values()]):
            value.name = f"{prefix}{value.name}"
    for ours, given in zip(copy.inputs, inputs, strict=True):
        ir.convenience.replace_all_uses_with(ours, given, replace_graph_outputs=True)
    for name, weight in list(copy.initializers.items()):
        del copy.initializers[name]
        builder.graph.register_initializer(weight)
    outputs, nodes = list(copy.outputs), list(copy)
    copy.outputs.clear()
    copy.remove(nodes)
    builder.graph.extend(nodes)
    return outputs
