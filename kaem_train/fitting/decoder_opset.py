"""A decoder of any opset in the one that kaem writes, and where the conversion went wrong.

The conversion is onnx's own. It is not trusted: `decoder.py` compares what comes out with the file that was given.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, inliner, version_converter

from kaem.engines.session import open_session
from kaem_train.fitting.decoder_graph import EXPORT_AGAIN, IR_VERSION, OPSET, read_opset, require_own_operators
from kaem_train.library_errors import one_line

_FIRST_CHOICE = 11
"""The opset from which Resize says how it maps coordinates; before, it had one way, which is not the new default."""


def convert_to_one_opset(given: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Return a decoder in `OPSET` and ONNX's own operators alone, its functions written out; `given` is not changed.

    Raises:
        ArtifactError: It uses operators that are not ONNX's own, is not valid, or onnx cannot convert it.
    """
    model = onnx.ModelProto()
    model.CopyFrom(given)
    version = read_opset(model)
    with one_line(f"the decoder {path} cannot be read in opset {OPSET}", EXPORT_AGAIN):
        model = inliner.inline_local_functions(model)
        require_own_operators(model, f"the decoder {path}")
        del model.opset_import[:]
        model.opset_import.append(helper.make_opsetid("", version))
        model.ir_version = IR_VERSION  # before, weights had to be inputs as well
        if version < _FIRST_CHOICE:
            model = version_converter.convert_version(model, _FIRST_CHOICE)
            _keep_coordinates(model)
        if version < OPSET:
            model = version_converter.convert_version(model, OPSET)
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model, full_check=True)
    return model


def first_difference(given: onnx.ModelProto, converted: onnx.ModelProto, feed: dict[str, Any], slack: float) -> str:
    """Name the first node whose result the conversion has changed; "" where none can be told.

    Args:
        given: The model as it came.
        converted: What became of it; values keep their names.
        feed: Inputs by name.
        slack: Difference, relative to the largest value, that is not counted as one.
    """
    kept = {name for node in converted.graph.node for name in node.output if name}
    makers = {name: node for node in given.graph.node for name in node.output if name in kept}
    try:
        before, after = (_inside(model, list(makers), feed) for model in (given, converted))
    except Exception:  # a value that cannot be handed out; the name is a service, not the refusal itself
        return ""
    for (name, node), old, new in zip(makers.items(), before, after, strict=True):
        if not _is_close(old, new, slack):
            return f"{node.op_type} {node.name or name}"
    return ""


def _inside(model: onnx.ModelProto, names: list[str], feed: dict[str, Any]) -> list[Any]:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    session = open_session(copy.SerializeToString(), "cpu", source="the decoder")
    return list(session.run(names, feed))


def _is_close(old: Any, new: Any, slack: float) -> bool:
    if not (isinstance(old, np.ndarray) and isinstance(new, np.ndarray)) or old.dtype.kind not in "fiu":
        return True
    if old.shape != new.shape:
        return False
    largest = float(np.abs(old).max(initial=0.0))
    return bool(np.allclose(old, new, rtol=0.0, atol=slack * max(largest, 1e-30), equal_nan=True))


def _keep_coordinates(model: onnx.ModelProto) -> None:
    """Write down, in place, how every Resize of an opset before 11 maps coordinates, which onnx's converter leaves out.

    Resize and Upsample took input i = output / scale, and the floor of that for the nearest pixel.
    """
    for node in model.graph.node:
        named = {attribute.name for attribute in node.attribute}
        if node.op_type == "Resize" and "coordinate_transformation_mode" not in named:
            node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
            node.attribute.append(helper.make_attribute("nearest_mode", "floor"))
