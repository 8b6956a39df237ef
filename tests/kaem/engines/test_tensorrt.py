"""The engine of TensorRT up to the GPU: files, fit of batches, and the order of calls on a device of this machine.

`FakeGpu` stands for TensorRT and the CUDA runtime: its memory is this process's, a recording is a list of copies and
computations, and the engine computes with ONNX Runtime. What it is asked is held against the real Python interfaces
where these are installed.
"""

from __future__ import annotations

import ctypes
import enum
import types

import numpy as np
import onnxruntime
import pytest
from artifacts import write_small_artifact
from hypothesis import given
from hypothesis import strategies as st

import kaem
from kaem import noise
from kaem.artifact import fingerprint
from kaem.engines import tensorrt as native
from kaem.engines import tensorrt_file as engines
from kaem.engines.gpu import Gpu
from kaem.engines.tensorrt import TensorRtEngine, fit
from kaem.engines.tensorrt_file import EngineFile, EngineKey, write_engine
from kaem.errors import ArtifactError, BackendError
from serve.devices.engine import warm_up

HERE = Gpu("NVIDIA Test", "580.1")
PROFILES = ((1, 1, 1), (2, 8, 16))


class Status(enum.Enum):
    cudaSuccess = 0  # noqa: N815 - CUDA's own name
    cudaErrorIllegalAddress = 700  # noqa: N815


class FakeGpu:
    """Both modules at once, for one artifact; notes what it was asked and refuses what a GPU would."""

    cudaStreamNonBlocking = 1  # noqa: N815
    cudaError_t = Status  # noqa: N815
    cudaMemcpyKind = types.SimpleNamespace(cudaMemcpyHostToDevice="up", cudaMemcpyDeviceToHost="down")  # noqa: N815
    cudaStreamCaptureMode = types.SimpleNamespace(cudaStreamCaptureModeThreadLocal="local")  # noqa: N815
    __version__ = "11.4.0"

    class Logger:
        ERROR = 0

        def __init__(self, severity):
            assert severity == self.ERROR

    def __init__(self, content):
        self.session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        self.device = None
        self.alive = {}  # address -> memory
        self.recording = None
        self.recordings = {}
        self.fails = ""
        self.ran = []
        self.scratches = set()

    def _answer(self, name, *values):
        assert self.device is not None or name == "cudaSetDevice"
        return (Status.cudaErrorIllegalAddress if name == self.fails else Status.cudaSuccess, *values)

    def cudaSetDevice(self, device):  # noqa: N802
        self.device = device
        return self._answer("cudaSetDevice")

    def cudaStreamCreateWithFlags(self, flags):  # noqa: N802
        return self._answer("cudaStreamCreateWithFlags", 7)

    def cudaStreamDestroy(self, stream):  # noqa: N802
        return self._answer("cudaStreamDestroy")

    def _allocate(self, name, num_bytes):
        memory = (ctypes.c_uint8 * num_bytes)()
        self.alive[ctypes.addressof(memory)] = memory
        return self._answer(name, ctypes.addressof(memory))

    def cudaMalloc(self, num_bytes):  # noqa: N802
        return self._allocate("cudaMalloc", num_bytes)

    def cudaMallocHost(self, num_bytes):  # noqa: N802
        return self._allocate("cudaMallocHost", num_bytes)

    def cudaFree(self, address):  # noqa: N802
        del self.alive[address]
        return self._answer("cudaFree")

    def cudaFreeHost(self, address):  # noqa: N802
        del self.alive[address]
        return self._answer("cudaFreeHost")

    def do(self, action):
        if self.recording is None:
            action()
        else:
            self.recording.append(action)

    def cudaMemcpyAsync(self, to, source, num_bytes, kind, stream):  # noqa: N802
        assert {to, source} <= set(self.alive)
        assert num_bytes <= min(len(self.alive[to]), len(self.alive[source]))
        self.do(lambda: ctypes.memmove(to, source, num_bytes))
        return self._answer("cudaMemcpyAsync")

    def cudaStreamSynchronize(self, stream):  # noqa: N802
        assert self.recording is None
        return self._answer("cudaStreamSynchronize")

    def cudaStreamBeginCapture(self, stream, mode):  # noqa: N802
        assert self.ran, "TensorRT must have run a shape once before it is recorded"
        self.recording = []
        return self._answer("cudaStreamBeginCapture")

    def cudaStreamEndCapture(self, stream):  # noqa: N802
        graph, self.recording = self.recording, None
        return self._answer("cudaStreamEndCapture", graph)

    def cudaGraphInstantiate(self, graph, flags):  # noqa: N802
        self.recordings[id(graph)] = graph
        return self._answer("cudaGraphInstantiate", id(graph))

    def cudaGraphDestroy(self, graph):  # noqa: N802
        return self._answer("cudaGraphDestroy")

    def cudaGraphLaunch(self, recording, stream):  # noqa: N802
        for action in self.recordings[recording]:
            action()
        return self._answer("cudaGraphLaunch")

    def cudaGraphExecDestroy(self, recording):  # noqa: N802
        del self.recordings[recording]
        return self._answer("cudaGraphExecDestroy")

    def Runtime(self, logger):  # noqa: N802
        assert self.device is not None, "TensorRT opens an engine on the current device"
        return types.SimpleNamespace(deserialize_cuda_engine=lambda plan: self if plan == b"plan" else None)

    # What follows is of ICudaEngine.

    num_io_tensors = 3

    def get_tensor_name(self, number):
        return ("uniform", "image", "latent")[number]

    def _value(self, name):
        values = {value.name: value for value in (*self.session.get_inputs(), *self.session.get_outputs())}
        return values[name]

    def get_tensor_dtype(self, name):
        return types.SimpleNamespace(name="FLOAT" if self._value(name).type == "tensor(float)" else "UINT8")

    def get_tensor_shape(self, name):
        return [-1, *self._value(name).shape[1:]]

    ExecutionContextAllocationStrategy = types.SimpleNamespace(USER_MANAGED="user")
    device_memory_size_v2 = 4096

    def create_execution_context(self, strategy):
        assert strategy == "user"
        return FakeContext(self)


