"""Our types to protobuf messages and back; the one file that knows both, shared by client and server."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from kaem import images as pictures
from kaem.artifact import MANIFEST_KEY, Manifest, read_manifest, write_manifest
from kaem.errors import RemoteError, RequestError
from kaem.protocol import kaem_pb2
from kaem.sampler import Images, Uniforms

MESSAGE_HEADROOM = 64 << 10
"""Bytes of a message kept free for everything that is not pixels or uniforms."""

MAX_MESSAGE_BYTES = 4 << 20
"""Largest message of the contract: what every gRPC client accepts unless told otherwise."""

_ARRAY_TYPES: dict[int, np.dtype[Any]] = {
    kaem_pb2.ENCODING_FLOAT32: np.dtype("<f4"),
    kaem_pb2.ENCODING_UINT8: np.dtype("u1"),
}
_PNG_OVERHEAD = 256  # signature, headers and checksums of one file, and its framing in the message


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What fits in one message.

    Attributes:
        max_chunk_bytes: Bytes of images in one chunk; one image that is larger travels alone.
        max_sample_rows: Most samples of one Sample call, in the artifact's own element type.
        max_decode_rows: Most rows of one Decode call, in the artifact's own element type.
    """

    max_chunk_bytes: int
    max_sample_rows: int
    max_decode_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What a server says it samples from.

    Attributes:
        name: Under which it is offered.
        manifest: Manifest of the artifact.
        numerics_id: Digest of all that fixes the bits of an image.
        provider: Where images are computed, as `kaem.load` has it.
        limits: What fits in one message.
        version: Version of the model, at least 1; 0 from a server that has no versions.
    """

    name: str
    manifest: Manifest
    numerics_id: str
    provider: str
    limits: Limits
    version: int = 0


def resolve_encoding(encoding: kaem_pb2.Encoding, manifest: Manifest) -> kaem_pb2.Encoding:
    """Return the encoding a request means for this model; unspecified is the artifact's own element type.

    Raises:
        RequestError: The encoding is unknown, or the model's images cannot be written in it.
    """
    is_float = manifest.image_type == "float32"
    if encoding == kaem_pb2.ENCODING_UNSPECIFIED:
        return kaem_pb2.ENCODING_FLOAT32 if is_float else kaem_pb2.ENCODING_UINT8
    if encoding not in kaem_pb2.Encoding.values():
        raise RequestError(f"encoding {encoding} is unknown", hint="upgrade the server, or leave it unspecified")
    if encoding == kaem_pb2.ENCODING_FLOAT32 and not is_float:
        raise RequestError("this model makes uint8 images; FLOAT32 is not available", hint="ask for UINT8")
    if encoding == kaem_pb2.ENCODING_PNG and manifest.image_shape[0] not in (1, 3):
        raise RequestError(
            f"PNG holds 1 or 3 channels; images of this model have {manifest.image_shape[0]}",
            hint="ask for FLOAT32 or UINT8",
        )
    return encoding


def rows_per_chunk(manifest: Manifest, encoding: kaem_pb2.Encoding, max_bytes: int) -> int:
    """Return how many images surely fit in `max_bytes` of a chunk, at least 1.

    Args:
        manifest: Manifest of the model.
        encoding: Resolved, see `resolve_encoding`.
        max_bytes: Bytes of images in the chunk.
    """
    values = math.prod(manifest.image_shape)
    if encoding == kaem_pb2.ENCODING_PNG:
        raw = values + manifest.image_shape[1]  # one filter byte per row of pixels
        return max(1, max_bytes // (raw + raw // 128 + _PNG_OVERHEAD))  # incompressible pixels grow a little
    return max(1, max_bytes // (values * _ARRAY_TYPES[encoding].itemsize))


def chunk_from_images(images: Images, *, start: int, encoding: kaem_pb2.Encoding, numerics_id: str) -> kaem_pb2.Chunk:
    """Write images into a message.

    Args:
        images: Shape (N, C, H, W), float32 or uint8, N at least 1.
        start: Index of the first.
        encoding: Resolved; PNG takes long enough to be worth a thread.
        numerics_id: Identity of the numerics of the sampler that made them.
    """
    chunk = kaem_pb2.Chunk(
        start_index=start,
        count=len(images),
        encoding=encoding,
        shape=images.shape,
        numerics_id=numerics_id,
    )
    if encoding == kaem_pb2.ENCODING_PNG:
        chunk.png.extend(pictures.encode_png(image) for image in images)
    elif encoding == kaem_pb2.ENCODING_UINT8:
        chunk.data = pictures.to_uint8(images).tobytes()
    else:
        chunk.data = images.astype("<f4", copy=False).tobytes()
    return chunk


def images_from_chunk(
    chunk: kaem_pb2.Chunk, *, manifest: Manifest, numerics_id: str, start: int, max_rows: int
) -> Images:
    """Read the images of an answer in the artifact's own element type, checking all that the contract promises.

    Args:
        chunk: The message.
        manifest: Manifest of the model that was asked.
        numerics_id: The one the client relies on.
        start: Index the first image must have.
        max_rows: Most images still wanted.

    Returns:
        Shape (N, C, H, W), read-only: a view of the message.

    Raises:
        RemoteError: The answer is not what was asked for.
    """
    check_numerics(chunk.numerics_id, numerics_id)
    rows = chunk.count
    if chunk.start_index != start or not 1 <= rows <= max_rows:
        raise RemoteError(
            f"the server sent {rows} images from index {chunk.start_index}; "
            f"expected at most {max_rows} from index {start}"
        )
    encoding = resolve_encoding(kaem_pb2.ENCODING_UNSPECIFIED, manifest)
    dtype, shape = _ARRAY_TYPES[encoding], (rows, *manifest.image_shape)
    num_bytes = math.prod(shape) * dtype.itemsize
    if chunk.encoding != encoding or tuple(chunk.shape) != shape or len(chunk.data) != num_bytes:
        raise RemoteError(
            f"the server sent {len(chunk.data)} bytes of encoding {chunk.encoding} and shape "
            f"{tuple(chunk.shape)}; expected {num_bytes} of encoding {encoding} and shape {shape}"
        )
    images: Images = np.frombuffer(chunk.data, dtype).reshape(shape)
    return images.astype(dtype.newbyteorder("="), copy=False)


def check_numerics(found: str, expected: str) -> None:
    """Check that bits computed under `found` may stand beside bits computed under `expected`.

    Raises:
        RemoteError: They may not.
    """
    if found != expected:
        raise RemoteError(
            f"the server computes with numerics id {found or '(none)'}, but {expected} is expected",
            hint="the server's model, provider or version has changed: connect again",
        )


def bytes_from_uniforms(uniform: Uniforms) -> bytes:
    """Write rows of uniforms, shape (N, D), as the bytes of a DecodeRequest."""
    return uniform.astype("<f4", copy=False).tobytes()


def uniforms_from_request(request: kaem_pb2.DecodeRequest, noise_dim: int) -> Uniforms:
    """Read the rows of uniforms of a request; their values are not checked.

    Returns:
        Shape (N, D), read-only.

    Raises:
        RequestError: There are no rows, or the number of bytes is not 4 N D.
    """
    if request.count < 1:
        raise RequestError("count is 0; give at least 1 row of uniforms")
    if len(request.uniform) != 4 * request.count * noise_dim:
        raise RequestError(
            f"uniform has {len(request.uniform)} bytes; {request.count} rows of {noise_dim} float32 values "
            f"take {4 * request.count * noise_dim}"
        )
    rows: Uniforms = np.frombuffer(request.uniform, "<f4").reshape(request.count, noise_dim)
    return rows.astype(np.float32, copy=False)


def message_from_model(model: Model) -> kaem_pb2.Model:
    """Write what a server says about itself; inverse of `model_from_message`."""
    return kaem_pb2.Model(
        name=model.name,
        manifest=write_manifest(model.manifest),
        numerics_id=model.numerics_id,
        provider=model.provider,
        limits=kaem_pb2.Limits(
            max_chunk_bytes=model.limits.max_chunk_bytes,
            max_sample_rows=model.limits.max_sample_rows,
            max_decode_rows=model.limits.max_decode_rows,
        ),
        version=model.version,
    )


def model_from_message(message: kaem_pb2.Model, *, source: str, version: int = 0) -> Model:
    """Read and validate what a server says about itself.

    Args:
        message: The answer to GetModel.
        source: The server's address, for messages.
        version: The one that was asked for; 0 for any.

    Raises:
        ArtifactError: The manifest is damaged, or a newer kaem wrote it.
        RemoteError: The rest is not valid, or the server does not know of versions.
    """
    manifest = read_manifest({MANIFEST_KEY: message.manifest}, source=f"the model of {source}")
    limits: dict[str, Any] = {name: getattr(message.limits, name) for name in Limits.__slots__}
    if not message.numerics_id or min(limits.values()) < 1:
        raise RemoteError(f"{source} gave no numerics id or a limit of 0", hint="is it a kaem server?")
    if version and message.version != version:
        raise RemoteError(
            f"{source} was asked for version {version} and gave version {message.version}",
            hint="upgrade the server: it has no versions",
        )
    return Model(
        name=message.name,
        manifest=manifest,
        numerics_id=message.numerics_id,
        provider=message.provider,
        limits=Limits(**limits),
        version=message.version,
    )
