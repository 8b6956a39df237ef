"""What every kind of exported graph must keep, so that GPUs run it whole. No GPU is needed to know."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from cuda_placement import kept_on_host, subgraphs, without_kernel
from exported_graphs import INT8, KINDS, LARGE_BATCH, LOOPS, with_batch, with_bytes
from graphs import BITWISE, from_nodes
from onnx import TensorProto, helper

from kaem.errors import ArtifactError, ConfigError
from kaem.noise import uniforms
from kaem_export.targets.tensorrt import DEFAULT_PROFILES, Profile, build_plan
from kaem_export.targets.torch_twin import TorchTwin

FOR_GPUS = KINDS | LOOPS
FLOAT = FOR_GPUS | LARGE_BATCH


@pytest.fixture(scope="module")
def trt():
    return pytest.importorskip("tensorrt_rtx", reason="pip install 'kaem[trt-check]'")


@pytest.mark.parametrize("kind", FLOAT)
def test_tensorrt_builds_it_with_float_images_and_a_free_batch(trt, kind):
    built = build_plan(trt, FLOAT[kind]().SerializeToString(), profiles=[Profile(1, 8, 64)])
    assert built.profiles == ((1, 8, 64),)
    assert len(built.plan) > 10_000


@pytest.mark.parametrize("kind", FLOAT)
def test_tensorrt_builds_it_with_8_bit_images_and_a_fixed_batch(trt, kind):
    built = build_plan(trt, with_batch(with_bytes(FLOAT[kind]()), 7).SerializeToString())
    assert built.profiles == ((7, 7, 7),)
    assert len(built.plan) > 10_000


def test_tensorrt_builds_the_default_profiles(trt):
    assert build_plan(trt, KINDS["mixture"]().SerializeToString()).profiles == DEFAULT_PROFILES


@pytest.mark.parametrize("kind", INT8)
def test_int8_graphs_are_refused_for_the_32_bit_biases_of_their_layers(trt, kind):
    with pytest.raises(ArtifactError, match=r"_int8_dequantizelinear_\d+ \(DequantizeLinear\).* has type Int32"):
        build_plan(trt, INT8[kind]().SerializeToString())


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


@pytest.mark.parametrize("kind", FLOAT)
def test_every_node_has_a_cuda_kernel_for_its_types(kind):
    assert without_kernel(with_bytes(FLOAT[kind]())) == []


@pytest.mark.parametrize("kind", FOR_GPUS)
def test_no_node_is_kept_on_the_processor_for_the_sake_of_its_shapes(kind):
    assert kept_on_host(FOR_GPUS[kind]()) == []


def test_the_large_batch_form_counts_rows_on_the_processor_unless_their_number_is_fixed():
    assert kept_on_host(LARGE_BATCH["large-batch form in a branch"]()) == ["GreaterOrEqual", "Squeeze", "Concat"]
    alone = LARGE_BATCH["large-batch form alone"]()
    assert kept_on_host(alone) == ["Concat"]
    assert without_kernel(with_batch(alone, 32)) == []


def test_int8_layers_are_left_to_the_processor():
    biases = ["DequantizeLinear(T1 int32, T2 float)"]
    assert without_kernel(INT8["int8 dense layers"]()) == biases
    windows = ["Pad(T uint8, tensor(int64) int64)"]
    assert without_kernel(INT8["int8 convolutions"]()) == 2 * (biases + windows)


@pytest.mark.parametrize(
    ("kind", "depth"), [("large-batch form in a branch", "If"), ("latent EBM", "Loop"), ("DDPM", "Loop")]
)
def test_nodes_of_branches_and_bodies_are_looked_at_too(kind, depth):
    model = onnx.ModelProto()
    model.CopyFrom(FLOAT[kind]())
    (holder,) = [node for node in model.graph.node if node.op_type == depth]
    below = [attribute.g for attribute in holder.attribute]
    assert below == list(subgraphs(model.graph))
    for graph in below:
        node = next(node for node in graph.node if node.op_type in ("LeakyRelu", "Sigmoid"))
        node.op_type = "Celu"
        del node.attribute[:]
    assert without_kernel(model) == ["Celu(T float)"] * len(below)


def test_nodes_of_a_scan_are_looked_at_too():
    body = helper.make_graph(
        [helper.make_node("Acos", ["row"], ["angle"])],
        "body",
        [helper.make_tensor_value_info("row", TensorProto.FLOAT, [3])],
        [helper.make_tensor_value_info("angle", TensorProto.FLOAT, [3])],
    )
    model = from_nodes(helper.make_node("Scan", ["uniform"], ["latent"], body=body, num_scan_inputs=1))
    assert without_kernel(model) == ["Acos(T float)"]


def test_sizes_that_are_computed_are_found_on_the_processor():
    rows = helper.make_node("Shape", ["uniform"], ["rows"])
    sizes = helper.make_node("Concat", ["rows", "rows"], ["sizes"], axis=0)
    half = helper.make_node("Slice", ["sizes", "start", "end"], ["half"])
    model = from_nodes(rows, sizes, half, helper.make_node("Reshape", ["uniform", "half"], ["latent"]))
    for name, value in (("start", 0), ("end", 2)):
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [1], [value]))
    assert kept_on_host(model) == ["Concat", "Slice"]


@pytest.mark.parametrize(
    ("model", "node"),
    [
        (BITWISE, "BitwiseAnd"),
        (from_nodes(helper.make_node("Acos", ["uniform"], ["latent"])), "Acos"),
        (
            from_nodes(
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
