"""Hugging Face data sets, written by the library itself and read without the network."""

import contextlib
import socket
import sys
import threading

import numpy as np
import pytest
from pictures import encode, pixels, write_folder

from kaem.errors import DataError
from kaem_train.config import DataConfig
from kaem_train.data import load_dataset

TRAIN, TEST = pixels(), pixels(5, seed=1)


@pytest.fixture(scope="module")
def datasets():
    return pytest.importorskip("datasets", reason="needs the extra: pip install 'kaem[hub]'")


def _table(datasets, images):
    features = datasets.Features({"label": datasets.Value("int64"), "picture": datasets.Image()})
    rows = {"label": [0] * len(images), "picture": [{"bytes": encode(image), "path": None} for image in images]}
    return datasets.Dataset.from_dict(rows, features=features)


def _load(path):
    return load_dataset(DataConfig(source="files", path=str(path), image_shape=(3, 8, 6), num_holdout=2))


@pytest.fixture
def same(tmp_path):
    np.savez(tmp_path / "split.npz", images_train=TRAIN, images_test=TEST)
    np.savez(tmp_path / "whole.npz", images=TRAIN)
    return {name: _load(tmp_path / f"{name}.npz").fingerprint for name in ("split", "whole")}


def test_a_saved_data_set_has_its_own_split(datasets, tmp_path, same):
    both = datasets.DatasetDict(train=_table(datasets, TRAIN), test=_table(datasets, TEST))
    both.save_to_disk(tmp_path / "saved")
    assert _load(tmp_path / "saved").fingerprint == same["split"]


def test_a_saved_table_is_split_by_us(datasets, tmp_path, same):
    _table(datasets, TRAIN).save_to_disk(tmp_path / "saved")
    assert _load(tmp_path / "saved").fingerprint == same["whole"]


@pytest.mark.parametrize("below", ["", "data/"])
def test_a_folder_of_parquet_files_has_the_split_of_their_names(datasets, tmp_path, same, below):
    (tmp_path / "set" / below).mkdir(parents=True)
    for name, images in (("train", TRAIN), ("test", TEST)):
        _table(datasets, images).to_parquet(tmp_path / "set" / f"{below}{name}-00000-of-00001.parquet")
    assert _load(tmp_path / "set").fingerprint == same["split"]


def test_one_parquet_file_is_a_set(datasets, tmp_path, same):
    _table(datasets, TRAIN).to_parquet(tmp_path / "a.parquet")
    assert _load(tmp_path / "a.parquet").fingerprint == same["whole"]


def test_a_damaged_image_is_named_by_split_and_number(datasets, tmp_path):
    features = datasets.Features({"image": datasets.Image()})
    contents = (encode(TRAIN[0]), b"\x89PNG damaged", encode(TRAIN[1]))
    rows = {"image": [{"bytes": content, "path": None} for content in contents]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=r"train/000000001 in .*saved"):
        _load(tmp_path / "saved")


def test_a_truncated_table_is_an_error(datasets, tmp_path):
    _table(datasets, TRAIN).save_to_disk(tmp_path / "saved")
    (table,) = (tmp_path / "saved").glob("*.arrow")
    content = table.read_bytes()
    table.unlink()
    table.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=str(tmp_path / "saved")):
        _load(tmp_path / "saved")


def test_what_cannot_be_loaded_is_named_with_what_to_do(datasets, tmp_path):
    datasets.Dataset.from_dict({"label": [1, 2]}).save_to_disk(tmp_path / "labels")
    write_folder(tmp_path, {"broken/state.json": b"{", "broken.parquet": b"PAR1"})
    cases = ("labels", "broken", "broken.parquet")
    for path in (*(str(tmp_path / name) for name in cases), "hf:kaem-tests/absent", "hf:kaem-tests/absent/config"):
        with pytest.raises(DataError) as caught:
            _load(path)
        assert path in caught.value.message, path
        assert caught.value.hint, path


def test_a_hub_that_does_not_answer_is_asked_once(datasets, monkeypatch):
    import huggingface_hub

    asked = []
    with socket.create_server(("127.0.0.1", 0)) as hub:

        def hang_up():
            with contextlib.suppress(OSError):  # the socket is closed at the end
                while True:
                    connection, _ = hub.accept()
                    asked.append(connection.recv(1))
                    connection.close()

        listener = threading.Thread(target=hang_up)
        listener.start()
        address = f"http://127.0.0.1:{hub.getsockname()[1]}"
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", address)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        with pytest.raises(DataError, match="hf:kaem-tests/absent") as caught:
            _load("hf:kaem-tests/absent")
        hub.shutdown(socket.SHUT_RDWR)
        listener.join()
    assert asked == [b"H"]
    assert "network" in caught.value.hint
    assert datasets.config.HF_HUB_OFFLINE is False


def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"hf:ylecun/mnist.*kaem\[hub\]"):
        _load("hf:ylecun/mnist")


def _table_of_two(datasets, names):
    kinds = {name: datasets.Image() for name in names}
    rows = {name: [{"bytes": encode(image), "path": None} for image in TRAIN] for name in names}
    rows[names[-1]] = [{"bytes": encode(255 - image), "path": None} for image in TRAIN]
    return datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))


def _load_column(path, column=""):
    config = DataConfig(source="files", path=str(path), image_shape=(3, 8, 6), num_holdout=2, column=column)
    return load_dataset(config)


def test_of_several_image_columns_one_is_named_or_called_image(datasets, tmp_path, same):
    _table_of_two(datasets, ["sketch", "photo"]).save_to_disk(tmp_path / "two")
    with pytest.raises(DataError, match="has several image columns: sketch, photo") as caught:
        _load_column(tmp_path / "two")
    assert "data.column=sketch" in caught.value.hint
    chosen = _load_column(tmp_path / "two", "sketch")
    assert chosen.fingerprint == same["whole"] != _load_column(tmp_path / "two", "photo").fingerprint
    assert "column sketch" in chosen.summary
    with pytest.raises(DataError, match=r"no image column 'image'; its image columns are: sketch, photo"):
        _load_column(tmp_path / "two", "image")
    _table_of_two(datasets, ["image", "mask"]).save_to_disk(tmp_path / "usual")
    assert _load_column(tmp_path / "usual").fingerprint == same["whole"]


def test_a_third_split_is_neither_trained_on_nor_held_out(datasets, tmp_path, same):
    parts = {"train": TRAIN, "test": TEST, "extra": TEST}
    datasets.DatasetDict({name: _table(datasets, images) for name, images in parts.items()}).save_to_disk(
        tmp_path / "saved"
    )
    found = _load(tmp_path / "saved")
    assert found.fingerprint == same["split"]
    assert "beside the split: 5 extra" in found.summary
