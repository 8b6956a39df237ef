"""The graph of a decoder: ONNX of any exporter, checked as written and brought to one form without running it.

The form is plain ONNX of one opset, float32 `latent` (N, Q) -> float32 `image` (N, C, H, W) in [0, 1], its weights
inside.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, compose, helper, inliner, numpy_helper, version_converter
from onnx.external_data_helper import uses_external_data

from kaem.errors import ArtifactError
from kaem_train.inputs import require_decoder

OPSET = 21
"""Newest opset for which ONNX Runtime's CUDA provider has a kernel for every node used here."""

IR_VERSION = 10
"""The IR version that belongs to opset 21; newer ones would lock out older runtimes for nothing."""

_MOST_BYTES = 1 << 30
"""A protobuf file ends at 2 GiB; checkpoint and artifact hold more than the decoder."""

EXPORT_AGAIN = (
    f"export it again with torch.onnx.export(..., dynamo=True, external_data=False, opset_version={OPSET}, "
    "dynamic_shapes=({0: torch.export.Dim('N')},))"
)


def read_graph(path: Path) -> onnx.ModelProto:
    """Read a decoder as it is, in `OPSET` and with ONNX's own operators alone.

    Raises:
        ArtifactError: The file is missing, damaged or too large, keeps weights in another file, or uses a newer opset
            or operators that are not ONNX's own.
    """
    model = _parse(path)
    _require_self_contained(model, f"the decoder {path}")
    return _of_one_opset(model, path)


def finished_decoder(content: bytes, num_latents: int) -> onnx.ModelProto:
    """Parse a decoder that is in the form above; what a checkpoint holds is not trusted to be.

    Raises:
        ArtifactError: It is not in that form.
    """
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
        onnx.checker.check_model(model, full_check=True)
    except Exception:  # protobuf's and onnx's errors share no base
        model.Clear()
    what = "the checkpoint's decoder"
    _require_self_contained(model, what)
    require_own_operators(model, what)
    names = [value.name for value in (*model.graph.input, *model.graph.output)]
    opsets = [(entry.domain, entry.version) for entry in model.opset_import]
    if names != ["latent", "image"] or opsets != [("", OPSET)] or model.functions:
        raise ArtifactError(f"{what} is damaged", hint="make it again with kaem fit-prior")
    if _shape(model.graph.input[0].type.tensor_type)[1:] != (num_latents,):
        raise ArtifactError(
            f"{what} does not take the {num_latents} latents of its prior", hint="make it again with kaem fit-prior"
        )
    return model


def require_own_operators(model: onnx.ModelProto, what: str) -> None:
    """Raise `ArtifactError` unless every node is one of ONNX's own operators; `what` names the model."""
    foreign = sorted({node.domain for node in _nodes(model.graph)} - {"", "ai.onnx"})
    if foreign:
        raise ArtifactError(
            f"{what} uses operators of {', '.join(foreign)}, which not every runtime has",
            hint="export it with ONNX's own operators alone",
        )