class FakeContext:
    def __init__(self, gpu):
        self.gpu, self.profile, self.shape, self.addresses, self.scratch = gpu, None, None, {}, None

    def set_device_memory(self, address, num_bytes):
        assert self.profile is None
        assert num_bytes == len(self.gpu.alive[address]) >= self.gpu.device_memory_size_v2
        self.scratch = address
        self.gpu.scratches.add(address)

    def set_optimization_profile_async(self, profile, stream):
        self.profile = PROFILES[profile]
        return True

    def set_input_shape(self, name, shape):
        assert name == "uniform"
        self.shape = shape
        return self.profile[0] <= shape[0] <= self.profile[2]

    def set_tensor_address(self, name, address):
        assert address in self.gpu.alive
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        assert set(self.addresses) == {"uniform", "image", "latent"}
        assert self.scratch not in self.addresses.values()
        self.gpu.do(self._compute)
        return True

    def _compute(self):
        self.gpu.ran.append(self.shape[0])
        memory = {name: self.gpu.alive[address] for name, address in self.addresses.items()}
        uniform = np.frombuffer(memory["uniform"], np.float32).reshape(self.shape)
        names = ["image", "latent"]
        for name, values in zip(names, self.gpu.session.run(names, {"uniform": uniform}), strict=True):
            memory[name][:] = values.tobytes()


@pytest.fixture
def secret(tmp_path, monkeypatch):
    monkeypatch.setenv("KAEM_ENGINE_SECRET", str(tmp_path / "secret"))


@pytest.fixture
def files(tmp_path, secret, monkeypatch):
    """A model and an engine file beside it that says it is for this GPU."""
    path = write_small_artifact(tmp_path / "model.onnx")
    monkeypatch.setattr(engines, "installed_gpu", lambda device: HERE)
    write(path)
    return path


