from __future__ import annotations

import onnxruntime
import pytest

from kaem.engines.gpu import Gpu, installed_gpu
from kaem.errors import BackendError


@pytest.fixture(scope="session", autouse=True)
def gpu() -> Gpu:
    """The GPU, without which nothing here runs."""
    try:
        found = installed_gpu()
    except BackendError as error:
        pytest.skip(f"no NVIDIA GPU: {error.message}")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip(f"{found.name} is here, but ONNX Runtime has no CUDA: pip install 'kaem[gpu]'")
    return found
