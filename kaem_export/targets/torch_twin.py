"""The artifact once more as a torch module: it reads the graph's own nodes and weights, and computes them with torch.

For what compiles torch rather than ONNX. It knows the operators that exported graphs use, by the semantics of ONNX's
specification, and refuses others by name.

Artifact -> an AOTInductor package (.pt2): the torch twin, compiled ahead of time for the machine it is made on.

The package belongs to its torch version and to the device that compiled it; load it with
`torch._inductor.aoti_load_package(path)`, which needs torch and no kaem. It returns (image, latent).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from kaem.errors import ArtifactError, BackendError
from kaem.files import replacing
from kaem_train.training.interrupt import hold_signals_back

_DTYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.BOOL: torch.bool,
}

_ELSEWHERE = "let ONNX Runtime run it: --target onnx for an export, --engine onnxruntime for a benchmark"

Values = Sequence[Any]
"""A node's inputs: tensors, sizes, or None where one is left out."""

Sizes = tuple[Any, ...]
"""Sizes, of which the first may be symbolic while torch traces."""

_OF_SIZES: dict[str, Callable[[Any, Any], Any]] = {"Add": lambda a, b: a + b, "Div": lambda a, b: a // b}
"""Arithmetic on sizes alone, none of them below 0."""


class TorchTwin(nn.Module):
    """uniform (N, D) -> image (N, C, H, W) and latent (N, Q), node by node as the graph says.

    Args:
        model: An exported graph without control flow.

    Raises:
        ArtifactError: It has a node that is not known here.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        unknown = sorted({node.op_type for node in model.graph.node} - OPERATORS.keys() - {"Shape"})
        if unknown:
            raise ArtifactError(f"no torch twin: it does not know the operators {', '.join(unknown)}", hint=_ELSEWHERE)
        self._nodes = [
            (
                node.op_type,
                tuple(node.input),
                tuple(node.output),
                {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute},
            )
            for node in model.graph.node
        ]
        self._buffer_of: dict[str, str] = {}
        # Axes and sizes are not data: they must be known when torch traces.
        self._sizes: dict[str, Sizes] = {}
        for number, tensor in enumerate(model.graph.initializer):
            value = torch.from_numpy(numpy_helper.to_array(tensor).copy())
            if value.dtype == torch.int64 and value.dim() <= 1:
                self._sizes[tensor.name] = tuple(value.reshape(-1).tolist())
            self._buffer_of[tensor.name] = f"weight_{number}"
            self.register_buffer(f"weight_{number}", value)

    def forward(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Return image and latent of rows of uniforms, shape (N, D)."""
        values: dict[str, Any] = {name: self.get_buffer(buffer) for name, buffer in self._buffer_of.items()}
        values["uniform"] = uniform
        sizes = dict(self._sizes)
        for operator, inputs, outputs, attributes in self._nodes:
            if operator == "Shape":
                start, end = attributes.get("start", 0), attributes.get("end")
                sizes[outputs[0]] = tuple(values[inputs[0]].shape)[start:end]
                continue
            if operator == "Concat" and all(name in sizes for name in inputs):
                sizes[outputs[0]] = sum((sizes[name] for name in inputs), ())
                continue
            if operator in _OF_SIZES and all(name in sizes for name in inputs):
                sizes[outputs[0]] = tuple(map(_OF_SIZES[operator], *(sizes[name] for name in inputs)))
                continue
            arguments = [None if not name else sizes.get(name, values.get(name)) for name in inputs]
            result = OPERATORS[operator](arguments, attributes)
            values |= zip(outputs, result if isinstance(result, tuple) else (result,), strict=False)
        return values["image"], values["latent"]


def _reshape(values: Values, attributes: dict[str, Any]) -> Any:
    source, sizes = values
    if not attributes.get("allowzero", 0):
        sizes = tuple(source.shape[axis] if size == 0 else size for axis, size in enumerate(sizes))
    return source.reshape(sizes)


def _slice(values: Values, _: dict[str, Any]) -> Any:
    source, starts, ends, *rest = values
    axes = rest[0] if rest and rest[0] is not None else range(len(starts))
    steps = rest[1] if len(rest) > 1 else [1] * len(starts)
    index = [slice(None)] * source.dim()
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[axis] = slice(start, min(end, 1 << 31), step)
    return source[tuple(index)]


def _split(values: Values, attributes: dict[str, Any]) -> tuple[Tensor, ...]:
    axis = attributes.get("axis", 0)
    if len(values) > 1:
        return torch.split(values[0], list(values[1]), axis)
    size = values[0].shape[axis]
    return torch.split(values[0], -(-size // attributes["num_outputs"]), axis)


def _squeeze(values: Values, _: dict[str, Any]) -> Any:
    return torch.squeeze(values[0], tuple(values[1]))


def _unsqueeze(values: Values, _: dict[str, Any]) -> Any:
    source, axes = values
    rank = source.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        source = source.unsqueeze(axis)
    return source


def _gather(values: Values, attributes: dict[str, Any]) -> Any:
    source, index = values
    axis = attributes.get("axis", 0)
    chosen = source.index_select(axis, index.reshape(-1))
    return chosen.reshape(*source.shape[:axis], *index.shape, *source.shape[axis + 1 :])


def _gemm(values: Values, attributes: dict[str, Any]) -> Any:
    a, b, *rest = values
    product = (a.mT if attributes.get("transA") else a) @ (b.mT if attributes.get("transB") else b)
    product = product * attributes["alpha"] if attributes.get("alpha", 1.0) != 1.0 else product
    return product + attributes.get("beta", 1.0) * rest[0] if rest else product


def _conv_transpose(values: Values, attributes: dict[str, Any]) -> Any:
    source, weight, *bias = values
    rank = source.dim() - 2
    pads = attributes.get("pads", [0] * 2 * rank)
    if pads[:rank] != pads[rank:] or attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise ArtifactError("no torch twin: a transposed convolution has uneven padding", hint=_ELSEWHERE)
    if rank != 2:
        raise ArtifactError(f"no torch twin: a transposed convolution has {rank} dimensions", hint=_ELSEWHERE)
    return nn.functional.conv_transpose2d(
        source,
        weight,
        bias[0] if bias else None,
        stride=attributes.get("strides", [1] * rank),
        padding=pads[:rank],
        output_padding=attributes.get("output_padding", [0] * rank),
        groups=attributes.get("group", 1),
        dilation=attributes.get("dilations", [1] * rank),
    )


def _reduce_sum(values: Values, attributes: dict[str, Any]) -> Any:
    return values[0].sum(tuple(values[1]), keepdim=bool(attributes.get("keepdims", 1)))


def _expand(values: Values, _: dict[str, Any]) -> Any:
    source, sizes = values
    return torch.broadcast_tensors(source, source.new_empty(sizes))[0]  # type: ignore[no-untyped-call]


def _clip(values: Values, _: dict[str, Any]) -> Any:
    source, low, high = (*values, None, None)[:3]
    return torch.clamp(source, low, high)


def _plain(function: Callable[..., Tensor]) -> Callable[[Values, dict[str, Any]], Tensor]:
    """An operator without attributes whose inputs are torch's, in torch's order."""
    return lambda values, _: function(*values)


OPERATORS: dict[str, Callable[[Values, dict[str, Any]], Any]] = {
    "Abs": _plain(torch.abs),
    "Add": _plain(torch.add),
    "And": _plain(torch.logical_and),
    "Cast": lambda values, attributes: values[0].to(_DTYPES[attributes["to"]]),
    "Clip": _clip,
    "Concat": lambda values, attributes: torch.cat(list(values), attributes["axis"]),
    "ConvTranspose": _conv_transpose,
    "Div": _plain(torch.div),
    "Equal": _plain(torch.eq),
    "Exp": _plain(torch.exp),
    "Expand": _expand,
    "Floor": _plain(torch.floor),
    "Gather": _gather,
    "Gemm": _gemm,
    "GreaterOrEqual": _plain(torch.ge),
    "Identity": _plain(torch.clone),
    "LeakyRelu": lambda values, attributes: nn.functional.leaky_relu(values[0], attributes.get("alpha", 0.01)),
    "Less": _plain(torch.lt),
    "MatMul": _plain(torch.matmul),
    "Max": _plain(torch.maximum),
    "Min": _plain(torch.minimum),
    "Mul": _plain(torch.mul),
    "Neg": _plain(torch.neg),
    "Or": _plain(torch.logical_or),
    "ReduceSum": _reduce_sum,
    "Relu": _plain(torch.relu),
    "Reshape": _reshape,
    "Round": _plain(torch.round),
    "Sigmoid": _plain(torch.sigmoid),
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": _plain(torch.sub),
    "Tanh": _plain(torch.tanh),
    "Transpose": lambda values, attributes: values[0].permute(attributes["perm"]),
    "Unsqueeze": _unsqueeze,
    "Where": _plain(torch.where),
}


MOST_ROWS = 1 << 16


def build_package(model: onnx.ModelProto, output: Path, *, device: str) -> None:
    """Compile an exported graph with a free batch size for a device.

    Args:
        model: The artifact.
        output: Where the package goes.
        device: "cpu", which needs a C++ compiler, or "cuda".

    Raises:
        ArtifactError: The graph has a node that the torch twin does not know.
        BackendError: torch cannot compile it here.
        RequestError: The output cannot be written.
    """
    noise_dim = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    with replacing(output) as draft:
        twin = TorchTwin(model).eval().to(device)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler warns about its own internals
            logging.getLogger("torch._inductor").setLevel(logging.ERROR)
            rows = torch.export.Dim("N", min=1, max=MOST_ROWS)
            with hold_signals_back():
                program = torch.export.export(
                    twin, (torch.zeros(2, noise_dim, device=device),), dynamic_shapes=({0: rows},)
                )
            try:
                torch._inductor.aoti_compile_and_package(program, package_path=str(draft))
            except Exception as error:  # of the compilers it calls, without a common base
                reason = " ".join(str(error).split())[:300]
                raise BackendError(
                    f"torch {torch.__version__} cannot compile for {device}: {reason}",
                    hint="it needs a C++ compiler (apt install g++), and for cuda a GPU",
                ) from error
