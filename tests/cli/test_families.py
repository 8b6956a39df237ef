"""A baseline is just another compiled sampler: every command takes it as it takes a KAEM."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from baselines import write_baseline_checkpoint
from command import run_here
from live_server import server_process

KAEM = str(Path(sys.executable).with_name("kaem"))


def _run(*words):
    done = subprocess.run([KAEM, *map(str, words)], capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_baseline_checkpoint(folder / "ckpt.pt", "latent_ebm")
    done = run_here("export", folder / "ckpt.pt", "--steps", 7)
    assert done.returncode == 0, done.stderr
    assert "24 uniforms" in done.stderr
    return folder


def test_a_latent_ebm_is_shown_measured_and_gives_byte_equal_samples_from_a_file_and_a_server(folder, tmp_path):
    model = folder / "model.onnx"
    manifest = json.loads(_run("info", model, "--json").stdout)
    assert (manifest["family"], manifest["noise_dim"], manifest["prior"]["steps"]) == ("latent_ebm", 24, 7)
    with server_process(model, "--port", "0") as server:
        for name, source in (("local", model), ("remote", server.target)):
            done = _run("sample", source, "-n", 30, "--seed", 7, "--start", 5, "-o", tmp_path / f"{name}.npy")
            assert done.returncode == 0, done.stderr
        quick = ("--seconds", "0.05", "--launches", "1", "--threads", "1")
        bench = _run("bench", model, server.target, "--batch", "1,5", *quick)
    assert bench.returncode == 0, bench.stderr
    assert (tmp_path / "local.npy").read_bytes() == (tmp_path / "remote.npy").read_bytes()


def test_an_option_of_another_family_gives_one_line_and_no_file(folder, tmp_path):
    done = run_here("export", folder / "ckpt.pt", "-o", tmp_path / "model.onnx", "--sampler", "ddim")
    assert done.returncode == 2
    assert done.stderr == "error: --sampler ddim: a latent EBM has Langevin chains only\nhint: leave --sampler out\n"
    assert list(tmp_path.iterdir()) == []
