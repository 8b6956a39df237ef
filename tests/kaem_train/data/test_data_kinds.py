"""Kinds of files that people have: CIFAR's batches, torchvision's folders, single arrays, and files of no kind."""

import gzip
import io
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from pictures import encode, files, pixels, write_folder, write_tar, write_zip
from PIL import Image

from kaem.errors import DataError
from kaem_train.config import DataConfig
from kaem_train.data import load_dataset


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


def _npy(header):
    return b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header + bytes(64)


def _npz(header):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("images.npy", _npy(header))
    return buffer.getvalue()


def _objects(save):
    buffer = io.BytesIO()
    save(buffer, np.array([Harm()], object))
    return buffer.getvalue()


_HUGE = b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000, 32, 32), }\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.npy", _npy(b"{'descr': '<f4', 'shape': (1, 8, 8\n"), r"cannot read .*x\.npy as \.npy"),
        ("x.npy", _npy(b"(" * 5000), "cannot read"),
        ("x.npy", _npy(_HUGE), "its header speaks of more numbers than the file"),
        ("x.npy", _objects(np.save), "holds Python objects, which are not read"),
        ("x.npz", _npz(b"{'descr': '<f4', 'shape': (1, 8, 8\n"), r"cannot read .*x\.npz as \.npz"),
        ("x.npz", _npz(_HUGE), "more numbers than"),
        ("x.npz", _objects(lambda file, array: np.savez(file, images=array)), "holds Python objects"),
        ("x.idx", bytes([0, 0, 8, 255]) + 255 * bytes([0, 0, 0, 1]) + b"1", "holds an array of 255 axes"),
        (
            "x.gz",
            gzip.compress(bytes([0, 0, 8, 3, 63, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 8]) + bytes(99), mtime=0),
            "115 bytes where",
        ),
    ],
)
def test_array_files_that_lie_of_what_they_hold_are_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        _load(tmp_path / name)
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_a_test_split_that_would_be_black_is_refused_as_the_training_images_are(tmp_path):
    images = pixels(6, (32, 32, 3))
    np.savez(tmp_path / "x.npz", images_train=images, images_test=images[:2] // 128)
    with pytest.raises(DataError, match=r"the test split of .* run from 0 to 1 where white is 255"):
        _load(tmp_path / "x.npz")


@pytest.mark.parametrize("folders", [("trainA", "testA"), ("a/train", "a/test"), ("train", "dev"), ("rest", "my-val")])
def test_images_in_folders_named_like_a_test_set_are_not_trained_on_without_a_word(tmp_path, folders):
    both = {**files(pixels(4), f"{folders[0]}/"), **files(pixels(3, seed=1), f"{folders[1]}/")}
    dataset = _load(write_folder(tmp_path / "images", {**both, **files(pixels(2, seed=2), "b/more/")}), (3, 8, 6))
    assert "3 of these lie in folders named like a test set" in dataset.summary
    for names in (("train", "test"), ("latest", "contest"), ("value", "developer")):
        place = tmp_path / names[0]
        write_folder(place, {**files(pixels(4), f"{names[0]}/"), **files(pixels(3, seed=1), f"{names[1]}/")})
        assert "like a test set" not in _load(place, (3, 8, 6)).summary


def test_names_that_are_no_unicode_and_folders_of_systems_are_no_trouble(tmp_path):
    folder = write_folder(tmp_path / "images", files(pixels(6)))
    write_folder(folder / "#recycle", files(pixels(3)))
    write_folder(folder / "@Recycle", files(pixels(3)))
    (folder / os.fsdecode(b"\xff\xfe.png")).write_bytes(next(iter(files(pixels(1, seed=5)).values())))
    assert len(_load(folder, (3, 8, 6)).train) == 5


def test_a_colour_that_is_not_to_be_seen_is_transparency(tmp_path):
    image = pixels(1)[0]
    seen, unseen = (tmp_path / name for name in ("seen", "unseen"))
    for folder, colour in ((seen, (1, 2, 3)), (unseen, tuple(map(int, image[0, 0])))):
        write_folder(folder, {f"{number}.png": encode(image, transparency=colour) for number in range(4)})
    assert len(_load(seen, (3, 8, 6)).train) == 2
    with pytest.raises(DataError, match="is partly transparent"):
        _load(unseen, (3, 8, 6))


def test_of_a_cameras_file_the_first_picture_is_taken_and_the_previews_are_not(tmp_path):
    first, preview = (Image.fromarray(array) for array in pixels(2))
    for number in range(4):
        first.save(tmp_path / f"{number}.jpg", format="MPO", save_all=True, append_images=[preview], quality=95)
    images = _load(tmp_path, (3, 8, 6)).train[:].numpy()
    with Image.open(tmp_path / "0.jpg") as image:
        decoded = np.asarray(image).transpose(2, 0, 1) / 255.0
    assert np.allclose(images, decoded, atol=1e-6)


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
