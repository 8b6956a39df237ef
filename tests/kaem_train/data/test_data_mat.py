"""SVHN's MATLAB files: image number last on disk, first in memory; what is not such a file is named."""

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import pixels
from scipy.io import savemat

from kaem.errors import DataError
from kaem_train.config import DataConfig
from kaem_train.data import load_dataset


def _write(path, images, **options):
    savemat(path, {"X": np.moveaxis(images, 0, -1), "y": np.ones((len(images), 1), np.uint8)}, **options)


def _load(path, image_shape=(3, 8, 6)):
    return load_dataset(DataConfig(source="files", path=str(path), image_shape=image_shape, num_holdout=2))


@pytest.mark.parametrize("is_compressed", [False, True])
def test_the_images_are_those_that_were_stored(tmp_path, is_compressed):
    images = pixels()
    _write(tmp_path / "a.mat", images, do_compression=is_compressed)
    np.savez(tmp_path / "a.npz", images=images)
    data, same = _load(tmp_path / "a.mat"), _load(tmp_path / "a.npz")
    assert data.fingerprint == same.fingerprint
    assert torch.equal(data.train[:], same.train[:])


def test_grey_images_have_no_channel_axis(tmp_path):
    images = pixels(shape=(8, 6))
    _write(tmp_path / "a.mat", images)
    np.savez(tmp_path / "a.npz", images=images)
    assert _load(tmp_path / "a.mat", (1, 8, 6)).fingerprint == _load(tmp_path / "a.npz", (1, 8, 6)).fingerprint


def test_a_folder_with_train_and_test_files_is_split_as_they_are(tmp_path):
    train, test = pixels(), pixels(5, seed=1)
    for name, images in (("train", train), ("test", test), ("extra", pixels(3))):
        _write(tmp_path / f"{name}_32x32.mat", images)
    data = _load(tmp_path)
    assert (len(data.train), len(data.holdout)) == (12, 5)
    assert np.array_equal(data.holdout.stored, test.transpose(0, 3, 1, 2))
    _write(tmp_path / "train_more.mat", train)
    with pytest.raises(DataError, match=r"several train.*train_32x32\.mat, train_more\.mat"):
        _load(tmp_path)


def test_files_that_cannot_be_read_are_named_with_what_to_do(tmp_path):
    _write(tmp_path / "good.mat", pixels())
    good = (tmp_path / "good.mat").read_bytes()
    (tmp_path / "cut.mat").write_bytes(good[:-100])
    (tmp_path / "header.mat").write_bytes(good[:60])
    (tmp_path / "empty.mat").write_bytes(b"")
    (tmp_path / "text.mat").write_text("hello" * 100)
    (tmp_path / "hdf5.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n" + bytes(100))
    savemat(tmp_path / "labels.mat", {"y": np.ones(3)})
    savemat(tmp_path / "flat.mat", {"X": np.ones((3, 4))})
    savemat(tmp_path / "ints.mat", {"X": np.ones((8, 6, 3, 4), np.int32)})
    savemat(tmp_path / "cells.mat", {"X": np.array([[["text"]]], dtype=object)})
    paths = sorted(path for path in tmp_path.iterdir() if path.name != "good.mat")
    for path in paths:
        with pytest.raises(DataError) as caught:
            _load(path)
        assert str(path) in caught.value.message, path.name
        assert caught.value.hint, path.name
    with pytest.raises(DataError, match=r"X \(8, 6, 3, 4\)"):
        _load(tmp_path / "ints.mat")
    with pytest.raises(DataError, match=r"7\.3.*'-v7'"):
        _load(tmp_path / "hdf5.mat")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), is_compressed=st.booleans())
def test_no_damage_gets_past_the_reader_or_ends_the_process(tmp_path, data, is_compressed):
    path = tmp_path / "a.mat"
    _write(path, pixels(4), do_compression=is_compressed)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content) - 1, 400)))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(DataError):  # the header's text and the pixels may be anything
        assert _load(path).train.shape == (2, 3, 8, 6)
