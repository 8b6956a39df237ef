"""A session with buffers that stay where they are on the GPU, as CUDA graphs need them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime

from kaem.engines.providers import GpuOptions
from kaem.engines.session import open_session


def cuda_session(content: bytes, **options: bool) -> Any:
    """Open a graph on CUDA."""
    return open_session(content, "cuda", source="the graph", gpu=GpuOptions(**options))


class Bound:
    """One batch size of a session.

    Args:
        session: With or without CUDA graphs.
        rows: The batch size.
        records: Whether kernels are recorded at the first run and replayed at later ones.
    """

    def __init__(self, session: Any, rows: int, *, records: bool) -> None:
        uniform = session.get_inputs()[0]
        self._session = session
        self._uniform = onnxruntime.OrtValue.ortvalue_from_numpy(
            np.zeros((rows, uniform.shape[1]), np.float32), "cuda", 0
        )
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input("uniform", self._uniform)
        self._outputs = {}
        for value in session.get_outputs():
            kind = np.uint8 if value.type == "tensor(uint8)" else np.float32
            shape = [rows, *value.shape[1:]]
            self._outputs[value.name] = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind, "cuda", 0)
            self._binding.bind_ortvalue_output(value.name, self._outputs[value.name])
        self._options = onnxruntime.RunOptions()
        if records:
            # One graph per batch size; 0 is the one of runs that name none.
            self._options.add_run_config_entry("gpu_graph_id", str(rows))

    def run(self, uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return image and latent of rows of uniforms."""
        self._uniform.update_inplace(uniform)
        self.again()
        return self._outputs["image"].numpy(), self._outputs["latent"].numpy()

    def again(self) -> None:
        """Compute once more from what is in the buffer, and wait."""
        self._session.run_with_iobinding(self._binding, self._options)
        self._binding.synchronize_outputs()
