"""Fix the number of rows.

Matches: any graph whose inputs and outputs begin with the free dimension N. Leaves alone: nothing.
After it: N is a number everywhere; a runtime that is given another number of rows refuses it.
"""

from __future__ import annotations

import onnx_ir as ir

from kaem_export.passes.editing import swept, with_shapes


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
