"""Images arrive as float32 (N, C, H, W) in [0, 1], in a fixed order; anything else is a one-line error."""

import gzip
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch

from kaem.errors import DataError
from kaem_train.config import DataConfig
from kaem_train.data import choose_batch, load_dataset


def _images(num=20, shape=(6, 5), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, *shape), dtype=np.uint8)


def _idx(images):
    return struct.pack(f">BBBB{images.ndim}I", 0, 0, 8, images.ndim, *images.shape) + images.tobytes()


def _load(path, image_shape=(1, 6, 5), num_holdout=5):
    return load_dataset(DataConfig(source="files", path=str(path), image_shape=image_shape, num_holdout=num_holdout))


def test_the_embedded_digits_are_real_scaled_and_split():
    data = load_dataset(DataConfig(source="digits", image_shape=(1, 8, 8), num_holdout=297))
    assert data.train.shape == (1500, 1, 8, 8)
    assert data.holdout.shape == (297, 1, 8, 8)
    assert data.train[:].dtype == torch.float32
    assert (float(data.train[:].min()), float(data.train[:].max())) == (0.0, 1.0)
    held_out = {image.numpy().tobytes() for image in data.holdout}
    assert not held_out & {image.numpy().tobytes() for image in data.train}


def test_training_can_be_limited_to_the_first_images(tmp_path):
    np.savez(tmp_path / "set.npz", images_train=_images(), images_test=_images(8, seed=1))
    limited = DataConfig(source="files", path=str(tmp_path / "set.npz"), image_shape=(1, 6, 5), num_train=7)
    data, whole = load_dataset(limited), _load(tmp_path / "set.npz")
    assert torch.equal(data.train[:], whole.train[:7])
    assert torch.equal(data.holdout[:], whole.holdout[:])
    assert data.fingerprint != whole.fingerprint
    with pytest.raises(DataError, match=r"20 images to train on, fewer than data.num_train = 21"):
        load_dataset(replace(limited, num_train=21))


@pytest.mark.parametrize("kind", ["npz", "x_train", "folder", "gz", "dots"])
def test_every_file_format_gives_the_same_data_and_fingerprint(tmp_path, kind):
    train, test = _images(), _images(8, seed=1)
    path = tmp_path / "set.npz"
    if kind == "npz":
        np.savez_compressed(path, images_train=train, images_test=test, labels_train=np.zeros(20))
    elif kind == "x_train":
        np.savez(path, x_train=train[..., None], x_test=test[:, None] / np.float32(255.0))
    else:
        path = tmp_path
        mark = "." if kind == "dots" else "-"
        for split, images in (("train", train), ("t10k", test)):
            name = f"{split}-images{mark}idx3-ubyte"
            if kind == "gz":
                (tmp_path / f"{name}.gz").write_bytes(gzip.compress(_idx(images)))
            else:
                (tmp_path / name).write_bytes(_idx(images))
    data = _load(path)
    assert np.array_equal(data.train[:].numpy(), train[:, None] / np.float32(255.0))
    assert np.array_equal(data.holdout[:].numpy(), test[:, None] / np.float32(255.0))
    np.savez(tmp_path / "again.npz", images_train=train, images_test=test)
    assert data.fingerprint == _load(tmp_path / "again.npz").fingerprint


def test_colour_images_may_have_their_channels_first_or_last(tmp_path):
    images = _images(shape=(6, 5, 3))
    np.savez(tmp_path / "last.npz", images=images)
    np.savez(tmp_path / "first.npz", images=images.transpose(0, 3, 1, 2))
    last, first = (_load(tmp_path / f"{name}.npz", (3, 6, 5)) for name in ("last", "first"))
    assert last.train.shape == (15, 3, 6, 5)
    assert torch.equal(last.train[:], first.train[:])


def test_a_single_file_is_split_the_same_way_every_time(tmp_path):
    (tmp_path / "images").write_bytes(_idx(_images()))
    first, second = _load(tmp_path / "images"), _load(tmp_path / "images")
    assert len(first.train) == 15
    assert torch.equal(first.holdout[:], second.holdout[:])


