"""The engines of a server on a real GPU: the CPU's images, equal bits at every replay, processes that come back."""

from __future__ import annotations

import os
import signal
import threading

import numpy as np
import onnx
import pytest
from exported_graphs import KINDS, with_bytes
from live_server import server_process
from onnx import helper

import kaem
from kaem.artifact import MANIFEST_KEY, Manifest, write_manifest
from kaem.engines.cuda import CudaEngine
from kaem.noise import uniforms
from kaem_export.graph import graph_fingerprint
from serve.devices.device_pool import DevicePool
from serve.devices.devices import Device, parse_devices
from serve.devices.engine import warm_up

pytestmark = pytest.mark.gpu

SIZES = (1, 2, 8, 64, 256)
TOLERANCE = {"float32": 2e-5, "uint8": 1}
"""Of float32 sums in another order, with TF32 off; one step of 8-bit images."""


@pytest.fixture(scope="module", params=["float32", "uint8"])
def artifact(request, tmp_path_factory):
    """A generator with convolutions behind tables and frames, as an artifact."""
    model = KINDS["experts in own frames"]()
    model = with_bytes(model) if request.param == "uint8" else model
    shapes = {
        value.name: [side.dim_value for side in value.type.tensor_type.shape.dim[1:]]
        for value in (*model.graph.input, *model.graph.output)
    }
    manifest = Manifest(
        family="kaem",
        name="test",
        noise_dim=shapes["uniform"][0],
        latent_dim=shapes["latent"][0],
        image_shape=tuple(shapes["image"]),
        image_type=request.param,
        graph_fingerprint=graph_fingerprint(model),
    )
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    helper.set_model_props(whole, {MANIFEST_KEY: write_manifest(manifest)})
    path = tmp_path_factory.mktemp(request.param) / "model.onnx"
    path.write_bytes(whole.SerializeToString())
    return path


@pytest.fixture(scope="module")
def engine_file(artifact, tmp_path_factory):
    """Beside the artifact, as `kaem export --target tensorrt` puts it."""
    pytest.importorskip("tensorrt", reason="pip install 'kaem[tensorrt]'")
    pytest.importorskip("cuda.bindings.runtime", reason="pip install 'kaem[tensorrt]'")
    from kaem_export.targets.tensorrt import build_engine

    folder = tmp_path_factory.mktemp("secret")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAEM_ENGINE_SECRET", str(folder / "secret"))
        patch.setenv("KAEM_CACHE_DIR", str(folder / "cache"))
        path = artifact.with_suffix(".engine")
        build_engine(artifact, path)
        yield path


def check(engine, artifact):
    """The images of the CPU, whatever the batch; the same bits whenever a size is asked again."""
    tolerance = TOLERANCE[engine.manifest.image_type]
    with kaem.load(artifact) as local:
        for turn in range(3):
            for rows in SIZES:
                noise = uniforms(turn, 0, rows, engine.manifest.noise_dim)
                images = engine.decode(noise)
                assert np.abs(images.astype(float) - local.decode(noise)).max() <= tolerance
                np.testing.assert_array_equal(engine.decode(noise), images)
        assert engine.numerics_id != local.numerics_id
    assert warm_up(engine, SIZES).costs.sizes


def test_onnx_runtime_on_cuda(artifact):
    with CudaEngine(artifact) as engine:
        check(engine, artifact)


def test_tensorrt(artifact, engine_file):
    from kaem.engines.tensorrt import TensorRtEngine

    with TensorRtEngine(artifact) as engine, TensorRtEngine(artifact) as again:
        check(engine, artifact)
        assert again.numerics_id == engine.numerics_id
        noise = uniforms(1, 0, 100, engine.manifest.noise_dim)
        np.testing.assert_array_equal(again.decode(noise), engine.decode(noise))
        assert len(engine.decode(uniforms(1, 0, 3000, engine.manifest.noise_dim))) == 3000


def test_a_process_on_a_gpu_computes_the_same_and_comes_back(artifact):
    changed = threading.Condition()
    changes = []

    def note(*change):
        with changed:
            changes.append(change)
            changed.notify_all()

    with CudaEngine(artifact) as engine, DevicePool(artifact, [Device("cuda")]) as fleet:
        (remote,) = fleet.engines
        assert remote.numerics_id == engine.numerics_id
        noise = uniforms(3, 0, 8, engine.manifest.noise_dim)
        np.testing.assert_array_equal(remote.decode(noise), engine.decode(noise))
        fleet.keep_alive((8,), note)
        os.kill(fleet._seats[0].worker.process.pid, signal.SIGKILL)
        np.testing.assert_array_equal(remote.decode(noise), engine.decode(noise))
        with changed:
            assert changed.wait_for(lambda: changes == [("cuda:0", False, 0), ("cuda:0", True, 1)], 120)


@pytest.mark.parametrize("kind", ["cuda", "tensorrt"])
def test_every_gpu_here_behind_one_port(artifact, kind, request):
    if kind == "tensorrt":
        request.getfixturevalue("engine_file")
    num = _num_gpus()
    devices = ",".join(f"{kind}:{number}" for number in range(num))
    assert len(parse_devices(devices)) == num
    with (
        server_process(artifact, "--port", "0", "--device", devices) as server,
        kaem.connect(server.target) as remote,
        kaem.load(artifact) as local,
    ):
        images, expected = remote.sample(1000, 7), local.sample(1000, 7)
        assert np.abs(images.astype(float) - expected).max() <= TOLERANCE[local.manifest.image_type]
        np.testing.assert_array_equal(remote.sample(1000, 7), images)


def _num_gpus():
    from kaem.engines.gpu import installed_gpu
    from kaem.errors import BackendError

    num = 0
    while True:
        try:
            installed_gpu(num)
        except BackendError:
            return num
        num += 1
