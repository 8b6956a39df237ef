"""Latents are read without running code, checked, and split by the seed; a wrong file is one clear line."""

import gzip
import io
import pickle
import zipfile

import numpy as np
import pytest
import torch

from kaem.errors import ConfigError, DataError
from kaem_train.fitting.latents import read_latents


def _latents(rows=200, columns=3):
    return np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)


def _write(path, array):
    np.save(path, array)
    return path


def test_every_row_is_in_one_part_and_the_seed_decides_in_which(tmp_path):
    array = _latents()
    path = _write(tmp_path / "z.npy", array)
    split = read_latents(path, holdout=0.2, seed=1)
    parts = [part.numpy() for part in (split.fitted, split.choosing, split.scored)]
    assert [len(part) for part in parts] == [160, 20, 20]
    assert np.array_equal(np.sort(np.concatenate(parts), axis=0), np.sort(array, axis=0))
    again, other = read_latents(path, holdout=0.2, seed=1), read_latents(path, holdout=0.2, seed=2)
    assert np.array_equal(again.scored, split.scored)
    assert not np.array_equal(other.scored, split.scored)
    assert split.num_rows == 200
    assert split.fingerprint == again.fingerprint
    assert split.fingerprint != read_latents(_write(tmp_path / "w.npy", array + 1), holdout=0.2, seed=1).fingerprint


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f8"])
def test_other_floats_and_images_of_one_pixel_are_taken(tmp_path, dtype):
    array = _latents().astype(dtype)
    path = _write(tmp_path / "z.npy", np.asfortranarray(array)[:, :, None, None])
    fitted = read_latents(path, holdout=0.2, seed=0).fitted.numpy()
    assert fitted.dtype == np.float32
    assert set(map(tuple, fitted)) <= set(map(tuple, array.astype(np.float32)))


class _Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def _with(row, column, value):
    array = _latents().astype(np.float64)
    array[row, column] = value
    return array


def _archive():
    buffer = io.BytesIO()
    np.savez(buffer, z=_latents())
    return buffer.getvalue()


def _zip():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("notes.txt", "latents")
    return buffer.getvalue()


def _of_torch():
    buffer = io.BytesIO()
    torch.save(torch.from_numpy(_latents()), buffer)
    return buffer.getvalue()


