"""A tensor inside an artifact's graph, computed by the artifact's own nodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from kaem.backend import open_session
from kaem.padding import calls, joined


def inner_tensor(artifact: Path, name: str, uniform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what a graph's tensor `name` holds for some uniforms, running no node that it does not need."""
    model = onnx.load(artifact)
    wanted = {name}
    nodes = []
    for node in reversed(model.graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            nodes.append(node)
    part = helper.make_model(
        helper.make_graph(
            nodes[::-1],
            "inner",
            model.graph.input,
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
            [tensor for tensor in model.graph.initializer if tensor.name in wanted],
        ),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    session = open_session(part.SerializeToString(), "cpu", source=str(artifact))
    fixed = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    pieces = calls(uniform, (fixed,) if fixed else (), most=len(uniform))
    found = joined([session.run([name], {"uniform": piece})[0] for piece in pieces], len(uniform))
    return np.asarray(found, np.float32)
