"""What a sampler is: the one interface that a local model and a remote server both satisfy.

A sampler is a pure function of noise, and noise is a pure function of (seed, index); so sample `i` of seed
`s` is one fixed image, whoever computes it and however a request is split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from kaem.artifact import Manifest

Images = NDArray[Any]
"""Shape (N, C, H, W): float32 in [0, 1], or uint8, as the artifact's manifest states."""

Uniforms = NDArray[np.float32]
"""Shape (N, D): signed uniforms in [-1/2, 1/2], or plain ones in [0, 1)."""

OnProgress = Callable[[int, int], None]
"""Called with (samples done, samples in all) while a request is answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Consecutive samples of one request: `images[k]` is sample `start + k` of the request's seed."""

    start: int
    images: Images


@runtime_checkable
class Sampler(Protocol):
    """Draws images; satisfied by `kaem.load(path)` and by `kaem.connect(target)`."""

    @property
    def manifest(self) -> Manifest:
        """What the model is: image shape, noise dimension, prior, certificate."""
        ...

    @property
    def numerics_id(self) -> str:
        """Digest of all that fixes the bits of an image: artifact, provider and the provider's version."""
        ...

    def sample(self, num: int, seed: int, start: int = 0, *, on_progress: OnProgress | None = None) -> Images:
        """Return samples `start .. start + num - 1` of `seed`, shape (num, C, H, W)."""
        ...

    def stream(self, num: int, seed: int, start: int = 0, *, on_progress: OnProgress | None = None) -> Iterator[Chunk]:
        """Yield the same samples in order, in chunks, holding only a bounded number in memory."""
        ...

    def decode(self, uniform: Uniforms) -> Images:
        """Map rows of uniforms, shape (N, D), to images, shape (N, C, H, W)."""
        ...

    def close(self) -> None:
        """Release threads, sessions and connections; further calls are errors."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
