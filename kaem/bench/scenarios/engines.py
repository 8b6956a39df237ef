"""What runs a contestant: one small protocol, and the engines that need no torch.

Every engine of an exported model is given the same rows of noise (`kaem.noise`), and what it makes of them is
compared before anything is timed.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kaem import noise
from kaem.engines.cpu import read_file
from kaem.engines.padding import calls, joined, whole_calls
from kaem.engines.providers import PROVIDERS
from kaem.errors import ArtifactError, BackendError, ConfigError
from kaem.onnx_file import require_whole
from kaem.sampler import Images

MAX_ROWS = 256
"""Rows per thread of one call into an engine, as in `kaem.engines.cpu`."""


class BenchEngine(Protocol):
    """Makes images; opened, called and closed in a process of its own."""

    @property
    def settings(self) -> Mapping[str, str]:
        """What really runs, by the names to show: provider, precision, TF32, versions.

        `noise` is among them only where it is not that of (seed, index), so that images cannot be compared;
        `updates` where the engine alone knows how often the weights were trained.
        """
        ...

    def sample(self, num: int, seed: int, start: int = 0) -> Images:
        """Return `num` images, shape (num, C, H, W): samples `start ..` of `seed` where it can choose its noise."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineJob:
    """What an engine's process is asked to open.

    Attributes:
        engine: Name of the engine.
        source: An exported model, a checkpoint, or a server.
        threads: Threads that may compute.
        provider: "cpu" or "cuda".
    """

    engine: str
    source: str
    threads: int
    provider: str = "cpu"


LIBRARIES = {
    "onnxruntime": ("onnxruntime", "pip install 'kaem[cpu]'"),
    "openvino": ("openvino", "pip install 'kaem[bench]'"),
    "tensorrt": ("tensorrt", "pip install 'kaem[ort-tensorrt]', on a machine with an NVIDIA GPU"),
    "torch-eager": ("torch", "pip install 'kaem[export]'"),
    "torch-compile": ("torch", "pip install 'kaem[export]'"),
    "diffusers": ("diffusers", "pip install 'kaem[export,diffusion]'"),
    "server": ("grpc", "pip install kaem"),
}
"""The module that each engine needs, and what installs it."""

TORCH_NAMES = ("torch-eager", "torch-compile", "diffusers")
"""Engines that a floor above this one opens; they run checkpoints, too."""

NAMES = tuple(name for name in LIBRARIES if name != "server")
"""Engines that may be asked for by name; a server is what its address says."""


def require(engine: str) -> None:
    """Import an engine's library.

    Raises:
        ConfigError: There is no such engine.
        BackendError: It is not installed; the hint says what is.
    """
    if engine not in LIBRARIES:
        raise ConfigError(f"unknown engine {engine!r}", hint=f"choose among: {', '.join(NAMES)}")
    module, command = LIBRARIES[engine]
    if engine == "openvino":
        # Importing it reports the import to its makers unless their telemetry is missing: then it uses its own stub.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise BackendError(f"engine {engine} needs {module}, which cannot be imported: {error}", hint=command) from None


def open_engine(job: EngineJob) -> BenchEngine:
    """Open one of the engines of this floor.

    Raises:
        KaemError: The source or the engine is unusable.
    """
    require(job.engine)
    match job.engine:
        case "onnxruntime":
            return OnnxRuntimeEngine(Path(job.source), provider=job.provider, threads=job.threads)
        case "tensorrt":
            return OnnxRuntimeEngine(Path(job.source), provider="ort-tensorrt", threads=1)
        case "openvino":
            if job.provider != "cpu":
                raise ConfigError(f"engine openvino runs on the cpu, not on {job.provider}")
            return OpenVinoEngine(Path(job.source), threads=job.threads)
        case "server":
            return ServerEngine(job.source)
        case _:
            raise ConfigError(f"engine {job.engine} cannot be opened without torch")


