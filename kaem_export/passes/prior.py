"""Which nodes are the prior: those that `latent` depends on. Narrow types stop there, for tables need float32."""

from __future__ import annotations

import onnx_ir as ir


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
