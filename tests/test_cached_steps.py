"""Results are kept as long as nothing that decides them has changed, and not longer."""

from __future__ import annotations

import json

import cached_steps
import pytest
from cached_steps import Step, digest_of_code, is_done, run


def step(folder, *words, **identity):
    return Step(makes=folder / "out.json", words=words or ("info",), identity={"code": {"a": 1}, **identity})


@pytest.fixture
def done(tmp_path):
    """A step that a real command has made."""
    one = step(tmp_path, "info", updates=3)
    one.makes.write_text("made")
    # The command prints and writes no file; the file stands for what it would have left.
    run(one, tmp_path / "log.txt")
    return one


def test_a_step_is_done_until_its_identity_or_its_file_changes(done, tmp_path):
    assert is_done(done)
    assert "$ kaem info" in (tmp_path / "log.txt").read_text()
    assert json.loads(done.record.read_text())["processor_seconds"] > 0
    assert not is_done(step(tmp_path, updates=4))
    other_code = step(tmp_path, updates=3, code={"a": 2})
    assert not is_done(other_code)
    assert is_done(other_code, any_code=True)
    assert not is_done(step(tmp_path, updates=4, code={"a": 2}), any_code=True)
    newer = step(tmp_path, updates=3, code={"a": 2}, added="setting")
    assert not is_done(newer)
    assert is_done(newer, any_code=True)
    done.makes.write_text("changed")
    assert not is_done(done)


def test_a_failing_command_leaves_no_record(tmp_path):
    one = step(tmp_path, "info", "none.onnx")
    with pytest.raises(SystemExit, match="failed with 2"):
        run(one, tmp_path / "log.txt")
    assert not one.record.exists()
    assert not is_done(one)


def test_the_digest_of_code_sees_code_and_not_comments(tmp_path, monkeypatch):
    monkeypatch.setattr(cached_steps, "ROOT", tmp_path)
    module = tmp_path / "code" / "a.py"
    module.parent.mkdir()

    def digest(text):
        module.write_text(text)
        return digest_of_code(["code"])

    first = digest('"""Docs."""\n\ndef f(x):\n    """Return it."""\n    return x\n')
    assert digest("# a comment\ndef f(x):\n    '''Other docs.'''\n    return (x)\n") == first
    assert digest("def f(x):\n    return -x\n") != first
    (tmp_path / "code" / "left").mkdir()
    (tmp_path / "code" / "left" / "b.py").write_text("1\n")
    assert digest_of_code(["code"], without=["code/left"]) != digest_of_code(["code"])


def test_the_digest_of_a_folder_that_is_not_there_is_an_error():
    with pytest.raises(FileNotFoundError, match="kaem_train/baselines"):
        digest_of_code(["kaem_export", "kaem_train/baselines"])
