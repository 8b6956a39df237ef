"""The CUDA runtime as far as an engine of TensorRT needs it: one device, one stream, buffers that stay where they are.

Calls go to `cuda.bindings.runtime`, which answers (status, values...); here a status other than success is an error.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from kaem.errors import BackendError


def cuda_runtime() -> Any:
    """Return the module `cuda.bindings.runtime`.

    Raises:
        BackendError: It is not installed, or cannot be imported.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise BackendError(
            f"the CUDA runtime cannot be imported: {error}", hint="run: pip install 'kaem[tensorrt]'"
        ) from None
    return runtime


class Stream:
    """What one thread does on one GPU, in order.

    Args:
        runtime: The module; see `cuda_runtime`.
        device: Number of the GPU.

    Raises:
        BackendError: The GPU does not take part; every method may raise it.
    """

    def __init__(self, runtime: Any, device: int) -> None:
        self._runtime = runtime
        self._memory: list[tuple[str, int]] = []
        self.call("cudaSetDevice", device)
        self._stream = self.call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)

    @property
    def handle(self) -> int:
        """The stream's address, as other libraries take it."""
        return int(self._stream)

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the runtime and return its value, if it has one."""
        status, *values = getattr(self._runtime, name)(*arguments)
        if status != self._runtime.cudaError_t.cudaSuccess:
            raise BackendError(f"CUDA answers {name} with {status.name}", hint="check the GPU with nvidia-smi")
        return values[0] if values else None

    def device_memory(self, num_bytes: int) -> int:
        """Return the address of memory on the GPU."""
        return self._keep("cudaFree", self.call("cudaMalloc", num_bytes))

    def host_array(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """Return an array in memory of this machine that the GPU copies from and to without the processor."""
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        address = self._keep("cudaFreeHost", self.call("cudaMallocHost", num_bytes))
        content = np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(address))
        return content.view(dtype).reshape(shape)

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy an array of `host_array` to the GPU, when its turn comes."""
        self._copy(address, array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice")

    def download(self, array: NDArray[Any], address: int) -> None:
        """Copy from the GPU to an array of `host_array`, when its turn comes."""
        self._copy(array.ctypes.data, address, array.nbytes, "cudaMemcpyDeviceToHost")

    def wait(self) -> None:
        """Wait until all that was asked for is done."""
        self.call("cudaStreamSynchronize", self._stream)

    def begin_recording(self) -> None:
        """From now on note what is asked for, and do none of it."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", self._stream, mode)

    def end_recording(self) -> Any:
        """Return what was noted, to be replayed."""
        graph = self.call("cudaStreamEndCapture", self._stream)
        replayable = self.call("cudaGraphInstantiate", graph, 0)
        self.call("cudaGraphDestroy", graph)
        return replayable

    def replay(self, recording: Any) -> None:
        """Do what was noted."""
        self.call("cudaGraphLaunch", recording, self._stream)

    def forget(self, recording: Any) -> None:
        """Free a recording."""
        with contextlib.suppress(BackendError):
            self.call("cudaGraphExecDestroy", recording)

    def close(self) -> None:
        """Free the memory and the stream; the arrays must not be touched again.

        A GPU that has failed refuses this too, and frees all when the process ends.
        """
        with contextlib.suppress(BackendError):
            while self._memory:
                self.call(*self._memory.pop())
            self.call("cudaStreamDestroy", self._stream)

    def _keep(self, free: str, address: int) -> int:
        self._memory.append((free, int(address)))
        return int(address)

    def _copy(self, to: int, source: int, num_bytes: int, direction: str) -> None:
        kind = getattr(self._runtime.cudaMemcpyKind, direction)
        self.call("cudaMemcpyAsync", to, source, num_bytes, kind, self._stream)
