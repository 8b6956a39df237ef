"""Commands in surroundings that nobody chose: terminals without UTF-8, disks without room, readers that have left."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
from artifacts import write_small_artifact
from command import run_here

from kaem_train.checkpoint import read_checkpoint

KAEM = (sys.executable, "-c", "from cli.main import main; main()")
TINY = ("--updates", "2", "--set", "refit.kind=none", "--set", "prior.num_latents=2", "--set", "prior.num_components=2")
TRAIN = ("train", "digits", *TINY, "--set", "generator.channels=[4]", "-o", "run")


def _run(folder, *words, **environment):
    env = {**os.environ, **environment}
    return subprocess.run([*KAEM, *map(str, words)], cwd=folder, env=env, capture_output=True, check=False, timeout=200)


@contextlib.contextmanager
def _no_file_beyond(size):
    """Let this process, in which commands run, write no file that is larger, as on a disk without room."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a finished run of two updates."""
    folder = tmp_path_factory.mktemp("finished")
    done = run_here(*TRAIN, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


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


def test_a_disk_without_room_is_one_line_and_the_old_file_stays(finished, tmp_path):
    shutil.copytree(finished / "run", tmp_path / "run")
    before = (tmp_path / "run" / "ckpt.pt").read_bytes()
    model = write_small_artifact(tmp_path / "model.onnx")
    assert run_here("sample", model, "-n", 900, "-o", "a.npy", cwd=tmp_path).returncode == 0
    sheet = (tmp_path / "a.npy").read_bytes()
    for words in (
        (*TRAIN, "--force"),
        ("sample", model, "-n", "900", "-o", "a.npy"),
        ("export", "run/ckpt.pt", "-o", "b.onnx"),
    ):
        with _no_file_beyond(8192):
            done = run_here(*words, cwd=tmp_path)
        lines = [line for line in done.stderr.splitlines() if line.startswith(("error:", "Traceback"))]
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


def test_a_finished_run_can_be_trained_on(finished, tmp_path):
    shutil.copytree(finished / "run", tmp_path / "run")
    again = list(TRAIN)
    again[again.index("--updates") + 1] = "9"
    done = run_here(*again, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "update 2 to 9" in done.stderr
    checkpoint = read_checkpoint(tmp_path / "run" / "ckpt.pt")
    assert checkpoint.step == 9
    assert round(checkpoint.config.posterior.prior_from * 9) == round(0.6 * 2)  # it begins once
    fewer = run_here(*TRAIN, "--resume", cwd=tmp_path)
    assert fewer.returncode == 2
    assert "training.updates: 9, now 2" in fewer.stderr
    assert run_here(*again, "--resume", cwd=tmp_path).returncode == 0


def test_ctrl_c_is_one_line_and_leaves_nothing_half_written(tmp_path):
    path = write_small_artifact(tmp_path / "model.onnx")
    folder = tmp_path / "out"
    folder.mkdir()
    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    process = subprocess.Popen(
        [*KAEM, "sample", str(path), "-n", "4000000", "-o", "a.npy"],
        cwd=folder,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    signal.signal(signal.SIGINT, former)
    until = time.monotonic() + 60
    while not list(folder.iterdir()):  # its draft
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out, err.splitlines()[-1:]) == (130, b"", [b"interrupted"])
    assert b"Traceback" not in err
    assert list(folder.iterdir()) == []
