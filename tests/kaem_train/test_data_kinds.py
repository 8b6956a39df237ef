"""Kinds of files that people have: CIFAR's batches, torchvision's folders, single arrays, and files of no kind."""

import os
import pickle
import tarfile

import numpy as np
import pytest
from pictures import files, pixels, write_tar, write_zip

from kaem.errors import DataError
from kaem_train.data import load_dataset
from kaem_train.sections import DataConfig


def _load(path, image_shape=(3, 32, 32), **settings):
    settings = {"num_holdout": 2, **settings}
    return load_dataset(DataConfig(source="files", path=str(path), image_shape=image_shape, **settings))


def _batch(folder, name, images, protocol=2, key=b"data"):
    folder.mkdir(parents=True, exist_ok=True)
    flat = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    labels = {b"labels": [0] * len(images), b"filenames": [b"a.png"] * len(images), b"batch_label": b"one"}
    (folder / name).write_bytes(pickle.dumps({key: flat, **labels}, protocol=protocol))


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("kind", ["cifar-10-batches-py", "cifar-100-python"])
def test_cifars_batches_are_read_with_their_split(tmp_path, kind, protocol):
    train, test = pixels(6, (32, 32, 3)), pixels(4, (32, 32, 3), seed=1)
    if kind == "cifar-100-python":
        _batch(tmp_path / kind, "train", train, protocol)
        _batch(tmp_path / kind, "test", test, protocol)
        (tmp_path / kind / "meta").write_bytes(pickle.dumps({b"fine_label_names": [b"apple"]}))
    else:
        for number in range(2):
            _batch(tmp_path / kind, f"data_batch_{number + 1}", train[3 * number :][:3], protocol)
        _batch(tmp_path / kind, "test_batch", test, protocol)
    np.savez(tmp_path / "same.npz", images_train=train, images_test=test)
    expected = _load(tmp_path / "same.npz").fingerprint
    assert _load(tmp_path / kind).fingerprint == expected
    assert _load(tmp_path).fingerprint == expected  # as the archive unpacks


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("content", [Harm(), [Harm()], {b"data": Harm()}, {b"data": np.array([Harm()], object)}])
def test_a_batch_that_is_a_program_runs_nothing(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=r"cannot read .*data_batch_1 as a batch of CIFAR: it asks for \w+\.mkdir"):
        _load(tmp_path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no pickle", "cannot read"),
        (pickle.dumps({b"data": [1, 2]}), "holds no images of CIFAR"),
        (pickle.dumps({b"data": np.zeros((2, 10), np.uint8)}), "holds no images of CIFAR"),
        (pickle.dumps(3), "holds no images of CIFAR"),
        (pickle.dumps({b"data": np.zeros((2, 3072), np.uint8)})[:-50], "cannot read"),
    ],
)
def test_a_damaged_batch_is_named(tmp_path, content, message):
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        _load(tmp_path)
    assert caught.value.hint
    assert "\n" not in caught.value.message


def _write_idx(path, images):
    sizes = b"".join(size.to_bytes(4, "big") for size in images.shape)
    path.write_bytes(bytes([0, 0, 8, images.ndim]) + sizes + images.tobytes())


@pytest.mark.parametrize("place", ["", "raw", "MNIST/raw"])
def test_idx_files_are_found_where_torchvision_keeps_them(tmp_path, place):
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 8), dtype=np.uint8)
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    _write_idx(tmp_path / place / "train-images-idx3-ubyte", images[:6])
    _write_idx(tmp_path / place / "t10k-images-idx3-ubyte", images[6:])
    data = _load(tmp_path, (1, 8, 8))
    assert (len(data.train), len(data.holdout)) == (6, 3)


def test_what_an_npz_holds_besides_is_said(tmp_path):
    np.savez(tmp_path / "a.npz", images=pixels(6, (32, 32, 3)), masks=np.zeros(3), labels=np.zeros(6))
    summary = _load(tmp_path / "a.npz").summary
    assert "4 images to train on, 2 held out (chosen by chance, always the same)" in summary
    assert "arrays images; left out: masks, labels" in summary
    assert "pixels from 0 to 255 of 255" in summary


@pytest.mark.parametrize("name", ["a.tbz2", "a.tbz", "a.txz", "a.tar.bz2"])
def test_archives_of_short_names_are_read(tmp_path, name):
    mode = "w:bz2" if "bz" in name else "w:xz"
    data = _load(write_tar(tmp_path / name, files(pixels(6, (32, 32, 3))), mode))
    assert len(data.train) == 4


def test_a_zip_that_windows_tools_packed_has_folders(tmp_path):
    contents = {**files(pixels(4, (32, 32, 3)), "set\\train\\"), **files(pixels(3, (32, 32, 3), seed=1), "set\\test\\")}
    data = _load(write_zip(tmp_path / "a.zip", contents))
    assert (len(data.train), len(data.holdout)) == (4, 3)
    with pytest.raises(DataError, match="points outside"):
        _load(write_zip(tmp_path / "b.zip", files(pixels(2, (32, 32, 3)), "..\\..\\")))


def test_a_file_of_no_kind_is_not_read_to_its_end(tmp_path):
    path = tmp_path / "a.h5"
    with path.open("wb") as file:
        file.write(b"\x89HDF\r\n\x1a\n")
        file.truncate(1 << 42)  # more than any memory; sparse
    with pytest.raises(DataError, match="of no known kind: it begins with 89 48 44 46"):
        _load(path)
    with path.open("wb") as file:  # a header that promises few images before far too much
        file.write(bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in (2, 8, 8)))
        file.truncate(1 << 42)
    with pytest.raises(DataError, match=f"has {1 << 42} bytes where its header needs {16 + 128}"):
        _load(path)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(DataError, match="neither a file nor a folder"):
            _load(path)
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in files(pixels(6, (32, 32, 3))).items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "a.png")
    with pytest.raises(DataError, match=r"cannot read .*a\.png: it is no regular file"):
        _load(folder)


def test_an_archive_without_images_says_what_it_holds(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        (tmp_path / "notes.txt").write_text("hello")
        archive.add(tmp_path / "notes.txt", "notes.txt")
    with pytest.raises(DataError, match=r"holds no images, only 1 \.txt"):
        _load(tmp_path / "a.tar")
