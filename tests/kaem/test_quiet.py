"""Sampling tells nobody anything: ONNX Runtime's own telemetry is off, and leaves no file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnxruntime

CODE = """
import sys
import kaem
with kaem.load(sys.argv[1]) as sampler:
    sampler.sample(3, 0)
"""


def test_the_runtime_keeps_no_identifier_and_no_events_in_the_home_folder(artifact_path, tmp_path):
    passed_on = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "OMP_NUM_THREADS")  # not CI, which switches it off as well
    environment = {key: value for key, value in os.environ.items() if key in passed_on} | {"HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", CODE, artifact_path], env=environment, check=True)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_runtime_still_knows_the_switch_that_kaem_sets():
    libraries = Path(onnxruntime.__file__).parent.joinpath("capi").glob("onnxruntime_pybind11_state*")
    assert any(b"ORT_DISABLE_TELEMETRY" in library.read_bytes() for library in libraries)
    assert os.environ["ORT_DISABLE_TELEMETRY"]
