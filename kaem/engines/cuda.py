"""A compiled sampler on one NVIDIA GPU, for batches of a few fixed sizes: bound buffers and a CUDA graph for each.

Kernels are chosen by rule, not by timing: `cudnn_conv_algo_search` is HEURISTIC, because the default, a race between
algorithms at start, would give two servers of the same numerics id different bits. TF32 is off, so that images agree
with the CPU's up to float32 rounding. Nothing falls back to the CPU: a node or library that the GPU lacks is an error.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from kaem.artifact import Manifest, fingerprint
from kaem.engines.binding import BoundSession
from kaem.engines.cpu import check_graph, read_file
from kaem.engines.padding import calls, joined
from kaem.engines.providers import GpuOptions, cuda_options
from kaem.engines.session import hardware_id, installed_runtime, open_session
from kaem.errors import BackendError
from kaem.onnx_file import read_artifact
from kaem.sampler import Images, Uniforms

T = TypeVar("T")


class CudaEngine:
    """Decodes batches on one GPU; satisfies `serve.devices.engine.Engine`.

    Replaying a graph from several threads is not safe, so one thread owns the session and runs every call.

    Args:
        path: An ONNX file made by `kaem export`.
        device_id: Number of the GPU.

    Raises:
        ArtifactError: The file is missing, damaged, or not a kaem artifact.
        BackendError: The GPU or its libraries are unusable, or cannot run the whole graph.
    """

    provider = "cuda"
    workers = 1

    def __init__(self, path: Path, *, device_id: int = 0) -> None:
        content = read_file(path)
        self._manifest = read_artifact(content, source=str(path))
        gpu = GpuOptions(device=device_id, cuda_graph=True)
        self._owner = ThreadPoolExecutor(1, thread_name_prefix="kaem-cuda")
        try:
            session = self._owner.submit(open_session, content, "cuda", source=str(path), gpu=gpu).result()
            check_graph(session, self._manifest, path)
            hardware = hardware_id("cuda", device_id)
        except BaseException:
            self._owner.shutdown()
            raise
        numerics = sorted((key, value) for key, value in cuda_options(gpu).items() if key != "device_id")
        tf32 = os.environ.get("NVIDIA_TF32_OVERRIDE", "")  # it rules over the option, in cuBLAS and cuDNN
        parts = (fingerprint(content), "cuda", *installed_runtime(), hardware, *numerics, tf32)
        self._numerics_id = fingerprint("\n".join(map(str, parts)).encode())
        self._bound = BoundSession(session, self._manifest, device="cuda", device_id=device_id, captures=True)

    @property
    def manifest(self) -> Manifest:
        """What the artifact says about itself."""
        return self._manifest

    @property
    def numerics_id(self) -> str:
        """Digest of artifact, provider, its settings, runtime version, kernel libraries, GPU model and driver."""
        return self._numerics_id

    def decode(self, uniform: Uniforms) -> Images:
        """Map rows of uniforms, shape (N, D), to images, shape (N, C, H, W); the first call of each N captures.

        Raises:
            BackendError: The GPU failed.
        """
        return joined(self._each_call(self._bound.run, uniform), len(uniform))

    def decode_with_latents(self, uniform: Uniforms) -> tuple[Images, NDArray[np.float32]]:
        """Return what `decode` does, and the latent vectors, shape (N, Q).

        Raises:
            BackendError: The GPU failed.
        """
        images, latents = zip(*self._each_call(self._bound.run_with_latents, uniform), strict=True)
        return joined(images, len(uniform)), joined(latents, len(uniform))

    def _each_call(self, run: Callable[[Uniforms], T], uniform: Uniforms) -> list[T]:
        pieces = calls(uniform, self._manifest.batch_sizes, most=len(uniform))
        try:
            return [self._owner.submit(run, piece).result() for piece in pieces]
        except Exception as error:  # onnxruntime's own exception classes share no public base
            raise BackendError(f"ONNX Runtime failed on {len(uniform)} rows: {error}") from error

    def close(self) -> None:
        """Stop the owner thread."""
        self._owner.shutdown(wait=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
