"""`kaem train`: the checkpoint's path on stdout, words on stderr, mistakes as errors, Ctrl-C as exit 130."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from pictures import files, pixels, write_folder, write_tar
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
    assert "1,425 images to train on, 75 set aside to judge the final refit, 297 held out" in result.stderr
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


def test_a_run_that_cannot_start_touches_neither_an_old_run_nor_the_disk(folder):
    _run("digits", *SMALL, "-o", "here")
    before = (folder / "here" / "ckpt.pt").read_bytes()
    impossible = ("--set", "training.batch_size=100000")
    assert isinstance(_error("digits", "-o", "here", "--force", *impossible), DataError)
    assert (folder / "here" / "ckpt.pt").read_bytes() == before
    assert isinstance(_error("digits", "-o", "there", *impossible), DataError)
    assert not (folder / "there").exists()


def test_a_family_has_a_folder_of_its_own_and_says_what_it_overrides():
    result = _run("digits", "--family", "vae", *SMALL)
    assert result.exit_code == 0, result.exception
    assert result.stdout == "runs/digits-vae/ckpt.pt\n"
    assert "of [prior], only num_latents is used" in result.stderr
    assert read_checkpoint(Path("runs/digits-vae/ckpt.pt")).config.family == "vae"
    assert "IWAE" not in result.stderr
    weighted = _run("digits", "--family", "vae", *SMALL, "--force", "--set", "posterior.kind=weighted_bound")
    assert "posterior.kind = weighted_bound makes it an importance-weighted one (IWAE)" in weighted.stderr
    assert isinstance(_error("digits", "--family", "gan"), ConfigError)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("latent-ebm", ("latent_ebm.prior_steps=3", "latent_ebm.posterior_steps=2")),
        ("ddpm", ("diffusion.channels=[8, 8]", "diffusion.sampling_steps=2")),
    ],
)
def test_a_family_without_a_likelihood_says_so_and_finishes(family, settings):
    words = ["digits", "--family", family, "--updates", "50", "--set", "training.batch_size=16"]
    result = _run(*words, *(word for setting in settings for word in ("--set", setting)))
    assert result.exit_code == 0, result.exception
    assert result.stdout == f"runs/digits-{family}/ckpt.pt\n"
    assert "no held-out bound" in result.stderr


def test_files_are_given_with_data(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    path = tmp_path / "my = images.npz"
    np.savez(path, images_train=images, images_test=images[:5])
    small = ["--set", "training.batch_size=8", "--set", "prior.num_components=8"]
    result = _run("mnist", "--data", str(path), "--updates", "2", *small)
    assert result.exit_code == 0, result.exception
    assert "38 images to train on, 2 set aside to judge the final refit, 5 held out" in result.stderr


def test_an_archive_of_images_is_decoded_once_and_a_run_on_it_resumes(tmp_path, monkeypatch):
    monkeypatch.setenv("KAEM_CACHE_DIR", str(tmp_path / "cache"))
    path = write_tar(tmp_path / "digits.tar.gz", files(pixels(20, (28, 28, 3))), "w:gz")
    words = ["mnist", "--data", str(path), "--set", "training.batch_size=8", "--set", "data.num_holdout=4"]
    words += ["--set", "data.convert_colour=true", "--set", "data.augment_flip=true", "--set", "generator.dense=8"]
    words += ["--set", "prior.num_components=8"]
    first = _run(*words, "--updates", "2")
    assert first.exit_code == 0, first.exception
    assert "decoded 20/20 images" in first.stderr
    assert "16 images to train on, 4 held out" in first.stderr
    again = _run(*words, "--updates", "2", "--resume")
    assert again.exit_code == 0, again.exception
    assert "decoded" not in again.stderr


def test_a_bad_image_is_one_line_with_a_hint_and_exit_2(tmp_path):
    folder = write_folder(tmp_path / "faces", {**files(pixels(4, (28, 28))), "cut.png": b"\x89PNG\r\n\x1a\n"})
    enough = ("--set", "data.num_holdout=2")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "cli.main", "train", "mnist", "--data", str(folder), *enough],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(_root()), "KAEM_CACHE_DIR": str(tmp_path / "cache")},
    )
    assert done.returncode == 2
    assert done.stdout == ""
    error, hint = [line for line in done.stderr.splitlines() if not line.startswith("decoded")]
    assert error.startswith(f"error: cut.png in {folder} is")
    assert hint.startswith("hint: ")


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
