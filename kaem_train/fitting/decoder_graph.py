"""The graph of a decoder: ONNX of any exporter, checked as written and brought to one form without running it.

The form is plain ONNX of one opset, float32 `latent` (N, Q) -> float32 `image` (N, C, H, W) in [0, 1], its weights
inside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, compose, helper, numpy_helper
from onnx.external_data_helper import uses_external_data

from kaem.errors import ArtifactError
from kaem_train.config.preflight import require_decoder

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


_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


def read_graph(path: Path) -> onnx.ModelProto:
    """Read a decoder as it is, with sizes of its input that are no sizes (-1, 0) taken for free ones.

    Raises:
        ArtifactError: The file is missing, damaged or too large, keeps weights in another file, draws random numbers,
            or uses a newer opset than `OPSET`.
    """
    model = _parse(path)
    what = f"the decoder {path}"
    _require_self_contained(model, what)
    version = read_opset(model)
    if version > OPSET:
        raise ArtifactError(f"{what} has opset {version}, this kaem reads up to {OPSET}", hint=EXPORT_AGAIN)
    bodies: list[onnx.GraphProto | onnx.FunctionProto] = [model.graph, *model.functions]
    known = {tensor.name: tensor for body in bodies for tensor in _tensors(body)}
    nodes = [node for body in bodies for node in _nodes(body)]
    drawn = sorted({node.op_type for node in nodes if node.op_type in _RANDOM or _drops(node, known)})
    if drawn:
        raise ArtifactError(
            f"{what} draws random numbers inside ({', '.join(drawn)}), so one latent has many images",
            hint="export the mean image: without noise, in evaluation mode (model.eval())",
        )
    for value in (*model.graph.input, *model.graph.output):
        for side in value.type.tensor_type.shape.dim:
            if side.HasField("dim_value") and side.dim_value < 1:
                side.ClearField("dim_value")
    return model


def _drops(node: onnx.NodeProto, known: dict[str, onnx.TensorProto]) -> bool:
    """Whether a node is dropout left on: by its input `training_mode`, which ONNX Runtime alone may ignore."""
    if node.op_type != "Dropout" or len(node.input) < 3 or not node.input[2]:
        return False
    tensor = known.get(node.input[2])
    return tensor is None or bool(numpy_helper.to_array(tensor).any())


def read_opset(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators that a model uses; 0 where it names none."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def parse_finished_decoder(content: bytes, num_latents: int) -> onnx.ModelProto:
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


def require_one_each(model: onnx.ModelProto, path: Path) -> onnx.ValueInfoProto:
    """Check inputs and outputs as declared; return the input.

    Raises:
        ArtifactError: There is not exactly one of each, or one is not float32.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        names = ", ".join(value.name for value in inputs), ", ".join(value.name for value in model.graph.output)
        raise ArtifactError(
            f"the decoder {path} has inputs ({names[0]}) and outputs ({names[1]}); it needs one of each",
            hint="export the map from latents to images alone, in evaluation mode",
        )
    for what, value in (("input", inputs[0]), ("output", model.graph.output[0])):
        kind = value.type.tensor_type.elem_type
        if kind != TensorProto.FLOAT:
            is_known = kind in TensorProto.DataType.values() and kind != TensorProto.UNDEFINED
            name = TensorProto.DataType.Name(kind).lower() if is_known else "of no known type"
            is_whole = what == "output" and "int8" in name
            raise ArtifactError(
                f"the {what} {value.name} of the decoder {path} is {name}, not float32",
                hint="end the decoder before its images are rounded to whole numbers"
                if is_whole
                else "export the decoder in float32 (model.float())",
            )
    return inputs[0]


def read_declared_shape(value: onnx.ValueInfoProto) -> tuple[int | None, ...] | None:
    """Return the shape of an input or output as declared, None for a free size; None where it has no shape at all."""
    tensor = value.type.tensor_type
    return _shape(tensor) if tensor.HasField("shape") else None


def _shape(tensor: Any) -> tuple[int | None, ...]:
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)


def write_normal_form(
    model: onnx.ModelProto,
    sides: tuple[int, ...],
    image_shape: tuple[int, int, int],
    *,
    is_channels_last: bool = False,
    pixel_range: tuple[float, float],
) -> bytes:
    """Return the file in the form above, without descriptions: the decoder's nodes between those that make it so.

    Args:
        model: Decoder in `OPSET`.
        sides: Shape of one latent as the decoder takes it, of Q numbers in all.
        image_shape: (C, H, W).
        is_channels_last: Whether its images are (N, H, W, C).
        pixel_range: What becomes 0 and 1; the result is clipped to them.
    """
    inner = prefix_names(model, "decoder_").graph
    weights = {tensor.name for tensor in inner.initializer}
    source = next(value.name for value in inner.input if value.name not in weights)
    constants: dict[str, Any] = {"zero": np.float32(0), "one": np.float32(1)}
    nodes = []
    if len(sides) > 1:
        constants["sides"] = np.array([-1, *sides], np.int64)
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
    if is_channels_last:
        nodes.append(helper.make_node("Transpose", [last], ["turned"], perm=[0, 3, 1, 2]))
        last = "turned"
    nodes.append(helper.make_node("Clip", [last, "zero", "one"], ["image"]))
    for node in _nodes(inner):
        node.doc_string = ""
        del node.metadata_props[:]
    graph = helper.make_graph(
        nodes,
        "decoder",
        [helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["N", math.prod(sides)])],
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", *image_shape])],
        [*inner.initializer, *(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())],
        sparse_initializer=inner.sparse_initializer,
    )
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(whole, full_check=True)
    return whole.SerializeToString(deterministic=True)


def prefix_names(model: onnx.ModelProto, prefix: str) -> onnx.ModelProto:
    """Return a model whose names begin with a prefix, those that branches and loops take from outside included.

    onnx's own function looks at branches before it knows the names of weights, and leaves those in them as they are.
    """
    whole = compose.add_prefix(model, prefix)
    if not model.functions:
        held = [*model.graph.initializer, *(sparse.values for sparse in model.graph.sparse_initializer)]
        names = {tensor.name: prefix + tensor.name for tensor in held}
        whole.graph.CopyFrom(compose.add_prefix_graph(model.graph, prefix, name_map=names))
    return whole


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


def _nodes(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for below in (attribute.g, *attribute.graphs):
                yield from _nodes(below)
