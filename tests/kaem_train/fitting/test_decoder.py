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
from kaem_train.fitting.decoder import read_decoder
from kaem_train.fitting.decoder_graph import OPSET, parse_finished_decoder, prefix_names
from kaem_train.fitting.decoder_layout import is_channels_last
from kaem_train.model.generators.onnx_generator import OnnxGenerator

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
    model = parse_finished_decoder(decoder.content, 5)
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
            parse_finished_decoder(content, 5)


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


def _branching():
    """The sigmoid in a branch that takes its factor, a weight, from outside."""
    product = helper.make_node("Mul", ["product", "factor"], ["scaled"])
    flat = helper.make_node("Sigmoid", ["scaled"], ["inside"])
    branch = helper.make_graph([product, flat], "then", [], [_info("inside", TensorProto.FLOAT, None)])
    other = helper.make_graph([helper.make_node("Neg", ["product"], ["negated"])], "else", [], [])
    other.output.append(_info("negated", TensorProto.FLOAT, None))
    model = _model(middle=helper.make_node("If", ["is_so"], ["flat"], then_branch=branch, else_branch=other))
    values = {"is_so": np.array(True), "factor": np.float32(0.5)}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in values.items())
    return model


def test_branches_that_take_weights_from_outside_keep_them(tmp_path):
    (tmp_path / "d.onnx").write_bytes(_branching().SerializeToString())
    decoder = read_decoder(tmp_path / "d.onnx", LATENTS)
    weight = numpy_helper.to_array(_model().graph.initializer[0])
    expected = 1.0 / (1.0 + np.exp(-0.5 * LATENTS @ weight)).reshape(-1, 1, 2, 3)
    assert np.allclose(_run(decoder.content, LATENTS), expected, atol=1e-6)
    again = prefix_names(parse_finished_decoder(decoder.content, 5), "generator_")
    onnx.checker.check_model(again, full_check=True)


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


def _rooted(offset):
    """The square root of the latents and a number, which is none far out."""
    model = _model()
    model.graph.initializer.append(numpy_helper.from_array(np.float32(offset), "offset"))
    for node in model.graph.node:
        node.input[:] = ["root" if name == "z" else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("Add", ["z", "offset"], ["moved"]))
    model.graph.node.insert(1, helper.make_node("Sqrt", ["moved"], ["root"]))
    return model


WRONG = {
    "no numbers": (lambda: _rooted(0.0), "gives NaN for some of the latents"),
    "no numbers in the tails": (lambda: _rooted(5.0), "gives NaN for latents 6 deviations from their mean"),
    "weights elsewhere": (_external, "keeps its weights in another file"),
    "foreign operator": (
        lambda: _model(middle=helper.make_node("QuickGelu", ["product"], ["flat"], domain="com.microsoft")),
        "uses operators of com.microsoft",
    ),
    "newer opset": (lambda: _model(opset=22), "has opset 22, this kaem reads up to 21"),
    "two inputs": (lambda: _model(more=[_info("label", TensorProto.FLOAT, ["N", 5])]), "needs one of each"),
    "integers": (
        lambda: _model(input=_info("z", TensorProto.INT64, ["N", 5])),
        "the input z of .* is int64, not float32",
    ),
    "half precision": (_half, "the input z of .* is float16, not float32"),
    "bytes": (lambda: _model(output=_info("x", TensorProto.UINT8, ["N", 1, 2, 3])), "the output x of .* is uint8, not"),
    "fixed batch": (lambda: _model(input=_info("z", TensorProto.FLOAT, [1, 5])), "fixed batch size 1"),
    "other latents": (_wide, r"takes \(N, 7\), the latents need \(N, 5\)"),
    "flat images": (_flat, r"turns 2 latents into shape \(2, 6\)"),
    "unbounded": (lambda: _model(middle=helper.make_node("Identity", ["product"], ["flat"])), r"not in \[0, 1\]"),
    "rows that mix": (
        lambda: _model(middle=helper.make_node("Softmax", ["product"], ["flat"], axis=0)),
        "depends on the batch",
    ),
    "noise": (
        lambda: _model(middle=helper.make_node("RandomUniformLike", ["product"], ["flat"])),
        "draws random numbers inside",
    ),
    "dropout left on": (lambda: _through("Dropout", 13, ["x", "half", "on"]), r"draws random numbers inside \(Dropout"),
    "a step between batches": (lambda: _branch(100), "depends on the batch"),
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


MAP = np.array([-1, 2, 4, 4])
CONSTANTS = {
    "scales": np.array([1, 1, 2, 2], np.float32),
    "fractions": np.array([1, 1, 1.5, 1.5], np.float32),
    "gains": np.array([0.5, 2], np.float32),
    "offsets": np.array([0.1, -0.3], np.float32),
    "spreads": np.array([0.5, 0.8], np.float32),
    "half": np.float32(0.5),
    "on": np.bool_(True),
    "two": np.int64(2),
    "first": np.int64(0),
    "second": np.int64(1),
    "channel": np.array([1]),
    "large": np.int64(0),
}


def _image(*nodes, opset, side=4, channels=2, **constants):
    """A decoder of some opset: latents (N, 5) -> maps `x` (N, 2, 4, 4) -> nodes that give `y` -> sigmoid."""
    random = np.random.default_rng(0)
    constants = {"weight": 0.7 * random.normal(size=(5, 32)).astype(np.float32), "map": MAP, **CONSTANTS, **constants}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["z", "weight"], ["product"]),
            helper.make_node("Reshape", ["product", "map"], ["x"]),
            *nodes,
            helper.make_node("Sigmoid", ["y"], ["image"]),
        ],
        "decoder",
        [_info("z", TensorProto.FLOAT, ["N", 5])],
        [_info("image", TensorProto.FLOAT, ["N", channels, side, side])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=5)