class OnnxRuntimeEngine:
    """The sampler that `kaem.load` gives: rows split over single-threaded calls of one session.

    Args:
        path: An exported model.
        provider: "cpu" or "cuda".
        threads: Worker threads.
    """

    def __init__(self, path: Path, *, provider: str, threads: int) -> None:
        from kaem.engines.cpu import LocalSampler

        self._sampler = LocalSampler(path, provider=provider, workers=threads if provider == "cpu" else 1)

    @property
    def settings(self) -> Mapping[str, str]:
        """Provider, numbers of threads, state of TF32."""
        words = {"provider": PROVIDERS[self._sampler.provider], "threads": f"{self._sampler.workers} x 1"}
        tf32 = self._sampler.provider_options.get("use_tf32")
        if tf32 is not None:
            words["TF32"] = "on" if tf32 == "1" else "off"
        return {**words, "numerics": self._sampler.numerics_id}

    def sample(self, num: int, seed: int, start: int = 0) -> Images:
        """Return samples `start .. start + num - 1` of `seed`."""
        return self._sampler.sample(num, seed, start)

    def close(self) -> None:
        """Close the session."""
        self._sampler.close()


class ServerEngine:
    """A server, called by one caller that waits for every answer.

    Args:
        target: `grpc://host:port`.
    """

    def __init__(self, target: str) -> None:
        import kaem

        self._sampler = kaem.connect(target)

    @property
    def settings(self) -> Mapping[str, str]:
        """What the server says of itself."""
        words = {"provider": "server", "numerics": self._sampler.numerics_id, "model": self._sampler.manifest.name}
        updates = self._sampler.manifest.updates
        return words if updates is None else {**words, "updates": str(updates)}

    def sample(self, num: int, seed: int, start: int = 0) -> Images:
        """Return samples `start .. start + num - 1` of `seed`."""
        return self._sampler.sample(num, seed, start)

    def close(self) -> None:
        """Close the connection."""
        self._sampler.close()


class OpenVinoEngine:
    """OpenVINO on the same ONNX file, in float32: left alone it computes in bfloat16 where the processor can.

    Args:
        path: An exported model.
        threads: Threads that share each operator.

    Raises:
        ArtifactError: OpenVINO cannot read or compile the file.
    """

    def __init__(self, path: Path, *, threads: int) -> None:
        openvino = importlib.import_module("openvino")
        core = openvino.Core()
        options = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        content = read_file(path)
        require_whole(content, source=str(path))
        try:
            model = core.read_model(content)
            self._model: Any = core.compile_model(model, "CPU", options)
            self._image: Any = self._model.output("image")
            rows, width = self._model.input("uniform").partial_shape
            self._sizes = (int(rows.get_length()),) if rows.is_static else ()
            self._noise_dim = int(width.get_length())
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise ArtifactError(f"openvino cannot run {path}: {reason}", hint="leave this engine out") from None
        self._request: Any = self._model.create_infer_request()
        self._rows = whole_calls(MAX_ROWS * threads, self._sizes)
        self._threads = threads
        self._version: str = openvino.__version__

    @property
    def settings(self) -> Mapping[str, str]:
        """Device, precision, number of threads, version."""
        precision = str(self._model.get_property("INFERENCE_PRECISION_HINT").get_type_name())
        return {"provider": "CPU", "precision": precision, "threads": str(self._threads), "openvino": self._version}

    def sample(self, num: int, seed: int, start: int = 0) -> Images:
        """Return samples `start .. start + num - 1` of `seed`."""
        pieces = []
        for first in range(0, num, self._rows):
            rows = min(self._rows, num - first)
            uniform = noise.uniforms(seed, start + first, rows, self._noise_dim)
            for piece in calls(uniform, self._sizes, self._rows):
                self._request.infer({"uniform": piece})
                pieces.append(self._request.get_tensor(self._image).data.copy())
        return joined(pieces, num)

    def close(self) -> None:
        """Drop the compiled model."""
        del self._request, self._model
