"""`kaem train`: the checkpoint's path on stdout, words on stderr, mistakes as errors, Ctrl-C as exit 130."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from cli.train import train
from kaem.errors import ArtifactError, ConfigError, DataError
from kaem_train.checkpoint import read_checkpoint

SMALL = ("--updates", "6", "--set", "training.batch_size=16", "--set", "generator.dense=8")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run(*words):
    app = typer.Typer()
    app.command("train")(train)
    return CliRunner().invoke(app, list(words))


def _error(*words):
    return _run(*words).exception


def test_it_prints_the_path_of_the_checkpoint_and_nothing_else_on_stdout():
    result = _run("digits", *SMALL)
    assert result.exit_code == 0, result.exception
    assert result.stdout == "runs/digits/ckpt.pt\n"
    assert "1500 images to train on, 297 held out" in result.stderr
    assert "nats per image" in result.stderr
    assert read_checkpoint(Path("runs/digits/ckpt.pt")).step == 6


def test_an_existing_run_is_not_overwritten_by_accident():
    _run("digits", *SMALL, "-o", "here")
    error = _error("digits", *SMALL, "-o", "here")
    assert isinstance(error, ArtifactError)
    assert "--resume" in error.hint
    assert "--force" in error.hint
    assert _run("digits", *SMALL, "-o", "here", "--resume").exit_code == 0
    assert _run("digits", *SMALL, "-o", "here", "--force").exit_code == 0
    assert isinstance(_error("digits", "-o", "here", "--resume", "--force"), ConfigError)


def test_files_are_given_with_data(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    path = tmp_path / "my = images.npz"
    np.savez(path, images_train=images, images_test=images[:5])
    small = ["--set", "training.batch_size=8", "--set", "prior.num_components=8"]
    result = _run("mnist", "--data", str(path), "--updates", "2", *small)
    assert result.exit_code == 0, result.exception
    assert "40 images to train on, 5 held out" in result.stderr


def test_user_mistakes_are_kaem_errors(folder):
    (folder / "file").write_text("")
    assert isinstance(_error("digits", "-o", "file"), ArtifactError)
    assert isinstance(_error("mnist"), DataError)
    assert isinstance(_error("mnist", "--data", "absent.npz"), DataError)
    assert isinstance(_error("digit"), ConfigError)
    assert isinstance(_error("digits", "--set", "training.sed=1"), ConfigError)
    assert isinstance(_error("digits", "--updates", "0"), ConfigError)
    assert isinstance(_error("digits", "--resume"), ArtifactError)
    assert isinstance(_error("digits", "--data", "absent.npz"), DataError)


def test_help_shows_examples_without_loading_torch():
    result = _run("--help")
    assert "kaem train mnist --data" in result.stdout
    code = "import sys, cli.train; assert 'torch' not in sys.modules and 'kaem_train' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=_root())


def _root():
    return Path(__file__).parents[2]


def test_ctrl_c_saves_says_how_to_go_on_and_exits_130(folder):
    code = "import typer; from cli.train import train; typer.run(train)"
    words = ["digits", "--updates", "1000000", "--set", "training.log_every=1", "-o", "my run"]
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(_root())},
    )
    lines = [process.stderr.readline()]
    while "update 1/" not in lines[-1]:
        lines.append(process.stderr.readline())
        assert lines[-1], "".join(lines)
    os.kill(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == "my run/ckpt.pt\n"
    assert "kaem train digits --out 'my run' --updates 1000000 --set training.log_every=1 --resume" in stderr
    assert "Traceback" not in stderr
    assert read_checkpoint(folder / "my run" / "ckpt.pt").step >= 1
