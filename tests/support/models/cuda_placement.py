"""Where ONNX Runtime's CUDA provider puts the nodes of a graph, from its table of kernels. No GPU is needed to know."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
from onnx import TensorProto, helper

TABLE = json.loads((Path(__file__).parents[2] / "kaem_export" / "cuda_kernels.json").read_text())
"""Made by scripts/cuda_kernels.py from the kernels that onnxruntime-gpu registers."""

_NAMES = {
    TensorProto.FLOAT: "float",
    TensorProto.FLOAT16: "float16",
    TensorProto.DOUBLE: "double",
    TensorProto.INT64: "int64",
    TensorProto.INT32: "int32",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
    TensorProto.BOOL: "bool",
}

_READ_ON_HOST: Mapping[str, frozenset[int]] = {
    "ConstantOfShape": frozenset({0}),
    "Expand": frozenset({1}),
    "If": frozenset({0}),
    "Loop": frozenset({0, 1}),
    "Pad": frozenset({1, 2}),
    "ReduceSum": frozenset({1}),
    "Reshape": frozenset({1}),
    "Resize": frozenset({1, 2, 3}),
    "Slice": frozenset({1, 2, 3, 4}),
    "Split": frozenset({1}),
    "Squeeze": frozenset({1}),
    "Tile": frozenset({1}),
    "Unsqueeze": frozenset({1}),
}
"""Inputs that CUDA's own kernels read in the host's memory."""

_SMALL = 100
"""Elements of a constant that ONNX Runtime does not mind to have on the host."""


def without_kernel(model: onnx.ModelProto) -> list[str]:
    """Name the nodes for which no CUDA kernel is registered, subgraphs included."""
    assert [entry.version for entry in model.opset_import if not entry.domain] == [TABLE["opset"]]
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    return _without_kernel(inferred.graph, {})


def kept_on_host(model: onnx.ModelProto) -> list[str]:
    """Name the operators that ONNX Runtime leaves to the CPU although CUDA has a kernel, subgraphs included.

    Its rule (core/framework/fallback_cpu_capability.cc): a node that reads a shape, and otherwise shapes, small
    constants and the graph's inputs alone, stays where shapes are, on the host, unless its kernel reads them there.
    """
    return _kept_on_host(model.graph, {})


def subgraphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graphs that a graph's nodes hold: branches of an If, bodies of a Loop or a Scan."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def _kept_on_host(graph: onnx.GraphProto, outer: dict[str, int]) -> list[str]:
    sizes = outer | {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    free = {value.name for value in graph.input} | {name for name, size in sizes.items() if size <= _SMALL}
    on_host: set[str] = set()
    found = []
    for node in graph.node:
        if node.op_type in ("Shape", "Size"):
            on_host |= {*node.output}
            continue
        inputs = [(place, name) for place, name in enumerate(node.input) if name and name not in free]
        here = _READ_ON_HOST.get(node.op_type, frozenset())
        if inputs and all(name in on_host and place not in here for place, name in inputs):
            found.append(node.op_type)
            on_host |= {*node.output}
    return found + [name for below in subgraphs(graph) for name in _kept_on_host(below, sizes)]


def _without_kernel(graph: onnx.GraphProto, outer: dict[str, int]) -> list[str]:
    types = dict(outer)
    for value in (*graph.input, *graph.value_info, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    found = []
    for node in graph.node:
        found += [] if (reason := _reason(node, types)) is None else [f"{node.op_type}({reason})"]
    return found + [name for below in subgraphs(graph) for name in _without_kernel(below, types)]


def _reason(node: onnx.NodeProto, types: dict[str, int]) -> str | None:
    """Return why CUDA does not run a node, or None."""
    if node.domain not in ("", "ai.onnx"):
        return f"domain {node.domain}"
    if node.op_type == "Constant":  # folded when the session is made
        return None
    schema = onnx.defs.get_schema(node.op_type, TABLE["opset"])
    bound: dict[str, str] = {}
    for formals, names in ((schema.inputs, node.input), (schema.outputs, node.output)):
        for position, name in enumerate(names):
            formal = formals[min(position, len(formals) - 1)]  # the last one may stand for many
            if name:
                bound[formal.type_str] = _NAMES.get(types[name], "another type")
    kernels = TABLE["kernels"].get(node.op_type, [])
    if not any(all(bound.get(name) in (None, *known) for name, known in kernel.items()) for kernel in kernels):
        return ", ".join(f"{name} {kind}" for name, kind in sorted(bound.items()))
    if node.op_type == "ConvTranspose":
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        pads = attributes.get("pads", [])
        if attributes.get("auto_pad", b"NOTSET") != b"NOTSET" or pads[: len(pads) // 2] != pads[len(pads) // 2 :]:
            return "uneven padding"
    return None
