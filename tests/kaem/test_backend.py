from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

CHECK = """
import sys
sys.path[:] = {paths!r} + [path for path in sys.path if {keep} and path]
from kaem.backend import installed_runtime
from kaem.errors import BackendError
try:
    print(installed_runtime())
except BackendError as error:
    print(error.message, "|", error.hint)
"""


def _check(paths, *, keep):
    code = CHECK.format(paths=[str(path) for path in paths], keep=keep)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def _distribution(folder, name):
    info = folder / f"{name.replace('-', '_')}-1.99.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.99.0\n")


def test_with_no_runtime_the_hint_is_what_to_install():
    # Only the standard library and the project itself: no site-packages, so no distribution is found.
    stdlib = [path for path in sys.path if path and "site-packages" not in path and Path(path) != ROOT]
    said = _check([ROOT, *stdlib], keep=False)
    assert "no ONNX Runtime is installed" in said
    assert "pip install 'kaem[cpu]'" in said


def test_with_both_runtimes_the_hint_is_the_exact_repair(tmp_path):
    _distribution(tmp_path, "onnxruntime")
    _distribution(tmp_path, "onnxruntime-gpu")
    said = _check([tmp_path], keep=True)
    assert "both installed" in said
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'kaem[cpu]'" in said


def test_with_one_runtime_its_name_and_version_are_reported():
    assert "Runtime(distribution='onnxruntime" in _check([], keep=True)
