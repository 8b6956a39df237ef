"""Images now: load a compiled sampler, or connect to a server that has one.

    with kaem.load("model.onnx") as sampler:            # or kaem.connect("grpc://127.0.0.1:50051")
        images = sampler.sample(64, seed=7)             # (64, C, H, W), the same ones everywhere

Sample `i` of seed `s` is one fixed image: requests may be split, repeated and spread over machines freely.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kaem.errors import KaemError

if TYPE_CHECKING:
    from kaem.client import RemoteSampler
    from kaem.runtime import LocalSampler

__all__ = ["KaemError", "__version__", "connect", "load"]
__version__ = "0.1.0"


def load(path: str | Path, *, provider: str = "cpu", workers: int | None = None) -> LocalSampler:
    """Load an artifact and return a sampler that runs in this process.

    Args:
        path: An ONNX file made by `kaem export`.
        provider: "cpu", "cuda" or "ort-tensorrt"; exactly this one is used, or an error says why not.
        workers: Threads that share each batch by rows on the CPU; by default one per available core.

    Raises:
        ArtifactError: The file is missing, damaged or not a kaem artifact.
        BackendError: ONNX Runtime is absent, doubly installed, or cannot run on the provider.
    """
    from kaem.runtime import LocalSampler

    return LocalSampler(Path(path), provider=provider, workers=workers)


def connect(target: str, *, timeout_s: float = 10.0) -> RemoteSampler:
    """Connect to a server and return a sampler with the same methods and the same results.

    Args:
        target: `grpc://host:port` or `host:port`.
        timeout_s: How long to wait for the server to be ready.

    Raises:
        RemoteError: No server answered in time.
    """
    from kaem.client import connect as connect_

    return connect_(target, timeout_s=timeout_s)
