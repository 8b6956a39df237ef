"""A rewrite that fails, breaks the graph or changes what it computes is left out, and export goes on without it."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from graphs import floats, graph_of, run
from onnx import TensorProto, helper, numpy_helper

from kaem.errors import ArtifactError, VerificationError
from kaem.noise import uniforms
from kaem_export.options import Options
from kaem_export.rewrite import optimise as optimise_module
from kaem_export.rewrite.editing import Patch
from kaem_export.rewrite.optimise import EXACT, optimise
from kaem_export.rewrite.sameness import Sameness


def _graph(nodes="y = Gemm(uniform, w)  z = Mul(y, gain)  image = Sigmoid(z)", **constants):
    constants = {"w": floats(5, 8), "gain": floats(8), **constants}
    model = graph_of(nodes.replace("uniform", "latent"), 5, (8,), **constants)
    return ir.to_proto(model)


def _raises(model):
    raise RuntimeError("two\nlines")


def _invalid(model):
    for node in model.graph:
        if node.op_type == "Sigmoid":
            node.op_type = "NoSuchOperator"
    return model


def _other_numbers(model):
    tensor = model.graph.initializers["w"].const_value.numpy().copy()
    tensor[0, 0] += 1e-2
    model.graph.initializers["w"].const_value = ir.tensor(tensor, name="w")
    node = next(node for node in model.graph if node.op_type == "Gemm")
    node.attributes["alpha"] = ir.AttrFloat32("alpha", 1.0)
    return model


def _mixed_rows(model):
    node = next(node for node in model.graph if node.op_type == "Gemm")
    patch = Patch(node, "mixed")
    mean = patch.node("ReduceMean", [node.inputs[0], patch.constant(np.array([0]))], keepdims=1)
    nought = patch.node("Mul", [mean, patch.constant(np.float32(1e-3))])
    node.replace_input_with(0, patch.node("Add", [node.inputs[0], nought]))
    return model


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (_raises, "RuntimeError: two lines"),
        (_invalid, "NoSuchOperator"),
        (_other_numbers, "image of 3 rows differs by|image of 1 rows differs by"),
        (_mixed_rows, "differs by"),
    ],
)
def test_a_bad_rewrite_is_left_out_and_the_others_are_not(broken, reason, monkeypatch):
    given = _graph()
    usual = optimise(given)
    monkeypatch.setattr(optimise_module, "EXACT", (EXACT[0], broken, *EXACT[1:]))
    found = optimise(given)
    assert [left_out.name for left_out in found.left_out] == [broken.__name__]
    assert re.search(reason, found.left_out[0].reason)
    assert "\n" not in found.left_out[0].reason
    assert found.passes == usual.passes != []
    assert found.model == usual.model


def test_the_same_graph_has_no_fault_and_bits_that_hang_on_the_batch_are_one():
    given = _graph()
    sameness = Sameness(given)
    assert sameness.fault(given) == ""
    # A running sum over rows that changes the last bit alone: within the bound, but not the same in another batch.
    unsteady = _graph(
        "t = Transpose(uniform)  m = ReduceMean(t, last)  s = Mul(m, tiny)  u = Transpose(s)  v = Add(uniform, u)"
        "  y = Gemm(v, w)  z = Mul(y, gain)  image = Sigmoid(z)",
        last=np.array([1]),
        tiny=np.float32(1e-6),
    )
    assert "other bits" in sameness.fault(unsteady)
    assert sameness.fault(unsteady, has_forms=True) == ""


def _sequence():
    """From uniforms to images by way of a sequence, which a constant folder takes apart and gets wrong."""
    node, info = helper.make_node, helper.make_tensor_value_info
    nodes = [
        node("MatMul", ["uniform", "weight"], ["flat"]),
        node("Reshape", ["flat", "map"], ["x"]),
        node("SplitToSequence", ["x"], ["parts"], axis=1, keepdims=0),
        node("SequenceAt", ["parts", "first"], ["left"]),
        node("SequenceAt", ["parts", "second"], ["right"]),
        node("Mul", ["left", "right"], ["joined"]),
        node("Reshape", ["joined", "sides"], ["square"]),
        node("Sigmoid", ["square"], ["image"]),
    ]
    constants = {
        "weight": floats(6, 128),
        "map": np.array([-1, 2, 64]),
        "first": np.int64(0),
        "second": np.int64(1),
        "sides": np.array([-1, 1, 8, 8]),
    }
    graph = helper.make_graph(
        nodes,
        "sequence",
        [info("uniform", TensorProto.FLOAT, ["N", 6])],
        [info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("level", ["default", "large-batch", "auto"])
def test_sequences_that_a_library_gets_wrong_are_exported_as_they_are(level):
    given = _sequence()
    found = optimise(given, Options(optimize=level))
    rows = uniforms(5, 0, 50, 6)
    expected = onnxruntime.InferenceSession(given.SerializeToString()).run(["image"], {"uniform": rows})[0]
    onnx.checker.check_model(found.model, full_check=True)
    assert np.abs(run(found.model, rows, source="uniform") - expected).max() < 1e-6
    assert all(left_out.reason for left_out in found.left_out)


def test_what_cannot_run_and_what_was_asked_for_is_one_line():
    impossible = _graph('y = Gemm(uniform, w)  z = BitShift<direction = "LEFT">(y, y)  image = Sigmoid(z)')
    with pytest.raises(ArtifactError) as caught:
        optimise(impossible)
    assert "\n" not in str(caught.value)
    broken = _sequence()
    broken.graph.value_info.append(helper.make_tensor_value_info("square", TensorProto.FLOAT, ["N", 3]))
    for options, hint in ((Options(precision="float16"), "float32"), (Options(precision="int8"), "float32")):
        with pytest.raises(VerificationError) as caught:
            optimise(broken, options)
        assert hint in caught.value.hint
        assert "\n" not in str(caught.value)
