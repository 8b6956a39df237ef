"""The u-error of an artifact's normal draws: |Phi(x(u)) - u|, on the very nodes that draw them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from scipy.special import ndtr

from kaem.artifact import Figure
from kaem.backend import open_session
from kaem.padding import calls, joined
from kaem_export.gaussian import NORMAL_U_ERROR_BOUND
from kaem_export.probes import probe_uniforms

_PROBES = 200_000


def normal_u_error(artifact: Path, noise_dim: int, name: str) -> Figure:
    """Measure the draws that a graph calls `name`, tails included, against scipy's Phi in float64.

    Args:
        artifact: The ONNX file.
        noise_dim: D.
        name: Of a tensor (N, M), M at most D: the draws of the first M uniforms.
    """
    uniform = probe_uniforms(noise_dim, max(50, _PROBES // noise_dim))
    draws = normal_draws(artifact, name, uniform).astype(np.float64)
    expected = np.mod(uniform[:, : draws.shape[1]].astype(np.float64), 1.0)
    return Figure(
        name="u_error",
        value=float(np.abs(ndtr(draws) - expected).max()),
        bound=NORMAL_U_ERROR_BOUND,
        meaning="max |Phi(x(u)) - u|: the graph's normal draws against the normal distribution in float64",
    )


def normal_draws(artifact: Path, name: str, uniform: NDArray[np.float32]) -> NDArray[np.float32]:
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
            "draws",
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
    draws = joined([session.run([name], {"uniform": piece})[0] for piece in pieces], len(uniform))
    return np.asarray(draws, np.float32)
