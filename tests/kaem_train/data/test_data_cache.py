"""Image files are decoded once; the cache is never stale, never half written, and may be deleted."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import encode, files, pixels, write_folder, write_tar

from kaem.errors import DataError
from kaem_train.config import DataConfig
from kaem_train.data import load_dataset


class _Count:
    """How many images were decoded."""

    def __init__(self):
        self.calls = []

    def __call__(self, done, total):
        self.calls.append((done, total))


def _load(path, **settings):
    settings = {"image_shape": (3, 8, 6), "num_holdout": 2, **settings}
    count = _Count()
    data = load_dataset(DataConfig(source="files", path=str(path), **settings), progress=count)
    return data, len(count.calls)


def test_images_are_decoded_once(tmp_path):
    path = write_tar(tmp_path / "a.tar", files(pixels()))
    first, decoded = _load(path)
    again, decoded_again = _load(path)
    assert (decoded, decoded_again) == (12, 0)
    assert first.fingerprint == again.fingerprint
    assert torch.equal(first.train[:], again.train[:])
    moved = path.rename(tmp_path / "b.tar")
    assert _load(moved)[1] == 0


def test_progress_counts_up_to_all(tmp_path):
    count = _Count()
    path = write_folder(tmp_path, files(pixels(4)))
    load_dataset(DataConfig(source="files", path=str(path), image_shape=(3, 8, 6), num_holdout=2), progress=count)
    assert count.calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_train": 11}, "10 images to train on, fewer than data.num_train = 11"),
        ({"num_holdout": 12}, "12 images, too few to hold out 12"),
    ],
)
def test_a_set_that_is_too_small_is_refused_before_it_is_decoded(tmp_path, settings, message):
    count = _Count()
    config = DataConfig(
        source="files",
        path=str(write_tar(tmp_path / "a.tar", files(pixels()))),
        image_shape=(3, 8, 6),
        **{"num_holdout": 2, **settings},
    )
    with pytest.raises(DataError, match=rf"a\.tar holds {message}"):
        load_dataset(config, progress=count)
    assert count.calls == []


def test_other_pixels_or_another_recipe_are_decoded_anew(tmp_path):
    images = pixels()
    folder = write_folder(tmp_path, files(images))
    first, _ = _load(folder)
    small = {"image_shape": (3, 4, 4), "crop": 6}
    assert _load(folder, **small, resize="box")[1] == 12
    assert _load(folder, **small, resize="lanczos")[1] == 12
    images[3, 0, 0, 0] ^= 1
    (folder / "003.png").write_bytes(encode(images[3]))
    changed, decoded = _load(folder)
    assert decoded == 12
    assert changed.fingerprint != first.fingerprint
    (folder / "003.png").rename(folder / "zzz.png")  # another order is another set
    assert _load(folder)[0].fingerprint != changed.fingerprint


def test_how_many_are_held_out_needs_no_decoding(tmp_path):
    folder = write_folder(tmp_path, files(pixels()))
    (few, _), (many, decoded) = _load(folder), _load(folder, num_holdout=5)
    assert decoded == 0
    assert (len(few.holdout), len(many.holdout)) == (2, 5)
    assert few.fingerprint != many.fingerprint


@pytest.mark.parametrize("suffix", [".npy", ".json"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_entry_is_made_again(tmp_path, cache, suffix, damage):
    folder = write_folder(tmp_path, files(pixels()))
    first, _ = _load(folder)
    (entry,) = cache.glob(f"*{suffix}")
    if damage == "cut":
        content = entry.read_bytes()
        entry.unlink()
        entry.write_bytes(content[: len(content) // 2])
    else:
        entry.unlink()
    again, decoded = _load(folder)
    assert decoded == 12
    assert again.fingerprint == first.fingerprint
    assert np.array_equal(again.train.stored, first.train.stored)


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KAEM_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot keep.*KAEM_CACHE_DIR"):
        _load(write_folder(tmp_path / "images", files(pixels())))


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, cache):
    folder = write_folder(tmp_path, files(pixels(40)))
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))\n"
        "from kaem_train.data import load_dataset\n"
        "from kaem_train.config import DataConfig\n"
        "load_dataset(DataConfig(source='files', path=sys.argv[1], image_shape=(3, 8, 6), num_holdout=2))"
    )
    command = [sys.executable, "-B", "-c", code, str(folder)]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    assert "DataError: cannot keep the decoded images" in done.stderr
    assert "File too large" in done.stderr
    assert not list(cache.iterdir())


def test_the_cache_lies_in_the_users_cache_folder_unless_named(tmp_path, monkeypatch):
    monkeypatch.delenv("KAEM_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    _load(write_folder(tmp_path / "images", files(pixels())))
    assert len(list((tmp_path / "xdg" / "kaem").iterdir())) == 2
