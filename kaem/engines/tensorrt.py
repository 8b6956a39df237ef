"""An engine of native TensorRT, run for batches of a few fixed sizes: a context, buffers and a CUDA graph for each.

The engine is a file of `kaem export --target tensorrt`; `tensorrt_file.py` opens it only for the very model, TensorRT,
GPU and driver it was built for. Two builds of one model may choose other kernels, so the numerics id names the build.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from kaem.artifact import Manifest, fingerprint
from kaem.engines.cpu import check_graph, read_file
from kaem.engines.cuda_stream import Stream, cuda_runtime
from kaem.engines.padding import calls, joined, padded
from kaem.engines.session import open_session
from kaem.engines.tensorrt_file import deserialised, matching_engine, native_tensorrt
from kaem.errors import ArtifactError, BackendError
from kaem.onnx_file import read_artifact
from kaem.sampler import Images, Uniforms

Profile = tuple[int, int, int]
"""Least, best and most rows of a batch, as in `kaem.engines.tensorrt_file.Engine.profiles`."""


class Fit(NamedTuple):
    """How a batch goes through an engine: in which of its profiles, and filled up to how many rows."""

    profile: int
    rows: int


def fit(rows: int, profiles: Sequence[Profile]) -> Fit:
    """Return how a batch of at most the largest profile's rows is run.

    In the profile that needs the least padding, and among those in the narrowest, which was tuned for fewer sizes.
    """
    fitting = [number for number, (_, _, most) in enumerate(profiles) if rows <= most]
    best = min(fitting, key=lambda number: (max(rows, profiles[number][0]), profiles[number][2]))
    return Fit(best, max(rows, profiles[best][0]))


class TensorRtEngine:
    """Decodes batches on one GPU; satisfies `serve.devices.engine.Engine`.

    One thread owns the contexts and the stream, and runs every call.

    Args:
        path: The artifact, an ONNX file made by `kaem export`.
        engine_file: What `kaem export --target tensorrt` made of it; by default beside it.
        device_id: Number of the GPU, as CUDA counts.

    Raises:
        ArtifactError: A file is missing or damaged, or the engine belongs to another model, TensorRT, GPU or driver.
        BackendError: TensorRT or the GPU is absent or refuses the engine.
    """

    provider = "tensorrt"
    workers = 1

    def __init__(self, path: Path, engine_file: Path | None = None, *, device_id: int = 0) -> None:
        content = read_file(path)
        self._manifest = read_artifact(content, source=str(path))
        session = open_session(content, "cpu", source=str(path))
        check_graph(session, self._manifest, path)
        file = engine_file or path.with_suffix(".engine")
        self._buckets: dict[int, _Bucket] = {}
        self._owner = ThreadPoolExecutor(1, thread_name_prefix="kaem-tensorrt")
        try:
            self._owner.submit(self._open, file, content, device_id).result()
        except BaseException:
            self._owner.shutdown()
            raise

    @property
    def manifest(self) -> Manifest:
        """What the artifact says about itself."""
        return self._manifest

    @property
    def most_rows(self) -> int:
        """Rows of the largest batch that a profile takes."""
        return max(profile[2] for profile in self._profiles)

    @property
    def numerics_id(self) -> str:
        """Digest of artifact, build, TensorRT's version, GPU and driver."""
        return self._numerics_id

    def decode(self, uniform: Uniforms) -> Images:
        """Map rows of uniforms, shape (N, D), to images, shape (N, C, H, W); the first call of each N records.

        Raises:
            BackendError: The GPU failed.
        """
        return self.decode_with_latents(uniform)[0]

    def decode_with_latents(self, uniform: Uniforms) -> tuple[Images, NDArray[np.float32]]:
        """Return what `decode` does, and the latent vectors, shape (N, Q).

        Raises:
            BackendError: The GPU failed.
        """
        sizes = [size for size in self._manifest.batch_sizes if size <= self.most_rows]
        pieces = calls(uniform, sizes, self.most_rows)
        images, latents = zip(*(self._owner.submit(self._run, piece).result() for piece in pieces), strict=True)
        return joined(images, len(uniform)), joined(latents, len(uniform))

    def close(self) -> None:
        """Free what is on the GPU and stop the owner thread."""
        self._owner.submit(self._release).result()
        self._owner.shutdown(wait=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, file: Path, content: bytes, device_id: int) -> None:
        engine = matching_engine(file, content, device=device_id)
        self._stream = Stream(cuda_runtime(), device_id)  # from here on the GPU is this thread's
        try:
            self._engine = deserialised(engine, file)
            _check_tensors(self._engine, self._manifest, file)
        except BaseException:
            self._stream.close()
            raise
        self._scratch = _Scratch(self._engine, self._stream)
        self._profiles = engine.profiles
        self._numerics_id = fingerprint("\n".join(("tensorrt", engine.key.digest, fingerprint(engine.plan))).encode())

    def _run(self, uniform: Uniforms) -> tuple[Images, NDArray[np.float32]]:
        profile, rows = fit(len(uniform), self._profiles)
        bucket = self._buckets.get(rows)
        if bucket is None:
            bucket = self._buckets[rows] = _Bucket(self._scratch, self._stream, self._manifest, profile, rows)
        images, latents = bucket.run(padded(uniform, (rows,)))
        return images[: len(uniform)], latents[: len(uniform)]

    def _release(self) -> None:
        for bucket in self._buckets.values():
            bucket.close()
        self._buckets.clear()
        self._stream.close()


