"""The NVIDIA GPU of this process, asked from the driver's own libraries: no CUDA package is needed to know it."""

from __future__ import annotations

import ctypes
from importlib import metadata
from typing import NamedTuple

from kaem.errors import BackendError

_DRIVER = "libcuda.so.1"
_MANAGEMENT = "libnvidia-ml.so.1"
_KERNELS = ("nvidia-cublas", "nvidia-cublas-cu12", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")


class Gpu(NamedTuple):
    """What an engine is tied to."""

    name: str
    driver: str


def installed_gpu(device: int = 0) -> Gpu:
    """Return the model of a GPU and the version of its driver.

    Args:
        device: Its number as CUDA counts, so that `CUDA_VISIBLE_DEVICES` holds.

    Raises:
        BackendError: There is no driver here, no such device, or the driver does not answer.
    """
    cuda, management = _library(_DRIVER), _library(_MANAGEMENT)
    _require(cuda.cuInit(0), "cuInit")
    handle = ctypes.c_int()
    _require(cuda.cuDeviceGet(ctypes.byref(handle), device), f"cuDeviceGet({device})")
    name = ctypes.create_string_buffer(256)
    _require(cuda.cuDeviceGetName(name, len(name), handle), "cuDeviceGetName")
    driver = ctypes.create_string_buffer(96)
    _require(management.nvmlInit_v2(), "nvmlInit_v2")
    try:
        _require(management.nvmlSystemGetDriverVersion(driver, len(driver)), "nvmlSystemGetDriverVersion")
    finally:
        management.nvmlShutdown()
    return Gpu(name.value.decode(errors="replace"), driver.value.decode(errors="replace"))


def kernel_libraries() -> tuple[str, ...]:
    """Name the installed packages with the matrix products and convolutions that CUDA programs call, with versions."""
    found: list[str] = []
    for name in _KERNELS:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return tuple(found)


def _library(name: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name)
    except OSError:
        raise BackendError(
            f"no NVIDIA driver here ({name} cannot be loaded)",
            hint="use a machine with an NVIDIA GPU, where nvidia-smi works; in a container: --gpus all",
        ) from None


def _require(status: int, call: str) -> None:
    if status != 0:
        raise BackendError(f"the NVIDIA driver answers {call} with error {status}", hint="check it with nvidia-smi")