def has_unit_sides(model: onnx.ModelProto, num_latents: int, path: Path) -> bool:
    """Check inputs and outputs as declared; return whether the input is (N, Q, 1, 1) rather than (N, Q).

    Raises:
        ArtifactError: There is not exactly one of each, one is not float32, or the input has another shape than the
            latents or a fixed batch size.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        names = ", ".join(value.name for value in inputs), ", ".join(value.name for value in model.graph.output)
        raise ArtifactError(
            f"the decoder {path} has inputs ({names[0]}) and outputs ({names[1]}); it needs one of each",
            hint="export the map from latents to images alone, in evaluation mode",
        )
    declared = inputs[0].type.tensor_type
    if declared.elem_type != TensorProto.FLOAT or model.graph.output[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        raise ArtifactError(
            f"the input {inputs[0].name} or the output of the decoder {path} is not float32",
            hint="export the decoder in float32 (model.float())",
        )
    shape = _shape(declared)
    fits = len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1))
    if not fits or shape[1] not in (num_latents, None):
        raise ArtifactError(
            f"the decoder {path} takes {_written(shape)}, the latents need (N, {num_latents}) or "
            f"(N, {num_latents}, 1, 1)",
            hint="give the latents that this decoder decodes, one row per image",
        )
    if shape[0] is not None:
        raise ArtifactError(f"the decoder {path} has the fixed batch size {shape[0]}", hint=EXPORT_AGAIN)
    return len(shape) == 4


def _shape(tensor: Any) -> tuple[int | None, ...]:
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)


def _written(shape: tuple[int | None, ...]) -> str:
    return f"({', '.join('N' if size is None else str(size) for size in shape)})"


def normal_form(
    model: onnx.ModelProto,
    num_latents: int,
    image_shape: tuple[int, int, int],
    *,
    has_sides: bool,
    pixel_range: tuple[float, float],
) -> bytes:
    """Return the file in the form above, without descriptions: the decoder's nodes between those that make it so.

    Args:
        model: In `OPSET`.
        num_latents: Q.
        image_shape: (C, H, W).
        has_sides: Whether its input is (N, Q, 1, 1).
        pixel_range: What becomes 0 and 1; the result is clipped to them.
    """
    inner = compose.add_prefix(model, "decoder_").graph
    weights = {tensor.name for tensor in inner.initializer}
    source = next(value.name for value in inner.input if value.name not in weights)
    constants: dict[str, Any] = {"zero": np.float32(0), "one": np.float32(1)}
    nodes = []
    if has_sides:
        constants["sides"] = np.array([-1, num_latents, 1, 1], np.int64)
        nodes.append(helper.make_node("Reshape", ["latent", "sides"], [source]))
    else:
        nodes.append(helper.make_node("Identity", ["latent"], [source]))
    nodes += inner.node
    last = inner.output[0].name
    low, high = pixel_range
    if (low, high) != (0.0, 1.0):
        constants |= {"black": np.float32(low), "contrast": np.float32(1.0 / (high - low))}
        nodes.append(helper.make_node("Sub", [last, "black"], ["lifted"]))
        nodes.append(helper.make_node("Mul", ["lifted", "contrast"], ["scaled"]))
        last = "scaled"
    nodes.append(helper.make_node("Clip", [last, "zero", "one"], ["image"]))
    for node in _nodes(inner):
        node.doc_string = ""
        del node.metadata_props[:]
    graph = helper.make_graph(
        nodes,
        "decoder",
        [helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["N", num_latents])],
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", *image_shape])],
        [*inner.initializer, *(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())],
        sparse_initializer=inner.sparse_initializer,
    )
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(whole, full_check=True)
    return whole.SerializeToString(deterministic=True)


def _parse(path: Path) -> onnx.ModelProto:
    require_decoder(path)
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise ArtifactError(
            f"the decoder {path} has {size >> 20} MiB, more than {_MOST_BYTES >> 20}", hint="give a smaller decoder"
        )
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        model.Clear()
    if not model.graph.node:
        raise ArtifactError(f"{path} is not an ONNX model, or it is damaged", hint=EXPORT_AGAIN)
    return model


def _require_self_contained(model: onnx.ModelProto, what: str) -> None:
    for graph in (model.graph, *model.functions):
        for tensor in _tensors(graph):
            if uses_external_data(tensor):
                raise ArtifactError(f"{what} keeps its weights in another file ({tensor.name})", hint=EXPORT_AGAIN)


def _tensors(graph: Any) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a graph or function, those of its subgraphs included."""
    if isinstance(graph, onnx.GraphProto):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for below in (attribute.g, *attribute.graphs):
                yield from _tensors(below)


def _of_one_opset(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Return the model in `OPSET` and ONNX's own operators alone."""
    versions = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    version = versions.get("ai.onnx", 0)
    if version > OPSET:
        raise ArtifactError(f"the decoder {path} has opset {version}, this kaem reads up to {OPSET}", hint=EXPORT_AGAIN)
    try:
        model = inliner.inline_local_functions(model)
        require_own_operators(model, f"the decoder {path}")
        del model.opset_import[:]
        model.opset_import.append(helper.make_opsetid("", version))
        if version < OPSET:
            model = version_converter.convert_version(model, OPSET)
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model, full_check=True)
    except ArtifactError:
        raise
    except Exception as error:  # onnx raises RuntimeError, its own classes and protobuf's, which share no base
        reason = " ".join(str(error).split())[:300]
        raise ArtifactError(
            f"the decoder {path} cannot be read in opset {OPSET}: {reason}", hint=EXPORT_AGAIN
        ) from None
    return model


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for below in (attribute.g, *attribute.graphs):
                yield from _nodes(below)
