"""Which rewrites a graph goes through, in which order.

Exact ones come first and always, in an order in which each finds what the ones before it leave: weights as single
constants, then scales inside them, then whole affine chains, then what ONNX Runtime fuses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from kaem_export.passes.affine import fold_affine_chains
from kaem_export.passes.constants import fold_constants
from kaem_export.passes.editing import with_shapes
from kaem_export.passes.first_layer import first_layer_to_gemm
from kaem_export.passes.kan import fold_kan_layers
from kaem_export.passes.scales import fold_scales

Rewrite = Callable[[ir.Model], ir.Model]

EXACT: tuple[Rewrite, ...] = (fold_constants, fold_scales, fold_affine_chains, first_layer_to_gemm, fold_kan_layers)
"""Equal up to the rounding of float32, and never slower where they were measured."""


@dataclass(frozen=True, slots=True)
class Step:
    """A graph after one rewrite.

    Attributes:
        name: Of the rewrite.
        model: What it left.
    """

    name: str
    model: onnx.ModelProto


def optimise(model: onnx.ModelProto) -> list[Step]:
    """Apply all exact rewrites to a graph.

    Args:
        model: As `build_graph` makes it; it is not changed.

    Returns:
        The graph as given, then after every rewrite that changed it; the last one is the result.
    """
    steps = [Step("as exported", model)]
    graph = with_shapes(ir.from_proto(model))
    for rewrite in EXACT:
        after = _finished(rewrite(graph))
        if after.graph.node != steps[-1].model.graph.node:
            steps.append(Step(rewrite.__name__, after))
    return steps


def _finished(graph: ir.Model) -> onnx.ModelProto:
    model = ir.to_proto(graph)
    onnx.checker.check_model(model, full_check=True)
    return model
