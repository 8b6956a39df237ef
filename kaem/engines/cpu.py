"""A compiled sampler in this process: noise in, images out, on exactly the provider that was asked for.

The way of a sample: (seed, index) -> `noise.uniforms` -> ONNX Runtime session -> image. A batch is split by
rows over one worker thread per core, each calling the same single-threaded session, so a row's bits depend on
nothing but its own uniforms.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kaem import noise
from kaem.artifact import Manifest, fingerprint
from kaem.engines.padding import padded
from kaem.engines.processors import count_processors
from kaem.engines.providers import APPROXIMATE, GPU_ROWS, PROVIDERS
from kaem.engines.session import build_id, installed_runtime, open_session
from kaem.engines.workers import MOST_WORKERS, row_workers
from kaem.errors import ArtifactError, BackendError, RequestError
from kaem.files import read_regular
from kaem.onnx_file import read_artifact
from kaem.sampler import Chunk, Images, OnProgress, Uniforms
from kaem.unclosed import warn_unclosed
from kaem.validation import check_memory, check_range, check_uniforms, whole

MAX_ROWS = 256
"""Rows of one session call: large enough to amortise its overhead, small enough to stay near the cache."""

_MIN_ROWS_PER_WORKER = 4
_CHUNK_BYTES = 1 << 20
_MOST_BYTES = (1 << 31) - 1  # of a protobuf message, and so of an ONNX file
_ARCHIVE = b"PK\x03\x04"
_PICKLE = b"/data.pkl"
"""An archive whose first file, named in its first bytes, has this name is one of torch.save's."""


