from __future__ import annotations

import pytest

from kaem.errors import RequestError
from kaem.files import replacing


def test_a_finished_file_replaces_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as draft:
        assert draft.suffix == ".txt"
        draft.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ValueError, match="boom"), replacing(path) as draft:
        draft.write_text("half")
        raise ValueError("boom")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_and_a_folder_in_the_way_are_told_before_any_work(tmp_path):
    with pytest.raises(RequestError, match="no folder"), replacing(tmp_path / "none" / "a.txt"):
        pytest.fail("the block must not run")
    with pytest.raises(RequestError, match="is a folder"), replacing(tmp_path):
        pytest.fail("the block must not run")


def test_the_file_gets_ordinary_permissions(tmp_path):
    ordinary, path = tmp_path / "ordinary", tmp_path / "a.txt"
    ordinary.touch()
    with replacing(path) as draft:
        draft.touch()
    assert path.stat().st_mode == ordinary.stat().st_mode
