"""Images now: load a compiled sampler, or connect to a server that has one.

    with kaem.load("model.onnx") as sampler:            # or kaem.connect("grpc://127.0.0.1:50051")
        images = sampler.sample(64, seed=7)             # (64, C, H, W), the same ones everywhere

Sample `i` of seed `s` is one fixed image: requests may be split, repeated and spread over machines freely.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from kaem.errors import KaemError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kaem.client import Connecting, Credentials, Hedging, Patience, RemoteSampler
    from kaem.engines.cpu import LocalSampler

__all__ = ["KaemError", "__version__", "connect", "connect_async", "load"]
__version__ = "0.1.0"

# From 1.29 on ONNX Runtime tells its maker about models and machines, and keeps a file for that, unless this is set
# before it is imported. Who wants that sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


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
    from kaem.engines.cpu import LocalSampler

    return LocalSampler(Path(path), provider=provider, workers=workers)


def connect(
    targets: str | Sequence[str],
    *,
    timeout_s: float = 10.0,
    patience: Patience | None = None,
    hedging: Hedging | None = None,
    credentials: Credentials | None = None,
    model: str = "",
    version: int = 0,
) -> RemoteSampler:
    """Connect to a server, or to several that share the work; same methods and same results as a local sampler.

    Args:
        targets: `grpc://host:port` or `host:port`, `grpcs://host:port` for TLS; several, separated by commas or as a
            sequence, must have the same numerics id. One must answer now, the others may do so later.
        timeout_s: How long to wait for a server to be ready.
        patience: How long later calls put up with failures and silence (`kaem.client.Patience`).
        hedging: When to ask a second server for what a first one is late with (`kaem.client.Hedging`).
        credentials: Certificates and token (`kaem.client.Credentials`); by default what KAEM_CA_FILE,
            KAEM_TOKEN_FILE, ... say.
        model: Name of the model, for servers that have several; "" for the only one.
        version: Version of the model; 0 for the newest one. Either way the sampler stays with the version it meets now.

    Raises:
        ConfigError: A target is not an address, credentials cannot be used, or numerics ids differ.
        RequestError: A server has no such model or version.
        RemoteError: No server answered in time.
    """
    from kaem.client import connect as connect_

    return connect_(
        targets,
        timeout_s=timeout_s,
        patience=patience,
        hedging=hedging,
        credentials=credentials,
        model=model,
        version=version,
    )


def connect_async(
    targets: str | Sequence[str],
    *,
    timeout_s: float = 10.0,
    patience: Patience | None = None,
    hedging: Hedging | None = None,
    credentials: Credentials | None = None,
    model: str = "",
    version: int = 0,
) -> Connecting:
    """Connect as `connect` does, for asyncio: `async with kaem.connect_async(target) as sampler`, or `await` it.

    The sampler's methods are coroutines, its streams asynchronous iterators; the images are the same.

    Args:
        targets: As for `connect`.
        timeout_s: As for `connect`.
        patience: As for `connect`.
        hedging: As for `connect`.
        credentials: As for `connect`.
        model: As for `connect`.
        version: As for `connect`.

    Raises:
        ConfigError: A target is not an address or credentials cannot be used; the rest is raised when awaited.
    """
    from kaem.client import connect_async as connect_

    return connect_(
        targets,
        timeout_s=timeout_s,
        patience=patience,
        hedging=hedging,
        credentials=credentials,
        model=model,
        version=version,
    )