class LocalSampler:
    """A sampler on a local ONNX Runtime session; see `kaem.sampler.Sampler` for the contract.

    Thread-safe: any number of threads may call its methods at once.

    It may be pickled, and used in a process that was forked after it was loaded: there it opens the file again, with
    threads of its own, when it is first used.

    Args:
        path: An ONNX file made by `kaem export`.
        provider: "cpu", "cuda" or "ort-tensorrt".
        workers: Threads sharing each batch by rows; by default one per core this process may use. A GPU
            session takes one.

    Raises:
        ArtifactError: The file is missing, damaged, or not a kaem artifact.
        BackendError: The provider is unusable.
        RequestError: `workers` is below 1.
    """

    _was_forked = False
    _must_be_closed = False  # by whoever loaded it; not where a fork or a pickle has brought it

    def __init__(self, path: Path, *, provider: str = "cpu", workers: int | None = None) -> None:
        if workers is None:
            workers = count_processors() if provider == "cpu" else 1
        workers = whole("workers", workers)
        if not 1 <= workers <= MOST_WORKERS:
            raise RequestError(f"workers is {workers}, outside 1 .. {MOST_WORKERS}", hint="one per core is most")
        self.provider = provider
        self.workers = workers
        self._path = path
        self._absolute = Path(os.path.abspath(path))  # noqa: PTH100  # where it is found from another working directory
        self._digest = ""
        self._is_closed = False
        self._is_open = False
        self._opening = threading.Lock()
        self._open()
        self._must_be_closed = True

    def _open(self) -> None:
        """Open the session and start the threads of this process, the first time or again.

        Raises:
            ArtifactError: The file cannot be used, or is not the one that this sampler was loaded from.
            BackendError: The provider is unusable.
        """
        source, provider = str(self._path), self.provider
        # Read once: what is hashed, what is run and what the manifest describes are then the same bytes.
        content = read_file(self._absolute if self._digest else self._path)
        digest = fingerprint(content)
        if self._digest not in ("", digest):
            raise ArtifactError(
                f"{source} has changed since this sampler was loaded from it", hint="load it again, in this process"
            )
        self._manifest = read_artifact(content, source=source)
        session = open_session(content, provider, source=source)
        check_graph(session, self._manifest, self._path)
        runtime = installed_runtime()
        numerics_id = fingerprint("\n".join((digest, provider, *runtime, build_id(content, provider))).encode())
        self._sizes: tuple[int, ...] = self._manifest.batch_sizes
        self._most_rows = MAX_ROWS
        if provider != "cpu":
            # Nothing has shown that a row's bits are the same in batches of all sizes there; a server tries it out.
            numerics_id = APPROXIMATE + numerics_id.partition(":")[2]
            self._sizes = self._sizes or GPU_ROWS
            self._most_rows = GPU_ROWS[-1]
        self._session, self._numerics_id, self._digest = session, numerics_id, digest
        self._pool = row_workers(self.workers)
        self._is_open = True
        _opened.add(self)

    def _ensure_open(self) -> None:
        """Open again what a fork or a pickle has left behind.

        Raises:
            KaemError: See `_open`; or a GPU was in use before a fork, which CUDA does not survive.
        """
        if self._is_open or self._is_closed:
            return
        with self._opening:
            if self._is_open:
                return
            if self._was_forked and self.provider != "cpu":
                raise BackendError(
                    "this sampler was loaded on a GPU before this process was forked, and CUDA does not survive that",
                    hint="load it in the child, or start the child with multiprocessing's 'spawn'",
                )
            self._open()

    def _leave_behind(self) -> None:
        """Give up what a parent process opened: its threads are not here, and its locks may be held for ever."""
        _left_behind.append((self._session, self._pool))  # freeing them could wait for such a lock
        self._is_open = False
        self._was_forked = True
        self._must_be_closed = False
        self._opening = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle holds: where the file is, and what it must be; whoever reads it opens it when used."""
        state = {name: value for name, value in self.__dict__.items() if name not in ("_session", "_pool", "_opening")}
        return state | {"_is_open": False, "_was_forked": False, "_must_be_closed": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._opening = threading.Lock()
        self._session = None

    @property
    def manifest(self) -> Manifest:
        """What the artifact says about itself."""
        return self._manifest

    @property
    def numerics_id(self) -> str:
        """Digest of artifact, provider, runtime version and hardware: equal ids give equal bits.

        On a GPU it begins with `approx:`, and equal ids give images that agree up to rounding.
        """
        self._ensure_open()  # on another machine it may be another
        return self._numerics_id

    @property
    def provider_options(self) -> dict[str, str]:
        """Options that the provider really runs with, as ONNX Runtime reports them."""
        self._ensure_open()
        options: dict[str, str] = self._session.get_provider_options()[PROVIDERS[self.provider]]
        return options

    def sample(self, num: int, seed: int, start: int = 0, *, on_progress: OnProgress | None = None) -> Images:
        """Return samples `start .. start + num - 1` of `seed`.

        Args:
            num: Number of samples, at least 1; all are held in memory (use `stream` for more than fit).
            seed: In [0, 2^64).
            start: Index of the first sample; start + num must not pass 2^64.
            on_progress: Called with (samples done, num) after each batch.

        Returns:
            Shape (num, C, H, W), float32 in [0, 1] or uint8 as the manifest states.

        Raises:
            RequestError: A value is out of range, or the images would not fit in this machine's memory.
        """
        num, seed, start = check_range(num, seed, start)
        check_memory(num * self._manifest.image_bytes)
        images = np.empty((num, *self._manifest.image_shape), self._manifest.image_type)
        most = self._most_rows * self.workers
        for first in range(0, num, most):
            rows = min(most, num - first)
            uniform = noise.uniforms(seed, start + first, rows, self._manifest.noise_dim)
            [images[first : first + rows]] = self._run(uniform, "image")
            if on_progress is not None:
                on_progress(first + rows, num)
        return images

    def stream(self, num: int, seed: int, start: int = 0, *, on_progress: OnProgress | None = None) -> Iterator[Chunk]:
        """Yield the same samples in order, in chunks of about 1 MiB, computing each when it is asked for.

        Raises:
            RequestError: A value is out of range (raised at the call, not at the first chunk).
        """
        num, seed, start = check_range(num, seed, start)
        rows_per_chunk = max(1, min(self._most_rows * self.workers, _CHUNK_BYTES // self._manifest.image_bytes))
        return self._chunks(num, seed, start, rows_per_chunk, on_progress)

    def decode(self, uniform: Uniforms) -> Images:
        """Map rows of uniforms to images.

        Args:
            uniform: Shape (N, D), signed in [-1/2, 1/2] or plain in [0, 1).

        Returns:
            Shape (N, C, H, W).

        Raises:
            RequestError: Wrong shape or a value out of range.
        """
        [images] = self._run(check_uniforms(uniform, self._manifest.noise_dim), "image")
        return images

    def latents(self, uniform: Uniforms) -> NDArray[np.float32]:
        """Map rows of uniforms, shape (N, D), to the latent vectors the generator sees, shape (N, Q)."""
        [latents] = self._run(check_uniforms(uniform, self._manifest.noise_dim), "latent")
        return latents

    def decode_with_latents(self, uniform: Uniforms) -> tuple[Images, NDArray[np.float32]]:
        """Return what `decode` and `latents` return, in the time of one of them."""
        images, latents = self._run(check_uniforms(uniform, self._manifest.noise_dim), "image", "latent")
        return images, latents

    def close(self) -> None:
        """Stop the worker threads and drop the session."""
        self._is_closed = True
        self._must_be_closed = False
        if self._is_open:
            self._is_open = False
            self._pool.shutdown(wait=True)
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self, _warn: Callable[[str, object], None] = warn_unclosed) -> None:
        if self._must_be_closed:
            _warn(f"sampler of {self._path}", self)

    def _chunks(
        self, num: int, seed: int, start: int, rows_per_chunk: int, on_progress: OnProgress | None
    ) -> Iterator[Chunk]:
        for first in range(start, start + num, rows_per_chunk):
            images = self.sample(min(rows_per_chunk, start + num - first), seed, first)
            if on_progress is not None:
                on_progress(first + len(images) - start, num)
            yield Chunk(start=first, images=images)

    def _run(self, uniform: Uniforms, *outputs: str) -> list[NDArray[Any]]:
        """Evaluate some outputs for any number of rows, split between the workers."""
        if self._is_closed:
            raise RequestError("this sampler is closed")
        self._ensure_open()
        num = len(uniform)
        parts = max(1, min(self.workers, num // _MIN_ROWS_PER_WORKER))
        limit = self._manifest.rows_per_call if self.provider == "cpu" else 0  # a matter of a processor's caches
        rows = min(limit or self._most_rows, self._most_rows, -(-num // parts))
        if sizes := self._sizes:  # full batches, for every call is padded to one of these
            rows = next((size for size in sizes if size >= rows), sizes[-1])
        pieces = [uniform[first : first + rows] for first in range(0, num, rows)]
        if len(pieces) == 1:
            return self._call(pieces[0], outputs)
        results = list(self._pool.map(lambda piece: self._call(piece, outputs), pieces))
        return [np.concatenate(parts) for parts in zip(*results, strict=True)]

    def _call(self, uniform: Uniforms, outputs: Sequence[str]) -> list[NDArray[Any]]:
        num = len(uniform)
        uniform = padded(uniform, self._sizes)
        try:
            results = self._session.run(list(outputs), {"uniform": uniform})
        except Exception as error:  # onnxruntime's own exception classes share no public base
            raise BackendError(f"ONNX Runtime failed on {len(uniform)} rows: {error}") from error
        return [np.asarray(result)[:num] for result in results]


_opened: weakref.WeakSet[LocalSampler] = weakref.WeakSet()
_left_behind: list[Any] = []


def _after_fork() -> None:
    for sampler in list(_opened):
        if sampler._is_open:
            sampler._leave_behind()


os.register_at_fork(after_in_child=_after_fork)


def read_file(path: Path) -> bytes:
    """Return the bytes of a model file.

    Raises:
        ArtifactError: It is missing, cannot be read, is larger than any ONNX file can be, or is a checkpoint.
    """
    content = read_any_file(path, most_bytes=_MOST_BYTES)
    if content.startswith(_ARCHIVE) and _PICKLE in content[:512]:
        raise ArtifactError(f"{path} is a checkpoint, not an exported model", hint=f"export it: kaem export {path}")
    return content


def read_any_file(path: Path, *, most_bytes: int | None = None) -> bytes:
    """Return the bytes of a model file or a checkpoint.

    Args:
        path: The file.
        most_bytes: What it can have; None for any number.

    Raises:
        ArtifactError: It is missing, larger, no regular file, or cannot be read.
    """
    if path.is_dir():
        raise ArtifactError(f"{path} is not a file")
    try:
        return read_regular(path, most_bytes=most_bytes)
    except FileNotFoundError:
        raise ArtifactError(
            f"no model file at {path}", hint="make one with: kaem export ckpt.pt -o model.onnx"
        ) from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def check_graph(session: Any, manifest: Manifest, path: Path) -> None:
    """Refuse a graph whose inputs and outputs are not what its manifest says.

    Raises:
        ArtifactError: They are not.
    """
    inputs = [(node.name, node.type, node.shape[1:]) for node in session.get_inputs()]
    outputs = {node.name: (node.type, node.shape[1:]) for node in session.get_outputs()}
    image_type = {"float32": "tensor(float)", "uint8": "tensor(uint8)"}[manifest.image_type]
    expected_inputs = [("uniform", "tensor(float)", [manifest.noise_dim])]
    expected_outputs = {
        "image": (image_type, list(manifest.image_shape)),
        "latent": ("tensor(float)", [manifest.latent_dim]),
    }
    if inputs != expected_inputs or outputs != expected_outputs:
        raise ArtifactError(
            f"the graph of {path} has inputs {inputs} and outputs {outputs}, but its manifest says "
            f"{expected_inputs} and {expected_outputs}",
            hint="export it again",
        )
