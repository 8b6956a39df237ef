"""What every kind of exported graph must keep, so that GPUs run it whole. No GPU is needed to know."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exported_graphs import KINDS, with_batch, with_bytes
from onnx import TensorProto, helper

from kaem.errors import ArtifactError, ConfigError
from kaem.noise import uniforms
from kaem_export.tensorrt import DEFAULT_PROFILES, Profile, build_plan
from kaem_export.torch_twin import TorchTwin

TABLE = json.loads((Path(__file__).parent / "cuda_kernels.json").read_text())
"""Made by scripts/cuda_kernels.py from the kernels that onnxruntime-gpu registers."""

_NAMES = {
    TensorProto.FLOAT: "float",
    TensorProto.FLOAT16: "float16",
    TensorProto.DOUBLE: "double",
    TensorProto.INT64: "int64",
    TensorProto.INT32: "int32",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
    TensorProto.BOOL: "bool",
}


@pytest.fixture(scope="module")
def trt():
    return pytest.importorskip("tensorrt_rtx", reason="pip install 'kaem[trt-check]'")


def _refused(*nodes: onnx.NodeProto, latent: int = TensorProto.FLOAT) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "refused",
        [helper.make_tensor_value_info("uniform", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("latent", latent, ["N", 3])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


BITWISE = _refused(
    helper.make_node("Cast", ["uniform"], ["word"], to=TensorProto.INT32),
    helper.make_node("BitwiseAnd", ["word", "word"], ["latent"], name="mask_of_words"),
    latent=TensorProto.INT32,
)


@pytest.mark.parametrize("kind", KINDS)
def test_tensorrt_builds_it_with_float_images_and_a_free_batch(trt, kind):
    built = build_plan(trt, KINDS[kind]().SerializeToString(), profiles=[Profile(1, 8, 64)])
    assert built.profiles == ((1, 8, 64),)
    assert len(built.plan) > 10_000


@pytest.mark.parametrize("kind", KINDS)
def test_tensorrt_builds_it_with_8_bit_images_and_a_fixed_batch(trt, kind):
    built = build_plan(trt, with_batch(with_bytes(KINDS[kind]()), 7).SerializeToString())
    assert built.profiles == ((7, 7, 7),)
    assert len(built.plan) > 10_000


def test_tensorrt_builds_the_default_profiles(trt):
    assert build_plan(trt, KINDS["mixture"]().SerializeToString()).profiles == DEFAULT_PROFILES


def test_a_graph_with_bitwise_operators_is_refused_and_the_node_is_named(trt):
    with pytest.raises(ArtifactError, match=r"cannot run wild.onnx: node mask_of_words \(BitwiseAnd\)"):
        build_plan(trt, BITWISE.SerializeToString(), source="wild.onnx")


def test_what_is_no_model_is_refused(trt):
    with pytest.raises(ArtifactError, match="the model"):
        build_plan(trt, b"neither ONNX nor anything else")


def test_a_fixed_batch_takes_no_profile(trt):
    fixed = with_batch(KINDS["mixture"](), 3).SerializeToString()
    with pytest.raises(ConfigError, match="fixed batch size 3"):
        build_plan(trt, fixed, profiles=[Profile(1, 2, 3)])


@pytest.mark.parametrize("kind", KINDS)
def test_the_torch_twin_computes_what_onnx_runtime_does(kind):
    model = KINDS[kind]()
    session = session_of(model)
    noise = uniforms(3, 0, 300, session.get_inputs()[0].shape[1])
    expected = session.run(["image", "latent"], {"uniform": noise})
    twin = TorchTwin(model)
    is_half = "float16" in kind  # which ONNX Runtime computes in float32 between layers on a CPU, and torch does not
    for array, tensor in zip(expected, twin(torch.from_numpy(noise)), strict=True):
        assert np.abs(tensor.numpy() - array).max() < (1e-3 if is_half else 2e-6)
    rounded = session_of(with_bytes(model)).run(["image"], {"uniform": noise})[0].astype(int)
    steps = np.abs(TorchTwin(with_bytes(model))(torch.from_numpy(noise))[0].numpy().astype(int) - rounded)
    assert steps.max() <= 1
    assert (steps > 0).mean() < (1e-2 if is_half else 1e-3)


def test_the_torch_twin_names_operators_that_it_does_not_know():
    with pytest.raises(ArtifactError, match="BitwiseAnd"):
        TorchTwin(BITWISE)


@pytest.mark.parametrize("kind", KINDS)
def test_every_node_has_a_cuda_kernel_for_its_types(kind):
    assert without_kernel(with_bytes(KINDS[kind]())) == []


@pytest.mark.parametrize(
    ("model", "node"),
    [
        (BITWISE, "BitwiseAnd"),
        (_refused(helper.make_node("Acos", ["uniform"], ["latent"])), "Acos"),
        (
            _refused(
                helper.make_node("Cast", ["uniform"], ["word"], to=TensorProto.INT32),
                helper.make_node("Clip", ["word"], ["latent"]),
                latent=TensorProto.INT32,
            ),
            "Clip",
        ),
    ],
)
def test_nodes_that_cuda_leaves_to_the_cpu_are_found(model, node):
    assert [name.partition("(")[0] for name in without_kernel(model)] == [node]


def test_transposed_convolutions_that_cuda_leaves_to_the_cpu_are_found():
    def convolution(pads: list[int]) -> onnx.ModelProto:
        weight = helper.make_tensor("weight", TensorProto.FLOAT, [1, 1, 2, 2], [1.0] * 4)
        node = helper.make_node("ConvTranspose", ["uniform", "weight"], ["latent"], pads=pads)
        values = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 8, 8]) for name in ("uniform", "latent")
        ]
        values[1] = helper.make_tensor_value_info("latent", TensorProto.FLOAT, None)
        graph = helper.make_graph([node], "convolution", values[:1], values[1:], [weight])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)

    assert without_kernel(convolution([1, 1, 1, 1])) == []
    assert without_kernel(convolution([0, 0, 1, 1])) == ["ConvTranspose(uneven padding)"]


def session_of(model: onnx.ModelProto):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def without_kernel(model: onnx.ModelProto) -> list[str]:
    """Name the nodes for which no CUDA kernel is registered, subgraphs included."""
    assert [entry.version for entry in model.opset_import if not entry.domain] == [TABLE["opset"]]
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    return _without_kernel(inferred.graph, {})


def _without_kernel(graph: onnx.GraphProto, outer: dict[str, int]) -> list[str]:
    types = dict(outer)
    for value in (*graph.input, *graph.value_info, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    found = []
    for node in graph.node:
        found += [] if (reason := _reason(node, types)) is None else [f"{node.op_type}({reason})"]
        for attribute in node.attribute:
            for below in (attribute.g, *attribute.graphs):
                found += _without_kernel(below, types)
    return found


def _reason(node: onnx.NodeProto, types: dict[str, int]) -> str | None:
    """Return why CUDA does not run a node, or None."""
    if node.domain not in ("", "ai.onnx"):
        return f"domain {node.domain}"
    if node.op_type == "Constant":  # folded when the session is made
        return None
    schema = onnx.defs.get_schema(node.op_type, TABLE["opset"])
    bound: dict[str, str] = {}
    for formals, names in ((schema.inputs, node.input), (schema.outputs, node.output)):
        for position, name in enumerate(names):
            formal = formals[min(position, len(formals) - 1)]  # the last one may stand for many
            if name:
                bound[formal.type_str] = _NAMES.get(types[name], "another type")
    kernels = TABLE["kernels"].get(node.op_type, [])
    if not any(all(bound.get(name) in (None, *known) for name, known in kernel.items()) for kernel in kernels):
        return ", ".join(f"{name} {kind}" for name, kind in sorted(bound.items()))
    if node.op_type == "ConvTranspose":
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        pads = attributes.get("pads", [])
        if attributes.get("auto_pad", b"NOTSET") != b"NOTSET" or pads[: len(pads) // 2] != pads[len(pads) // 2 :]:
            return "uneven padding"
    return None
