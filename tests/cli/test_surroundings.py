"""Commands in surroundings that nobody chose: terminals without UTF-8, disks without room, readers that have left."""

import os
import resource
import subprocess
import sys

import pytest
from artifacts import write_small_artifact

from kaem_train.checkpoint import read_checkpoint

KAEM = (sys.executable, "-c", "from cli.main import main; main()")
TINY = ("--updates", "2", "--set", "refit.kind=none", "--set", "prior.num_latents=2", "--set", "prior.num_components=2")
TRAIN = ("train", "digits", *TINY, "--set", "generator.channels=[4]", "-o", "run")


def _run(folder, *words, limit=None, **environment):
    def bound():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    env = {**os.environ, "KAEM_CACHE_DIR": str(folder / "cache"), **environment}
    return subprocess.run(
        [*KAEM, *map(str, words)],
        cwd=folder,
        env=env,
        capture_output=True,
        check=False,
        preexec_fn=bound if limit else None,
        timeout=200,
    )


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "cp1252", "COLUMNS": "60"},
    ],
)
def test_a_terminal_without_utf8_gets_other_characters(tmp_path, environment):
    path = write_small_artifact(tmp_path / "modèl.onnx")
    for words in (("info", path), ("info",), ("sample", path, "-n", 4, "-o", "gitter.png"), ("--help",)):
        done = _run(tmp_path, *words, **environment)
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stdout + done.stderr
    missing = _run(tmp_path, "info", "grün–.onnx", **environment)
    assert missing.returncode == 2
    assert missing.stderr.startswith(b"error: ")


def test_a_file_name_that_is_no_utf8_comes_out_as_it_went_in(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    path = write_small_artifact(tmp_path / "model.onnx")
    done = _run(tmp_path, "sample", path, "-n", 4, "-o", name)
    assert done.returncode == 0, done.stderr
    assert b"caf\xe9.png" in done.stdout


@pytest.mark.slow
def test_a_disk_without_room_is_one_line_and_the_old_file_stays(tmp_path):
    assert _run(tmp_path, *TRAIN).returncode == 0
    before = (tmp_path / "run" / "ckpt.pt").read_bytes()
    model = write_small_artifact(tmp_path / "model.onnx")
    assert _run(tmp_path, "sample", model, "-n", 900, "-o", "a.npy").returncode == 0
    sheet = (tmp_path / "a.npy").read_bytes()
    for words in (
        (*TRAIN, "--force"),
        ("sample", model, "-n", "900", "-o", "a.npy"),
        ("export", "run/ckpt.pt", "-o", "b.onnx"),
    ):
        done = _run(tmp_path, *words, limit=8192)
        lines = [line for line in done.stderr.decode().splitlines() if line.startswith(("error:", "Traceback"))]
        assert done.returncode in (1, 2), (words, done.stderr)
        assert len(lines) == 1, (words, done.stderr)
        assert "too large" in lines[0], lines
    assert (tmp_path / "run" / "ckpt.pt").read_bytes() == before
    assert (tmp_path / "a.npy").read_bytes() == sheet
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".onnx") == ["model.onnx"]


def test_a_reader_that_has_left_is_no_traceback(tmp_path):
    path = write_small_artifact(tmp_path / "model.onnx")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*KAEM, "info", str(path), "--json"], stdout=writer, stderr=subprocess.PIPE, check=False, timeout=100
    )
    os.close(writer)
    assert done.returncode != 0
    assert b"Traceback" not in done.stderr


@pytest.mark.slow
def test_a_finished_run_can_be_trained_on(tmp_path):
    assert _run(tmp_path, *TRAIN).returncode == 0
    again = list(TRAIN)
    again[again.index("--updates") + 1] = "9"
    done = _run(tmp_path, *again, "--resume")
    assert done.returncode == 0, done.stderr
    assert "update 2 to 9" in done.stderr.decode()
    checkpoint = read_checkpoint(tmp_path / "run" / "ckpt.pt")
    assert checkpoint.step == 9
    assert round(checkpoint.config.posterior.prior_from * 9) == round(0.6 * 2)  # it begins once
    fewer = _run(tmp_path, *TRAIN, "--resume")
    assert fewer.returncode == 2
    assert "training.updates: 9, now 2" in fewer.stderr.decode()
    assert _run(tmp_path, *again, "--resume").returncode == 0
