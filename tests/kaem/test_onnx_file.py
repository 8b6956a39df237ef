"""No damaged artifact is opened: every byte of the file counts, whatever a runtime would make of it."""

from __future__ import annotations

import hashlib
import os
import threading

import numpy as np
import onnx
import pytest
from artifacts import write_small_artifact
from onnx import helper

import kaem
from kaem.artifact import Manifest
from kaem.engines.cpu import read_file
from kaem.errors import ArtifactError
from kaem.onnx_file import read_artifact, require_whole


@pytest.fixture(scope="module")
def content(artifact_path):
    return artifact_path.read_bytes()


def _refusal(content):
    with pytest.raises(ArtifactError) as caught:
        read_artifact(content, source="model.onnx")
    assert "model.onnx" in caught.value.message
    return caught.value.message


def test_the_digest_is_that_of_the_parsed_message_without_its_metadata(content):
    model = onnx.load_model_from_string(content)
    del model.metadata_props[:]
    expected = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    assert read_artifact(content, source="x").graph_fingerprint == f"sha256:{expected}"


@pytest.mark.parametrize("shift", range(8))
def test_no_bit_of_the_file_can_be_flipped_unnoticed(content, shift):
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << (place + shift) % 8
        _refusal(bytes(flipped))


def test_no_beginning_of_the_file_passes_for_the_file(content):
    for length in range(len(content)):
        _refusal(content[:length])


def test_a_mixture_of_two_artifacts_is_neither(content, tmp_path):
    other = write_small_artifact(tmp_path / "other.onnx", seed=8).read_bytes()
    assert len(other) == len(content)
    differing = [place for place in range(len(content)) if content[place] != other[place]]
    for cut in np.linspace(differing[0] + 1, differing[-1], 200, dtype=int):
        _refusal(content[:cut] + other[cut:])


@pytest.mark.parametrize("block", [0, 1, 7, 4096])
def test_what_is_added_or_left_out_is_noticed(content, block):
    _refusal(content + bytes(block) + b"\x08\x0a")  # one more field, as protobuf would merge it
    if block:
        _refusal(content[:100] + content[100 + block :])
        _refusal(content[:100] + bytes(block) + content[100 + block :])


@pytest.mark.parametrize("change", [{"graph_fingerprint": "sha256:" + 64 * "0"}, {"graph_fingerprint": "none"}])
def test_a_manifest_with_another_digest_is_that_of_another_graph(tmp_path, change):
    manifest = Manifest(family="kaem", name="x", noise_dim=5, latent_dim=5, image_shape=(1, 8, 8), **change)
    path = write_small_artifact(tmp_path / "model.onnx", manifest=manifest)
    with pytest.raises(ArtifactError, match="changed after its export"):
        kaem.load(path)


def test_a_foreign_file_is_called_so_and_passes_where_any_graph_may(content):
    model = onnx.load_model_from_string(content)
    helper.set_model_props(model, {"producer": "somebody"})
    assert "not a kaem artifact" in _refusal(model.SerializeToString())
    require_whole(model.SerializeToString(), source="x")
    with pytest.raises(ArtifactError, match="changed after its export"):
        require_whole(content.replace(b"Sigmoid", b"Softmax"), source="x")


def test_other_metadata_may_be_added(content):
    model = onnx.load_model_from_string(content)
    model.metadata_props.add(key="author", value="somebody")
    model.metadata_props.reverse()
    assert read_artifact(model.SerializeToString(), source="x") == read_artifact(content, source="x")


def test_what_is_loaded_is_one_of_the_files_however_it_is_overwritten(artifact_path, tmp_path):
    other = write_small_artifact(tmp_path / "other.onnx", seed=8)
    expected = []
    for path in (artifact_path, other):
        with kaem.load(path, workers=1) as sampler:
            expected.append(sampler.sample(4, 0))
    versions = [artifact_path.read_bytes(), other.read_bytes()]
    path, is_over = tmp_path / "model.onnx", threading.Event()
    path.write_bytes(versions[0])

    def overwrite():
        for number in range(1 << 30):
            with path.open("r+b") as file:
                for place in range(0, len(versions[0]), 500):
                    file.write(versions[number % 2][place : place + 500])
                    file.flush()
                    if is_over.is_set():
                        return

    writer = threading.Thread(target=overwrite)
    writer.start()
    try:
        for _ in range(100):
            try:
                with kaem.load(path, workers=1) as sampler:
                    images = sampler.sample(4, 0)
            except ArtifactError:
                continue
            else:
                assert any(np.array_equal(images, known) for known in expected)
    finally:
        is_over.set()
        writer.join()


@pytest.mark.timeout(20)
def test_only_regular_files_are_read(tmp_path):
    pipe = tmp_path / "model.onnx"
    os.mkfifo(pipe)
    (tmp_path / "link.onnx").symlink_to(pipe)
    for path in (pipe, tmp_path / "link.onnx", "/dev/zero"):
        with pytest.raises(ArtifactError, match="no regular file"):
            kaem.load(path)


def test_a_file_larger_than_any_onnx_file_is_not_read(tmp_path):
    path = tmp_path / "model.onnx"
    path.touch()
    os.truncate(path, 1 << 40)  # sparse
    with pytest.raises(ArtifactError, match="at most"):
        read_file(path)
