"""A decoder of any exporter is brought to one form that computes the same; what cannot be is refused in one line."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from decoders import conv_decoder, dense_decoder, write_decoder
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from kaem.errors import ArtifactError, ConfigError
from kaem_train.decoder import read_decoder
from kaem_train.decoder_graph import OPSET, finished_decoder
from kaem_train.model.onnx_generator import OnnxGenerator

LATENTS = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)


def _run(content, latents):
    return onnxruntime.InferenceSession(content).run(["image"], {"latent": latents})[0]


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A network in opset 18, and the decoder that was read from its file."""
    network = dense_decoder(5, (1, 6, 7), nn.Sigmoid())
    path = write_decoder(tmp_path_factory.mktemp("dense") / "d.onnx", network, torch.zeros(2, 5), dynamo=False)
    return network, read_decoder(path, LATENTS)


def test_a_dense_decoder_of_an_older_opset_computes_what_torch_computes(dense):
    network, decoder = dense
    assert decoder.image_shape == (1, 6, 7)
    with torch.no_grad():
        expected = network(torch.from_numpy(LATENTS)).numpy()
    assert np.abs(_run(decoder.content, LATENTS) - expected).max() < 1e-6
    model = finished_decoder(decoder.content, 5)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]


def test_a_convolutional_tanh_decoder_is_brought_to_0_1_by_its_stated_range(tmp_path):
    network = conv_decoder(5, nn.Tanh())
    path = write_decoder(tmp_path / "d.onnx", network, torch.zeros(2, 5, 1, 1), dynamo=False)
    decoder = read_decoder(path, LATENTS, pixel_range=(-1.0, 1.0))
    assert decoder.image_shape == (3, 8, 8)
    with torch.no_grad():
        expected = (network(torch.from_numpy(LATENTS)[:, :, None, None]).numpy() + 1) / 2
    assert np.abs(_run(decoder.content, LATENTS) - expected).max() < 1e-6
    with pytest.raises(ArtifactError, match=r"not in \[0, 1\]") as caught:
        read_decoder(path, LATENTS)
    assert "--pixel-range" in caught.value.hint


def test_a_generator_holds_the_file_in_its_state_and_runs_it(dense):
    network, decoder = dense
    first, second = OnnxGenerator(), OnnxGenerator()
    first.set_file(decoder.content)
    second.load_state_dict(first.state_dict())
    assert second.file() == decoder.content
    latents = torch.from_numpy(LATENTS).double()
    images = second.double()(latents)
    assert images.dtype == torch.float64
    with torch.no_grad():
        assert (images - network(latents.float())).abs().max() < 1e-6
    with pytest.raises(ConfigError, match="no gradient"):
        second(latents.requires_grad_())


def test_a_generator_whose_state_is_no_decoder_says_so():
    generator = OnnxGenerator()
    with pytest.raises(ArtifactError, match="decoder is not a usable ONNX model"):
        generator(torch.zeros(1, 5))
    with pytest.raises(RuntimeError, match="size mismatch"):
        generator.load_state_dict({"content": torch.zeros(3, 4)})
    for content in (b"", b"not a model", _model().SerializeToString()):
        with pytest.raises(ArtifactError, match="is damaged"):
            finished_decoder(content, 5)


def _model(**changes):
    """A decoder of one matrix and a sigmoid, written by hand, so that each part of it can be wrong."""
    random = np.random.default_rng(0)
    part = {
        "input": helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 5]),
        "output": helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 2, 3]),
        "weight": numpy_helper.from_array(random.normal(size=(5, 6)).astype(np.float32), "weight"),
        "shape": numpy_helper.from_array(np.array([-1, 1, 2, 3]), "shape"),
        "middle": helper.make_node("Sigmoid", ["product"], ["flat"]),
        "more": [],
        "opset": 21,
        **changes,
    }
    nodes = [
        helper.make_node("MatMul", ["z", "weight"], ["product"]),
        part["middle"],
        helper.make_node("Reshape", ["flat", "shape"], ["x"]),
    ]
    graph = helper.make_graph(
        nodes, "decoder", [part["input"], *part["more"]], [part["output"]], [part["weight"], part["shape"]]
    )
    opsets = [helper.make_opsetid("", part["opset"]), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _external():
    model = _model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/hostname")
    return model


def _info(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def _half():
    model = _model(
        input=_info("z", TensorProto.FLOAT16, ["N", 5]),
        output=_info("x", TensorProto.FLOAT16, ["N", 1, 2, 3]),
        weight=numpy_helper.from_array(np.zeros((5, 6), np.float16), "weight"),
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _wide():
    weight = numpy_helper.from_array(np.zeros((7, 6), np.float32), "weight")
    return _model(input=_info("z", TensorProto.FLOAT, ["N", 7]), weight=weight)


def _flat():
    shape = numpy_helper.from_array(np.array([-1, 6]), "shape")
    return _model(output=_info("x", TensorProto.FLOAT, ["N", 6]), shape=shape)


WRONG = {
    "weights elsewhere": (_external, "keeps its weights in another file"),
    "foreign operator": (
        lambda: _model(middle=helper.make_node("QuickGelu", ["product"], ["flat"], domain="com.microsoft")),
        "uses operators of com.microsoft",
    ),
    "newer opset": (lambda: _model(opset=22), "has opset 22, this kaem reads up to 21"),
    "two inputs": (lambda: _model(more=[_info("label", TensorProto.FLOAT, ["N", 5])]), "needs one of each"),
    "integers": (lambda: _model(input=_info("z", TensorProto.INT64, ["N", 5])), "cannot be read|is not float32"),
    "half precision": (_half, "is not float32"),
    "fixed batch": (lambda: _model(input=_info("z", TensorProto.FLOAT, [1, 5])), "fixed batch size 1"),
    "other latents": (_wide, r"takes \(N, 7\), the latents need \(N, 5\)"),
    "flat images": (_flat, r"turns 32 latents into shape \(32, 6\)"),
    "unbounded": (lambda: _model(middle=helper.make_node("Identity", ["product"], ["flat"])), r"not in \[0, 1\]"),
    "rows that mix": (
        lambda: _model(middle=helper.make_node("Softmax", ["product"], ["flat"], axis=0)),
        "depends on the batch",
    ),
    "not a model": (lambda: b"\x08\x07 not a model", "is not an ONNX model"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_decoder_that_cannot_be_used_is_refused_with_what_is_wrong(kind, tmp_path):
    build, message = WRONG[kind]
    content = build()
    path = tmp_path / "decoder.onnx"
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    with pytest.raises(ArtifactError, match=message) as caught:
        read_decoder(path, LATENTS)
    assert str(path) in caught.value.message
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_the_hand_written_decoder_is_right_where_nothing_is_changed(tmp_path):
    path = tmp_path / "decoder.onnx"
    path.write_bytes(_model().SerializeToString())
    assert read_decoder(path, LATENTS).image_shape == (1, 2, 3)
    with pytest.raises(ArtifactError, match="no decoder at"):
        read_decoder(tmp_path / "absent.onnx", LATENTS)