def write(path, **changes):
    key = {"model": fingerprint(path.read_bytes()), "tensorrt": "11.4.0", "gpu": HERE.name, "driver": HERE.driver}
    engine = {"profiles": PROFILES, "tf32": False, "plan": b"plan"}
    key |= {name: value for name, value in changes.items() if name in key}
    engine |= {name: value for name, value in changes.items() if name in engine}
    path.with_suffix(".engine").write_bytes(write_engine(EngineFile(key=EngineKey(**key), **engine)))


@pytest.fixture
def gpu(files, monkeypatch):
    gpu = FakeGpu(files.read_bytes())
    for module in (engines, native):
        monkeypatch.setattr(module, "native_tensorrt", lambda: gpu)
    monkeypatch.setattr(native, "cuda_runtime", lambda: gpu)
    return gpu


def test_batches_of_every_size_are_computed_replayed_and_cut(files, gpu):
    with TensorRtEngine(files, device_id=3) as engine, kaem.load(files, workers=1) as local:
        assert gpu.device == 3
        assert (engine.provider, engine.workers) == ("tensorrt", 1)
        assert engine.manifest == local.manifest
        for turn in range(3):
            for rows in (1, 2, 3, 16, 17, 40):  # more than the engine takes are several batches
                uniform = noise.uniforms(turn, rows, rows, 5)
                np.testing.assert_array_equal(engine.decode(uniform), local.decode(uniform))
                for found, expected in zip(
                    engine.decode_with_latents(uniform), local.decode_with_latents(uniform), strict=True
                ):
                    np.testing.assert_array_equal(found, expected)
        assert set(gpu.ran) == {1, 2, 3, 8, 16}
        assert len(gpu.recordings) == 5
        assert len(gpu.scratches) == 1  # all sizes keep their intermediate results in one block
        # Each size ran once by itself and was recorded; every later batch is a replay.
        assert gpu.ran.count(2) == 1 + 3 * 2
    assert not gpu.alive
    assert not gpu.recordings


def test_a_server_warms_it_up_like_any_engine(files, gpu):
    with TensorRtEngine(files) as engine:
        warmth = warm_up(engine, (1, 2, 4, 8))
        assert warmth.costs.sizes == (1, 2, 4, 8)
        assert warmth.numerics_id == engine.numerics_id


def test_images_are_in_memory_of_their_own(files, gpu):
    with TensorRtEngine(files) as engine:
        first = engine.decode(noise.uniforms(0, 0, 4, 5))
        before = first.copy()
        engine.decode(noise.uniforms(1, 0, 4, 5))
        np.testing.assert_array_equal(first, before)


def test_the_numerics_id_is_of_the_build_and_its_place_not_of_the_device_number(files, gpu):
    def numerics(**changes):
        write(files, **changes)
        with TensorRtEngine(files, device_id=changes.pop("device", 0)) as engine:
            return engine.numerics_id

    assert numerics() == numerics(device=1)
    with kaem.load(files) as local:
        assert numerics() != local.numerics_id
    gpu.Runtime = lambda logger: types.SimpleNamespace(deserialize_cuda_engine=lambda plan: gpu)
    assert numerics(plan=b"another build") != numerics()


@pytest.mark.parametrize("fails", ["cudaMemcpyAsync", "cudaGraphLaunch", "cudaStreamSynchronize", "cudaMalloc"])
def test_a_gpu_that_fails_is_an_error_with_its_words(files, gpu, fails):
    with TensorRtEngine(files) as engine:
        engine.decode(noise.uniforms(0, 0, 1, 5))
        gpu.fails = fails
        with pytest.raises(BackendError, match=f"CUDA answers {fails} with cudaErrorIllegalAddress") as caught:
            engine.decode(noise.uniforms(0, 0, 2 if fails in ("cudaMalloc", "cudaMemcpyAsync") else 1, 5))
        assert "nvidia-smi" in caught.value.hint
        gpu.fails = ""


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model": "sha256:0"}, "built for something else: model sha256:0"),
        ({"tensorrt": "11.3.0"}, "tensorrt 11.3.0, here 11.4.0"),
        ({"gpu": "NVIDIA Other"}, "gpu NVIDIA Other, here NVIDIA Test"),
        ({"driver": "570.0"}, "driver 570.0, here 580.1"),
    ],
)
def test_an_engine_of_another_model_version_gpu_or_driver_is_not_opened(files, gpu, changes, what):
    write(files, **changes)
    with pytest.raises(ArtifactError, match=what) as caught:
        TensorRtEngine(files)
    assert "kaem export MODEL --target tensorrt" in caught.value.hint
    assert gpu.device is None  # nothing was asked of the GPU


