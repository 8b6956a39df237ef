from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from kaem.engines import session
from kaem.engines.gpu import Gpu
from kaem.engines.providers import PROVIDERS
from kaem.engines.session import build_id, open_session
from kaem.errors import BackendError

ROOT = Path(__file__).parents[3]
_OTHER = "AzureExecutionProvider"

CHECK = """
import sys
sys.path[:] = {paths!r} + [path for path in sys.path if {keep} and path]
from kaem.engines.session import installed_runtime
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


@pytest.mark.skipif(
    _OTHER not in onnxruntime.get_available_providers(), reason="this ONNX Runtime has no such provider"
)
def test_a_graph_that_a_provider_leaves_to_the_processor_is_told_from_a_machine_that_lacks_something(
    artifact_path, monkeypatch
):
    """With the one other provider of ONNX Runtime for processors, which has no kernel at all."""
    monkeypatch.setitem(PROVIDERS, "cuda", _OTHER)
    monkeypatch.setattr(session, "cuda_options", lambda _: {})
    with pytest.raises(BackendError, match="assigned to the default CPU EP") as caught:
        open_session(artifact_path.read_bytes(), "cuda", source="model.onnx")
    assert "without --precision int8" in caught.value.hint


@pytest.fixture
def gpus(monkeypatch):
    """Two of one model and one of another, as their driver would describe them."""
    found = [Gpu("NVIDIA H200", "580.1"), Gpu("NVIDIA H200", "580.1"), Gpu("NVIDIA A100", "580.1")]
    monkeypatch.setattr(session, "installed_gpu", lambda device: found[device])
    return found


def test_bits_of_a_gpu_belong_to_its_model_driver_and_kernels_not_to_its_number(gpus, monkeypatch):
    first, second, other = (build_id(b"", "cuda", number) for number in range(3))
    assert first == second != other
    gpus[0] = Gpu("NVIDIA H200", "581.0")
    assert build_id(b"", "cuda") != second
    before = build_id(b"", "cuda", 1)
    monkeypatch.setattr(session, "kernel_libraries", lambda: ("nvidia-cudnn-cu13 9.99",))
    assert build_id(b"", "cuda", 1) != before


def test_bits_of_the_tensorrt_provider_belong_to_the_engines_that_were_built_here(gpus, monkeypatch, tmp_path):
    monkeypatch.setenv("KAEM_CACHE_DIR", str(tmp_path / "one"))
    mine = {build_id(b"model", "ort-tensorrt") for _ in range(3)}
    assert len(mine) == 1
    assert build_id(b"another model", "ort-tensorrt") not in mine
    assert build_id(b"model", "ort-tensorrt", 2) not in mine
    monkeypatch.setenv("KAEM_CACHE_DIR", str(tmp_path / "two"))
    assert build_id(b"model", "ort-tensorrt") not in mine
    assert not list(tmp_path.rglob(".kaem-build*"))


def test_of_two_runtimes_in_folders_of_their_own_the_imported_one_is_reported(tmp_path):
    for name in ("onnxruntime", "onnxruntime-gpu"):
        _distribution(tmp_path / name, name)
    for first, second in (("onnxruntime", "onnxruntime-gpu"), ("onnxruntime-gpu", "onnxruntime")):
        said = _check([tmp_path / first, tmp_path / second], keep=True)
        assert f"Runtime(distribution='{first}', version='1.99.0')" in said
