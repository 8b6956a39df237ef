from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
from artifacts import write_small_artifact

from kaem.artifact import Manifest


def _export(*words):
    command = [sys.executable, "-m", "cli.main", "export", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_an_artifact_becomes_a_model_of_triton(artifact_path, tmp_path):
    done = _export(artifact_path, "--target", "triton", "-o", tmp_path / "repository")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "repository").iterdir()
    assert done.stdout.strip() == str(folder)
    assert (folder / "1" / "model.onnx").read_bytes() == artifact_path.read_bytes()
    assert "dims: [ 1, 8, 8 ]" in (folder / "config.pbtxt").read_text()


def test_an_engine_needs_tensorrt_and_nothing_is_left_behind(artifact_path, tmp_path):
    if importlib.util.find_spec("tensorrt"):
        pytest.skip("TensorRT is installed here")
    done = _export(artifact_path, "--target", "tensorrt", "-o", tmp_path / "model.engine")
    assert done.returncode == 1
    assert done.stderr.startswith("error: TensorRT cannot be imported")
    assert "pip install 'kaem[tensorrt]'" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_finished_artifact_takes_no_options_of_its_compilation(artifact_path, tmp_path):
    words = ("--target", "triton", "--precision", "float16", "--batch", "8", "-o", tmp_path / "repository")
    done = _export(artifact_path, *words)
    assert done.returncode == 2
    assert "is compiled already, so it is too late for --precision, --batch" in " ".join(done.stderr.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [("--target", "triton", "--profile", "4"), ("--tf32",)])
def test_options_of_engines_are_refused_without_one(artifact_path, words):
    done = _export(artifact_path, *words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --profile and --tf32 are for engines")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--target", "tensorrt", "--device", "cuda"), "--device is for packages of AOTInductor"),
        (("--triton-backend", "tensorrt"), "--triton-backend is for models of Triton"),
        (("--target", "aotinductor", "-o", "package.onnx"), "package.onnx is where the artifact itself goes"),
    ],
)
def test_options_of_another_target_are_refused(artifact_path, words, what):
    done = _export(artifact_path, *words)
    assert done.returncode == 2
    assert what in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("words", "runner"),
    [
        (("--target", "tensorrt"), "TensorRT"),
        (("--target", "triton", "--triton-backend", "tensorrt"), "TensorRT"),
        (("--target", "aotinductor"), "AOTInductor"),
    ],
)
def test_8_bits_are_refused_where_nothing_runs_them_before_the_checkpoint_is_read(tmp_path, words, runner):
    done = _export(tmp_path / "ckpt.pt", "--precision", "int8", *words)
    assert done.returncode == 2
    assert f"{runner} does not run int8 graphs" in " ".join(done.stderr.split())


def test_a_finished_artifact_in_8_bits_becomes_a_model_of_triton_and_no_package(tmp_path):
    manifest = Manifest(
        family="kaem",
        name="small",
        noise_dim=5,
        latent_dim=5,
        image_shape=(1, 8, 8),
        compilation={"precision": "int8"},
    )
    artifact = write_small_artifact(tmp_path / "model.onnx", manifest=manifest)
    done = _export(artifact, "--target", "aotinductor", "-o", tmp_path / "model.pt2")
    assert done.returncode == 2
    assert "AOTInductor does not run int8 graphs" in " ".join(done.stderr.split())
    assert _export(artifact, "--target", "triton", "-o", tmp_path / "repository").returncode == 0
    assert not (tmp_path / "model.pt2").exists()


@pytest.mark.parametrize("text", ["0", "3:2:1", "1:2", "1:2:3:4", "a", "1:8:100000000", "-1", ""])
def test_a_profile_is_three_ascending_sizes_or_one(text):
    from kaem.errors import ConfigError
    from kaem_export.targets.tensorrt import parse_profile

    with pytest.raises(ConfigError, match="LEAST:BEST:MOST"):
        parse_profile(text)
    assert parse_profile("1:64:1024") == (1, 64, 1024)
    assert parse_profile("8") == (8, 8, 8)
