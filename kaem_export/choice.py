"""Which expert or component a signed uniform picks: how many cumulative weights it has passed."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper


def choice_nodes(source: str, target: str) -> list[onnx.NodeProto]:
    """Count the `thresholds` that a signed uniform has passed, along `choice_axis`, to an int32."""
    return [
        helper.make_node("GreaterOrEqual", [source, "thresholds"], ["choice_is_passed"]),
        helper.make_node("Cast", ["choice_is_passed"], ["choice_passed"], to=TensorProto.INT32),
        helper.make_node("ReduceSum", ["choice_passed", "choice_axis"], [target], keepdims=0),
    ]
