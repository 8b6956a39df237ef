"""An exported graph as a torch module: the same nodes and the same weights, to compare runtimes on identical work.

Only the operators that our exporter writes are known. A graph with others, such as a branch or a loop, is refused
rather than approximated.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from kaem.errors import ArtifactError

Attributes = dict[str, Any]
Values = list[Any]

_TYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
}
_ZERO_PADS = (0, 0, 0, 0)


class TorchTwin(nn.Module):
    """Evaluates `image` from `uniform` as the graph of an exported model does.

    Args:
        path: The exported model.

    Attributes:
        noise_dim: D, the uniforms of a row.

    Raises:
        ArtifactError: The file is not an exported model, or its graph has an operator that is not known here.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            graph = onnx.load(str(path)).graph
            self.noise_dim = graph.input[0].type.tensor_type.shape.dim[1].dim_value
        except Exception as error:  # protobuf's own classes
            raise ArtifactError(f"{path} is not a usable ONNX model: {' '.join(str(error).split())[:200]}") from None
        unknown = sorted({node.op_type for node in graph.node} - set(_OPERATORS) - {"Constant"})
        if unknown:
            raise ArtifactError(
                f"the graph of {path} has {', '.join(unknown)}, which its torch twin does not run",
                hint="leave the torch engines out, or give the checkpoint instead",
            )
        # Shapes and axes are Python values: torch then sees them as constants.
        self._constants: dict[str, Any] = {}
        self._weights: dict[str, str] = {}
        for tensor in graph.initializer:
            self._keep(tensor.name, numpy_helper.to_array(tensor))
        self._steps: list[tuple[Callable[[Values, Attributes], Any], list[str], list[str], Attributes]] = []
        for node in _needed(graph, "image"):
            attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
            if node.op_type == "Constant":
                self._keep(node.output[0], numpy_helper.to_array(attributes["value"]))
            else:
                self._steps.append((_OPERATORS[node.op_type], list(node.input), list(node.output), attributes))

    def _keep(self, name: str, array: np.ndarray) -> None:
        if array.dtype == np.int64 and array.ndim <= 1:
            self._constants[name] = array.tolist()
        else:
            self._weights[name] = f"weight_{len(self._weights)}"  # names of the graph may hold dots
            self.register_buffer(self._weights[name], torch.from_numpy(array.copy()))

    def forward(self, uniform: Tensor) -> Tensor:
        """Return images, shape (N, C, H, W), of uniforms, shape (N, D)."""
        values: dict[str, Any] = {"uniform": uniform, "": None, **self._constants}
        values |= {name: getattr(self, weight) for name, weight in self._weights.items()}
        for run, inputs, outputs, attributes in self._steps:
            found = run([values[name] for name in inputs], attributes)
            if len(outputs) == 1:
                values[outputs[0]] = found
            else:
                values.update(zip(outputs, found, strict=True))
        image: Tensor = values["image"]
        return image


def _needed(graph: onnx.GraphProto, target: str) -> list[onnx.NodeProto]:
    """Return the nodes that `target` depends on, in the order of the graph."""
    wanted, nodes = {target}, []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            wanted |= set(node.input)
            nodes.append(node)
    return nodes[::-1]


def _conv_transpose(values: Values, attributes: Attributes) -> Tensor:
    images, weight, *bias = values
    pads = tuple(attributes.get("pads", _ZERO_PADS))
    if pads[:2] != pads[2:]:
        raise ArtifactError(f"a transposed convolution has the pads {pads}, which torch cannot express")
    return F.conv_transpose2d(
        images,
        weight,
        bias[0] if bias else None,
        stride=attributes.get("strides", (1, 1)),
        padding=pads[:2],
        output_padding=attributes.get("output_padding", (0, 0)),
        groups=attributes.get("group", 1),
        dilation=attributes.get("dilations", (1, 1)),
    )


def _conv(values: Values, attributes: Attributes) -> Tensor:
    images, weight, *bias = values
    top, left, bottom, right = attributes.get("pads", _ZERO_PADS)
    return F.conv2d(
        F.pad(images, (left, right, top, bottom)),
        weight,
        bias[0] if bias else None,
        stride=attributes.get("strides", (1, 1)),
        groups=attributes.get("group", 1),
        dilation=attributes.get("dilations", (1, 1)),
    )


