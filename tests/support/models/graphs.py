"""Small graphs to rewrite, and what ONNX Runtime makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper, parser

from kaem_export.rewrite.editing import with_shapes
from kaem_train.fitting.decoder_graph import IR_VERSION, OPSET


def graph_of(nodes: str, num_inputs: int, image_shape: tuple[int, ...], **constants: Any) -> ir.Model:
    """A model from `latent` (N, num_inputs) to `image`, from ONNX's own text form and arrays by name."""
    sides = ",".join(map(str, image_shape))
    text = f"""<ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}]>
        small (float[N,{num_inputs}] latent) => (float[N,{sides}] image) {{ {nodes} }}"""
    model = parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    return with_shapes(ir.from_proto(model))


def from_nodes(*nodes: onnx.NodeProto, latent: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """A model from `uniform` (N, 3) to `latent` (N, 3) of an element type, unchecked: its nodes may be impossible."""
    graph = helper.make_graph(
        nodes,
        "from_nodes",
        [helper.make_tensor_value_info("uniform", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("latent", latent, ["N", 3])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


BITWISE = from_nodes(
    helper.make_node("Cast", ["uniform"], ["word"], to=TensorProto.INT32),
    helper.make_node("BitwiseAnd", ["word", "word"], ["latent"], name="mask_of_words"),
    latent=TensorProto.INT32,
)
"""A graph that only processors run."""


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    """Weights that no wrong rewrite can miss: away from 0 and 1, and all different."""
    draws = np.random.default_rng([seed, *shape])
    return (draws.choice([-1, 1], shape) * (0.1 + 0.4 * draws.random(shape))).astype(np.float32)


def run(model: ir.Model | onnx.ModelProto, x: np.ndarray, name: str = "image", source: str = "latent") -> np.ndarray:
    """One output in real ONNX Runtime, after a full check of the model."""
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run([name], {source: x})[0]


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def normal(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