class _Scratch:
    """The one block of device memory in which all contexts of an engine keep what is between input and output.

    Each context would otherwise hold a block of its own, as large as the largest batch of any profile needs: with
    eleven sizes of batches eleven times the memory. They may share it, because one stream runs them one after another.

    Args:
        engine: A `tensorrt.ICudaEngine`.
        stream: The one stream of all contexts.
    """

    def __init__(self, engine: Any, stream: Stream) -> None:
        self._engine = engine
        self._by_user = native_tensorrt().ExecutionContextAllocationStrategy.USER_MANAGED
        self._num_bytes = max(1, int(engine.device_memory_size_v2))
        self._address = stream.device_memory(self._num_bytes)

    def make_context(self, rows: int) -> Any:
        """Return a new context that keeps its intermediate results here, for batches of so many rows.

        Raises:
            BackendError: TensorRT has no room for it.
        """
        context = self._engine.create_execution_context(self._by_user)
        if context is None:
            raise BackendError(f"TensorRT has no room for batches of {rows}", hint="see nvidia-smi for free memory")
        context.set_device_memory(self._address, self._num_bytes)
        return context


class _Bucket:
    """One number of rows: a context, its buffers, and the recorded way of a batch from upload to download.

    Args:
        scratch: The memory of intermediate results, which makes the context.
        stream: The stream on which it computes.
        manifest: Manifest of the model.
        profile: Number of the profile that takes so many rows.
        rows: Number of rows of every batch.
    """

    def __init__(self, scratch: _Scratch, stream: Stream, manifest: Manifest, profile: int, rows: int) -> None:
        self._stream = stream
        self._context = scratch.make_context(rows)
        _require(self._context.set_optimization_profile_async(profile, stream.handle), "the profile", rows)
        _require(self._context.set_input_shape("uniform", (rows, manifest.noise_dim)), "the shape", rows)
        self._uniform = stream.host_array((rows, manifest.noise_dim), np.float32)
        self._image = stream.host_array((rows, *manifest.image_shape), manifest.image_type)
        self._latent = stream.host_array((rows, manifest.latent_dim), np.float32)
        self._addresses = {
            "uniform": stream.device_memory(self._uniform.nbytes),
            "image": stream.device_memory(self._image.nbytes),
            "latent": stream.device_memory(self._latent.nbytes),
        }
        for name, address in self._addresses.items():
            _require(self._context.set_tensor_address(name, address), f"the address of {name!r}", rows)
        # Once without recording: TensorRT sets up what the new shape needs, and that cannot be replayed.
        self._uniform[:] = 0
        self._enqueue(rows)
        stream.wait()
        stream.begin_recording()
        try:
            self._enqueue(rows)
        finally:
            self._recording = stream.end_recording()

    def run(self, uniform: Uniforms) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Return images and latent vectors of a full batch, in memory of their own."""
        self._uniform[:] = uniform
        self._stream.replay(self._recording)
        self._stream.wait()
        return self._image.copy(), self._latent.copy()

    def close(self) -> None:
        """Free the recording; the buffers are the stream's."""
        self._stream.forget(self._recording)

    def _enqueue(self, rows: int) -> None:
        self._stream.upload(self._addresses["uniform"], self._uniform)
        _require(self._context.execute_async_v3(self._stream.handle), "to compute", rows)
        self._stream.download(self._image, self._addresses["image"])
        self._stream.download(self._latent, self._addresses["latent"])  # a thousandth of the images' bytes


def _require(is_done: bool, what: str, rows: int) -> None:
    if not is_done:
        raise BackendError(f"TensorRT refuses {what} for a batch of {rows}", hint="build the engine again")


def _check_tensors(engine: Any, manifest: Manifest, file: Path) -> None:
    """Refuse an engine whose inputs and outputs are not what the manifest says.

    Raises:
        ArtifactError: They are not.
    """
    names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
    found = {name: (engine.get_tensor_dtype(name).name, tuple(engine.get_tensor_shape(name))[1:]) for name in names}
    expected = {
        "uniform": ("FLOAT", (manifest.noise_dim,)),
        "image": ({"float32": "FLOAT", "uint8": "UINT8"}[manifest.image_type], tuple(manifest.image_shape)),
        "latent": ("FLOAT", (manifest.latent_dim,)),
    }
    if found != expected:
        raise ArtifactError(
            f"the engine {file} has the tensors {found}, but the model's manifest says {expected}",
            hint="build it again, here: kaem export MODEL --target tensorrt",
        )