def test_a_missing_a_damaged_and_a_foreign_engine_are_not_opened(files, gpu):
    path = files.with_suffix(".engine")
    with pytest.raises(ArtifactError, match=r"cannot read the engine .*other\.engine"):
        TensorRtEngine(files, path.with_name("other.engine"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match="damaged, or it was not built by you"):
        TensorRtEngine(files)
    path.write_bytes(b"onnx")
    with pytest.raises(ArtifactError, match="not an engine of kaem"):
        TensorRtEngine(files)
    assert gpu.device is None


def test_an_engine_that_tensorrt_refuses_or_with_other_tensors_is_an_error(files, gpu):
    write(files, plan=b"rubbish")
    with pytest.raises(BackendError, match=r"TensorRT 11\.4\.0 cannot open the engine"):
        TensorRtEngine(files)
    write(files)
    gpu.session = onnxruntime.InferenceSession(
        write_small_artifact(files.with_name("o.onnx"), noise_dim=3), providers=["CPUExecutionProvider"]
    )
    with pytest.raises(ArtifactError, match=r"has the tensors .*manifest says"):
        TensorRtEngine(files)


def test_without_tensorrt_or_a_gpu_the_error_says_what_is_missing(tmp_path, secret):
    path = write_small_artifact(tmp_path / "model.onnx")
    write(path)
    with pytest.raises(BackendError, match=r"TensorRT cannot be imported|no NVIDIA driver here") as caught:
        TensorRtEngine(path)
    assert caught.value.hint


profiles = st.lists(
    st.tuples(*[st.integers(1, 64)] * 3).map(lambda sizes: tuple(sorted(sizes))), min_size=1, max_size=4
)


@given(profiles, st.data())
def test_a_batch_goes_where_it_fits_with_the_least_padding(profiles, data):
    rows = data.draw(st.integers(1, max(most for _, _, most in profiles)))
    chosen = fit(rows, profiles)
    least, _, most = profiles[chosen.profile]
    assert least <= chosen.rows <= most
    assert rows <= chosen.rows
    assert all(chosen.rows <= max(rows, other[0]) for other in profiles if rows <= other[2])


def test_what_is_asked_of_tensorrt_is_in_its_python_interface():
    trt = pytest.importorskip("tensorrt_rtx", reason="pip install 'kaem[trt-check]'")
    of_engine = [name for name in vars(FakeGpu) if name.startswith(("num_", "get_", "create_", "device_memory"))]
    assert len(of_engine) == 6
    assert not [name for name in of_engine if not hasattr(trt.ICudaEngine, name)]
    for name in vars(FakeContext):
        assert name.startswith("_") or hasattr(trt.IExecutionContext, name)
    assert hasattr(trt.Runtime, "deserialize_cuda_engine")
    assert hasattr(trt.ExecutionContextAllocationStrategy, "USER_MANAGED")
    assert (trt.DataType.FLOAT.name, trt.DataType.UINT8.name) == ("FLOAT", "UINT8")


def test_what_is_asked_of_cuda_is_in_its_python_interface():
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="pip install 'kaem[tensorrt]'")
    names = [name for name in dir(FakeGpu) if name.startswith("cuda")]
    assert len(names) > 15
    assert not [name for name in names if not hasattr(runtime, name)]
    status, *_ = runtime.cudaGetDeviceCount()
    assert status.name.startswith("cuda")