def _through(kind, opset, inputs=("x",), **attributes):
    shape = {name: attributes.pop(name) for name in ("side", "channels") if name in attributes}
    return _image(helper.make_node(kind, list(inputs), ["y"], **attributes), opset=opset, **shape)


def _branch(rows):
    """An If that takes another way from some number of rows on."""
    ways = [
        helper.make_graph([helper.make_node(kind, ["x"], [kind])], kind, [], [_info(kind, 1, ["N", 2, 4, 4])])
        for kind in ("Tanh", "Softsign")
    ]
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "large"], ["rows"]),
        helper.make_node("Less", ["rows", "limit"], ["is_small"]),
        helper.make_node("If", ["is_small"], ["y"], then_branch=ways[0], else_branch=ways[1]),
    ]
    return _image(*nodes, opset=13, limit=np.int64(rows))


def _loop(opset):
    body = helper.make_graph(
        [helper.make_node("Softmax", ["s"], ["t"], axis=1), helper.make_node("Identity", ["c"], ["d"])],
        "body",
        [_info("i", TensorProto.INT64, []), _info("c", TensorProto.BOOL, []), _info("s", 1, ["N", 2, 4, 4])],
        [_info("d", TensorProto.BOOL, []), _info("t", 1, ["N", 2, 4, 4])],
    )
    return _image(helper.make_node("Loop", ["two", "on", "x"], ["y"], body=body), opset=opset)


def _sequence(opset):
    nodes = [
        helper.make_node("SplitToSequence", ["x"], ["parts"], axis=1, keepdims=0),
        helper.make_node("SequenceAt", ["parts", "first"], ["left"]),
        helper.make_node("SequenceAt", ["parts", "second"], ["right"]),
        helper.make_node("Mul", ["left", "right"], ["joined"]),
        helper.make_node("Unsqueeze", ["joined", "channel"], ["y"]),
    ]
    return _image(*nodes, opset=opset, channels=1)


def _function(opset):
    """A function of the file's own, as newer exporters write layers."""
    model = _image(helper.make_node("Twice", ["x"], ["y"], domain="own"), opset=opset)
    inside = [helper.make_node("Add", ["a", "a"], ["b"])]
    model.functions.append(helper.make_function("own", "Twice", ["a"], ["b"], inside, [helper.make_opsetid("", opset)]))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.ir_version = 8
    return model


NORM = ["x", "gains", "offsets", "offsets", "spreads"]
OLD = {
    "Upsample 7": lambda: _through("Upsample", 7, mode="linear", scales=[1.0, 1.0, 2.0, 2.0], side=8),
    "Upsample 9": lambda: _through("Upsample", 9, ["x", "fractions"], mode="nearest", side=6),
    "Resize 10 linear": lambda: _through("Resize", 10, ["x", "scales"], mode="linear", side=8),
    "Resize 10 nearest": lambda: _through("Resize", 10, ["x", "fractions"], mode="nearest", side=6),
    "BatchNormalization 8": lambda: _through("BatchNormalization", 8, NORM),
    "Softmax 12": lambda: _through("Softmax", 12, axis=1),
    "LogSoftmax 9": lambda: _through("LogSoftmax", 9),
    "Pad 9": lambda: _through("Pad", 9, pads=[0, 0, 1, 1, 0, 0, 1, 1], mode="reflect", side=6),
    "Clip 7": lambda: _through("Clip", 7, min=-0.2, max=0.4),
    "Dropout 11": lambda: _through("Dropout", 11),
    "loop 11": lambda: _loop(11),
    "sequence 13": lambda: _sequence(13),
    "function 15": lambda: _function(15),
    "Hardmax 12": lambda: _through("Hardmax", 12),
}
"""Operators whose meaning or form changed between opsets."""

