"""Calls of a session through buffers that stay where they are: one pair per number of rows, reused for ever.

A CUDA graph replays fixed addresses, and without one the buffers still save two allocations a call. The first call
with a number of rows makes its buffers (and, where the session captures graphs, its graph); so call every number once
before it matters.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kaem.artifact import Manifest
from kaem.sampler import Images, Uniforms


class _Buffers(NamedTuple):
    uniform: Any
    image: Any
    latent: Any
    binding: Any
    options: Any


class BoundSession:
    """A session's outputs, computed in place; one thread at a time, and with CUDA graphs always the same one.

    Args:
        session: An `onnxruntime.InferenceSession`.
        manifest: Manifest of its model.
        device: Where the buffers are, "cuda" or "cpu": where the session computes.
        device_id: Number of the device.
        captures: Whether the session was opened with `enable_cuda_graph`; each number of rows then has its own graph.
    """

    def __init__(
        self, session: Any, manifest: Manifest, *, device: str, device_id: int = 0, captures: bool = False
    ) -> None:
        self._session = session
        self._manifest = manifest
        self._device = (device, device_id)
        self._captures = captures
        self._buffers: dict[int, _Buffers] = {}

    def run(self, uniform: Uniforms) -> Images:
        """Map rows of uniforms, shape (N, D), contiguous, to images, shape (N, C, H, W), in memory of their own."""
        return self._fetch(self._compute(uniform).image)

    def run_with_latents(self, uniform: Uniforms) -> tuple[Images, NDArray[np.float32]]:
        """Return what `run` does, and the latent vectors, shape (N, Q)."""
        buffers = self._compute(uniform)
        return self._fetch(buffers.image), self._fetch(buffers.latent)

    def _compute(self, uniform: Uniforms) -> _Buffers:
        buffers = self._buffers.get(len(uniform))
        if buffers is None:
            buffers = self._buffers[len(uniform)] = self._bind(len(uniform))
        buffers.uniform.update_inplace(uniform)
        self._session.run_with_iobinding(buffers.binding, buffers.options)
        return buffers

    def _fetch(self, buffer: Any) -> NDArray[Any]:
        values: NDArray[Any] = buffer.numpy()
        return values if self._device[0] != "cpu" else values.copy()  # on a CPU it is a view of the buffer

    def _bind(self, rows: int) -> _Buffers:
        import onnxruntime

        shape, kind = (rows, *self._manifest.image_shape), np.dtype(self._manifest.image_type).type
        allocate = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        uniform = allocate((rows, self._manifest.noise_dim), np.float32, *self._device)
        image = allocate(shape, kind, *self._device)
        latent = allocate((rows, self._manifest.latent_dim), np.float32, *self._device)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("uniform", uniform)
        binding.bind_ortvalue_output("image", image)
        binding.bind_ortvalue_output("latent", latent)
        options = onnxruntime.RunOptions()
        if self._captures:
            options.add_run_config_entry("gpu_graph_id", str(len(self._buffers) + 1))
        return _Buffers(uniform, image, latent, binding, options)