def _gemm(values: Values, attributes: Attributes) -> Tensor:
    left, right, *offset = values
    left = left.T if attributes.get("transA") else left
    right = right.T if attributes.get("transB") else right
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    if not offset:
        product: Tensor = alpha * (left @ right)
        return product
    return torch.addmm(offset[0], left, right, beta=beta, alpha=alpha)


def _split(values: Values, attributes: Attributes) -> tuple[Tensor, ...]:
    axis = attributes.get("axis", 0)
    if len(values) > 1 and values[1] is not None:
        return torch.split(values[0], values[1], axis)
    return torch.tensor_split(values[0], attributes["num_outputs"], axis)


def _gather(values: Values, attributes: Attributes) -> Tensor:
    table, index = values
    axis = attributes.get("axis", 0)
    if isinstance(index, list):
        index = torch.tensor(index, device=table.device)
    flat = torch.index_select(table, axis, index.reshape(-1))
    return flat.reshape(*table.shape[:axis], *index.shape, *table.shape[axis + 1 :])


def _squeeze(values: Values, _: Attributes) -> Tensor:
    source, axes = values
    return torch.squeeze(source, tuple(axes))


def _unsqueeze(values: Values, _: Attributes) -> Tensor:
    source, axes = values
    for axis in sorted(axes):
        source = source.unsqueeze(axis)
    result: Tensor = source
    return result


def _reduce_sum(values: Values, attributes: Attributes) -> Tensor:
    return torch.sum(values[0], tuple(values[1]), keepdim=bool(attributes.get("keepdims", 1)))


def _reshape(values: Values, _: Attributes) -> Tensor:
    source, shape = values
    sizes = [source.shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    result: Tensor = source.reshape(sizes)
    return result


def _batch_norm(values: Values, attributes: Attributes) -> Tensor:
    source, scale, bias, mean, variance = values
    return F.batch_norm(source, mean, variance, scale, bias, eps=attributes.get("epsilon", 1e-5))


def _clip(values: Values, _: Attributes) -> Tensor:
    return torch.clamp(values[0], *values[1:])


def _cast(values: Values, attributes: Attributes) -> Tensor:
    result: Tensor = values[0].to(_TYPES[attributes["to"]])
    return result


def _plain(function: Callable[..., Tensor]) -> Callable[[Values, Attributes], Tensor]:
    return lambda values, _: function(*values)


_OPERATORS: dict[str, Callable[[Values, Attributes], Any]] = {
    "Abs": _plain(torch.abs),
    "Add": _plain(torch.add),
    "And": _plain(torch.logical_and),
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda values, attributes: torch.cat(values, attributes["axis"]),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": _plain(torch.div),
    "Exp": _plain(torch.exp),
    "Flatten": lambda values, attributes: torch.flatten(values[0], attributes.get("axis", 1)),
    "Floor": _plain(torch.floor),
    "Gather": _gather,
    "Gelu": lambda values, attributes: F.gelu(values[0], approximate=attributes.get("approximate", b"none").decode()),
    "Gemm": _gemm,
    "GreaterOrEqual": _plain(torch.ge),
    "Identity": lambda values, _: values[0],
    "LeakyRelu": lambda values, attributes: F.leaky_relu(values[0], attributes.get("alpha", 0.01)),
    "Less": _plain(torch.lt),
    "MatMul": _plain(torch.matmul),
    "Max": _plain(torch.maximum),
    "Min": _plain(torch.minimum),
    "Mul": _plain(torch.mul),
    "Neg": _plain(torch.neg),
    "Pow": _plain(torch.pow),
    "ReduceSum": _reduce_sum,
    "Relu": _plain(F.relu),
    "Reshape": _reshape,
    "Round": _plain(torch.round),
    "Sigmoid": _plain(torch.sigmoid),
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": _plain(torch.sub),
    "Tanh": _plain(torch.tanh),
    "Transpose": lambda values, attributes: torch.permute(values[0], attributes["perm"]),
    "Unsqueeze": _unsqueeze,
    "Where": _plain(torch.where),
}