def test_other_pixels_have_another_fingerprint(tmp_path):
    images = _images()
    np.savez(tmp_path / "a.npz", images=images)
    images[3, 2, 1] ^= 1
    np.savez(tmp_path / "b.npz", images=images)
    assert _load(tmp_path / "a.npz").fingerprint != _load(tmp_path / "b.npz").fingerprint


class _Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def _bad_files(folder):
    good = _images()
    writers = {
        "pickle.npz": lambda p: np.savez(p, images=np.array([_Trap()], dtype=object)),
        "labels.npz": lambda p: np.savez(p, labels=np.zeros(3)),
        "ints.npz": lambda p: np.savez(p, images=good.astype(np.int32)),
        "bright.npz": lambda p: np.savez(p, images=good.astype(np.float32)),
        "nan.npz": lambda p: np.savez(p, images=np.full((20, 6, 5), np.nan, np.float32)),
        "empty.npz": lambda p: np.savez(p, images=good[:0]),
        "flat.npz": lambda p: np.savez(p, images=good.reshape(20, -1)),
        "wide.npz": lambda p: np.savez(p, images=_images(shape=(6, 6))),
        "few.npz": lambda p: np.savez(p, images=good[:5]),
        "text.npz": lambda p: p.write_text("hello"),
        "nothing": lambda p: p.write_bytes(b""),
        "text": lambda p: p.write_text("hello"),
        "truncated": lambda p: p.write_bytes(_idx(good)[:-1]),
        "longer": lambda p: p.write_bytes(_idx(good) + b"!"),
        "header": lambda p: p.write_bytes(_idx(good)[:9]),
        "floats": lambda p: p.write_bytes(b"\0\0\x0d" + _idx(good)[3:]),
        "truncated.gz": lambda p: p.write_bytes(gzip.compress(_idx(good))[:-20]),
        "labels": lambda p: p.write_bytes(_idx(good[:, 0, 0])),
    }
    for name, write in writers.items():
        write(folder / name)
    np.savez(folder / "cut.npz", images=good)
    (folder / "cut.npz").write_bytes((folder / "cut.npz").read_bytes()[:300])
    (folder / "folder").mkdir()
    return (*writers, "cut.npz", "folder", "absent.npz")


def test_files_that_cannot_be_trained_on_are_named_with_what_to_do(tmp_path):
    for name in _bad_files(tmp_path):
        with pytest.raises(DataError) as caught:
            _load(tmp_path / name)
        assert str(tmp_path / name) in caught.value.message, name
        assert caught.value.hint, name
        assert "\n" not in caught.value.message, name


def test_a_preset_that_needs_files_says_so():
    with pytest.raises(DataError, match="--data PATH"):
        load_dataset(DataConfig(source="files", image_shape=(1, 28, 28)))


def test_a_size_that_does_not_fit_names_both_sizes(tmp_path):
    np.savez(tmp_path / "a.npz", images=_images())
    with pytest.raises(DataError, match=r"\(6, 5\).*1 x 28 x 28"):
        _load(tmp_path / "a.npz", (1, 28, 28))


def test_an_epoch_shows_every_image_once_and_the_next_in_another_order():
    epochs = [
        torch.cat([choose_batch(30, 10, seed=4, step=3 * epoch + step) for step in range(3)]) for epoch in range(3)
    ]
    for order in epochs:
        assert sorted(order.tolist()) == list(range(30))
    assert len({tuple(order.tolist()) for order in epochs}) == 3
    assert not torch.equal(epochs[0][:10], choose_batch(30, 10, seed=5, step=0))


def test_pixels_that_are_no_numbers_are_named_by_their_place(tmp_path):
    images = np.full((20, 6, 5), 0.5, np.float32)
    images[3, 2, 1] = np.nan
    np.savez(tmp_path / "nan.npz", images=images)
    with pytest.raises(DataError, match=r"holds nan at \[3, 2, 1\], one of 1 values that are no finite numbers"):
        _load(tmp_path / "nan.npz")