MAY_BE_REFUSED = {"Hardmax 12"}
"""What onnx converts to something else."""


@pytest.mark.parametrize("kind", OLD)
def test_a_decoder_of_an_old_opset_keeps_its_images_or_is_refused(kind, tmp_path):
    content = OLD[kind]().SerializeToString()
    path = tmp_path / "decoder.onnx"
    path.write_bytes(content)
    others = 2.0 * np.random.default_rng(1).normal(size=(300, 5)).astype(np.float32)
    expected = onnxruntime.InferenceSession(content).run(None, {"z": others})[0]
    if kind in MAY_BE_REFUSED:
        with pytest.raises(ArtifactError, match=r"gives other images, .* opset 12 to 21; they part at Hardmax y"):
            read_decoder(path, LATENTS)
        return
    decoder = read_decoder(path, LATENTS)
    assert np.abs(_run(decoder.content, others) - expected).max() < 1e-5
    assert f"opset {kind.split()[-1]}" in decoder.summary or "Resize" in kind


@pytest.mark.parametrize("declared", [["N", 5, 2, 2], [-1, 5, 2, 2], ["N", "a", "b", "c"], [0, 5, "b", 2], None])
def test_latents_that_are_images_are_flattened_and_turned_back_inside(declared, tmp_path):
    network = conv_decoder(5, nn.Sigmoid())
    path = write_decoder(tmp_path / "d.onnx", network, torch.zeros(2, 5, 2, 2), dynamo=False)
    model = onnx.load(path)
    shape = model.graph.input[0].type.tensor_type.shape
    if declared is None:
        model.graph.input[0].type.tensor_type.ClearField("shape")
    for side, size in zip(shape.dim, declared or (), strict=False):
        side.Clear()
        if isinstance(size, int):
            side.dim_value = size
        else:
            side.dim_param = size
    path.write_bytes(model.SerializeToString())
    latents = np.random.default_rng(2).normal(size=(40, 5, 2, 2)).astype(np.float32)
    decoder = read_decoder(path, latents.reshape(40, 20), latent_shape=(5, 2, 2))
    with torch.no_grad():
        expected = network(torch.from_numpy(latents)).numpy()
    assert np.abs(_run(decoder.content, latents.reshape(40, 20)) - expected).max() < 1e-6
    assert "latents 5 x 2 x 2, images 3 x 10 x 10" in decoder.summary
    if declared == ["N", 5, 2, 2]:  # flat latents of so many numbers can only be meant so
        assert read_decoder(path, latents.reshape(40, 20)).content == decoder.content
        with pytest.raises(ArtifactError, match=r"takes \(N, 5, 2, 2\), the latents need \(N, 7, 2, 2\) or \(N, 28\)"):
            read_decoder(path, np.zeros((40, 28), np.float32), latent_shape=(7, 2, 2))


def test_flat_latents_enter_a_decoder_of_points_whose_sizes_are_all_free(tmp_path):
    network = conv_decoder(5, nn.Sigmoid())
    path = write_decoder(tmp_path / "d.onnx", network, torch.zeros(2, 5, 1, 1), dynamo=False)
    model = onnx.load(path)
    for side in model.graph.input[0].type.tensor_type.shape.dim:
        side.dim_param = f"free{side.dim_value}"
    path.write_bytes(model.SerializeToString())
    with torch.no_grad():
        expected = network(torch.from_numpy(LATENTS)[:, :, None, None]).numpy()
    assert np.abs(_run(read_decoder(path, LATENTS).content, LATENTS) - expected).max() < 1e-6


def test_images_with_their_channels_last_are_turned(tmp_path):
    turn = helper.make_node("Transpose", ["x"], ["y"], perm=[0, 2, 3, 1])
    wide = {"map": np.array([-1, 3, 5, 7]), "weight": np.random.default_rng(0).normal(size=(5, 105)).astype(np.float32)}
    model = _image(turn, opset=17, **wide)
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    path = tmp_path / "d.onnx"
    path.write_bytes(model.SerializeToString())
    decoder = read_decoder(path, LATENTS)
    assert decoder.image_shape == (3, 5, 7)
    assert "turned from height x width x channels" in decoder.summary
    expected = onnxruntime.InferenceSession(str(path)).run(None, {"z": LATENTS})[0]
    assert expected.shape[1:] == (5, 7, 3)
    assert np.array_equal(_run(decoder.content, LATENTS), expected.transpose(0, 3, 1, 2))
    shapes = [(28, 28, 1), (1, 28, 28), (3, 3, 3), (3, 32, 1), (8, 8, 8), (2, 4, 4)]
    assert [is_channels_last(shape) for shape in shapes] == [True, False, False, False, False, False]
