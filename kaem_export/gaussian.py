"""Standard normal draws in a graph: x = Phi^-1(u), one table lookup per uniform.

A lookup, not Box-Muller: every draw has one uniform of its own, in order, and no row depends on another.
"""

from __future__ import annotations

import onnx

from kaem_export.head import Constants, quantile_nodes
from kaem_export.quantile import U_ERROR_BOUND
from kaem_export.warp import normal_table

NORMAL_U_ERROR_BOUND = U_ERROR_BOUND
"""What |Phi(x) - u| stays under."""


def normal_nodes(source: str, target: str, prefix: str) -> tuple[list[onnx.NodeProto], Constants]:
    """Return the nodes and constants that turn uniforms into standard normals of the same shape (N, M).

    Args:
        source: Name of the uniforms, float32, signed or plain.
        target: Name of the normals, float32.
        prefix: Of every other name, so that one graph can hold several lookups.
    """
    nodes, constants = quantile_nodes(normal_table(), source, target)
    own = {name: name if name in (source, target) else prefix + name for node in nodes for name in node.output}
    own |= {name: prefix + name for name in constants}
    for node in nodes:
        node.input[:] = [own.get(name, name) for name in node.input]
        node.output[:] = [own[name] for name in node.output]
    return nodes, {own[name]: value for name, value in constants.items()}