def _bytes(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


_SAFE = b'{"z":{"dtype":"F32","shape":[5,5],"data_offsets":[0,100]}}'

WRONG = {
    "a table": (b"0.5,1.25\n-3,4e-2\n", "cannot read .*: it is text"),
    "empty file": (b"", "it is empty"),
    "a pickle": (pickle.dumps(_Trap()), "it is a pickle, which is not read"),
    "of torch": (_of_torch(), "it was saved by torch"),
    "a zip": (_zip(), "it is a zip archive, not an array"),
    "of HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "it is of HDF5"),
    "another binary": (b"\x89ABC\r\n\x1a\n" + bytes(99), "does not begin as a .npy array does"),
    "pickled objects": (_bytes(np.array([_Trap()], dtype=object)), "holds Python objects, which are not read"),
    "cut short": (_bytes(_latents())[:-100], "is cut short: it holds fewer numbers than its header says"),
    "a header cut short": (_bytes(_latents()).replace(b"(200, 3), }", b"(200, 3.   "), "cannot read"),
    "an empty archive": (b"PK\x05\x06" + bytes(18), "it is a zip archive, not an array"),
    "of MATLAB": (b"MATLAB 5.0 MAT-file, Platform: GLNXA64" + b" " * 200, "it is of MATLAB"),
    "packed": (gzip.compress(_bytes(_latents()), mtime=0), "it is packed"),
    "of safetensors": (len(_SAFE).to_bytes(8, "little") + _SAFE + bytes(99), "it is of safetensors"),
    "JSON": (b"[[0.5, 1.0], [2.0, 3.0]]\n", "it is JSON"),
    "text of 16 bits": ("0.5,1.25\n".encode("utf-16"), "it is text"),
    "an archive": (_archive(), "is an .npz archive of 1 array, not one array"),
    "whole numbers": (_bytes(np.zeros((200, 3), np.int64)), "holds int64, not floating point numbers"),
    "one axis": (_bytes(np.zeros(200)), r"has shape \(200,\), not \(images, latents\)"),
    "no numbers": (_bytes(np.zeros((200, 0))), r"has shape \(200, 0\)"),
    "maps that are too large": (_bytes(np.zeros((5, 4, 32, 32))), "has 4096 latents per image, more than 2048"),
    "too long": (_bytes(np.zeros((5, 3000))), "has 3000 latents per image, more than 2048"),
    "few rows": (_bytes(_latents(99)), "holds 99 latents of 3 numbers, 20 held out: too few"),
    "fewer rows than numbers": (_bytes(_latents(150, 80)), "150 latents of 80 numbers"),
    "not a number": (_bytes(_with(7, 2, np.nan)), "holds nan at row 7, column 2"),
    "beyond float32": (_bytes(_with(7, 2, 1e200)), r"holds 1e\+200 at row 7, column 2, too large for float32"),
    "below float32": (_bytes(1e-300 * _latents().astype(np.float64)), "latent 0 runs from -.*, which is one number in"),
    "one of them below": (
        _bytes(_latents().astype(np.float64) * [1, 1e-300, 1]),
        "latent 1 runs from -.*e-300 to .*, which is one number in float32",
    ),
    "beside a large number": (_bytes(1e9 + _latents().astype(np.float64)), "latent 0 runs from 1e.09 to 1e.09, which"),
    "one row": (_bytes(_latents(1)), "holds 1 latent of 3 numbers"),
    "constant": (_bytes(_latents() * np.float32([1, 0, 1])), "latent 1 has the same value in every row"),
    "far away": (_bytes(_latents() + np.float32([0, 0, 500])), "latent 2 has mean (499|500)"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_that_cannot_be_fitted_is_refused_with_what_is_wrong(kind, tmp_path):
    content, message = WRONG[kind]
    path = tmp_path / "z.npy"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_latents(path, holdout=0.2, seed=0)
    assert str(path) in caught.value.message
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_a_missing_file_and_an_impossible_share_are_refused(tmp_path):
    with pytest.raises(DataError, match="no latents at"):
        read_latents(tmp_path / "absent.npy", holdout=0.2, seed=0)
    path = _write(tmp_path / "z.npy", _latents())
    for share in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="outside"):
            read_latents(path, holdout=share, seed=0)


def test_a_hint_names_the_call_that_makes_the_array(tmp_path):
    hints = {
        "z.csv": (b"1,2\n3,4\n", "numpy.loadtxt('z.csv'"),
        "z.npz": (_archive(), "numpy.load('z.npz')['z']"),
        "flat.npy": (_bytes(_latents(200, 1)[:, 0]), "latents.reshape(-1, 1)"),
        "turned.npy": (_bytes(_latents().T), "latents.T"),
        "objects.npy": (_bytes(np.array([[1.0], [1.0, 2.0]], dtype=object)), "numpy.stack(latents)"),
        "whole.npy": (_bytes(np.zeros((200, 3), np.int64)), "latents.astype(numpy.float32)"),
        "complex.npy": (_bytes(np.zeros((200, 3), np.complex64)), "the numbers that the decoder takes"),
        "small.npy": (_bytes(1e-300 * _latents().astype(np.float64)), "multiply the latents by a constant"),
        "large.npy": (_bytes(1e300 * _latents().astype(np.float64)), "multiply the latents by a constant"),
        "far.npy": (_bytes(1e9 + _latents().astype(np.float64)), "subtract the mean"),
    }
    for name, (content, words) in hints.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_latents(tmp_path / name, holdout=0.2, seed=0)
        assert words in caught.value.hint


def test_latents_that_are_images_become_rows_and_keep_their_shape_in_mind(tmp_path):
    array = _latents(200, 24).reshape(200, 2, 3, 4)
    flat = read_latents(_write(tmp_path / "flat.npy", array.reshape(200, 24)), holdout=0.2, seed=0)
    for stored in (array, np.asfortranarray(array)):
        found = read_latents(_write(tmp_path / "z.npy", stored), holdout=0.2, seed=0)
        assert (found.shape, flat.shape) == ((2, 3, 4), ())
        assert torch.equal(found.fitted, flat.fitted)
