"""The tensors of a model in the protocol's words: `uniform` goes in, `image` and `latent` come out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from kaem.artifact import Manifest
from kaem.errors import RequestError
from kaem.protocol import inference_pb2
from kaem.sampler import Images, Uniforms
from kaem.validation import check_uniforms
from serve.catalog.model import ServedModel
from serve.statuses import blaming

UNIFORM, IMAGE, LATENT = "uniform", "image", "latent"
_RAW_FIELD = "raw_input_contents[0]"

_Request = inference_pb2.ModelInferRequest
_DATA_TYPES = {"FP32": inference_pb2.TYPE_FP32, "UINT8": inference_pb2.TYPE_UINT8}
_NUMPY_TYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1")}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a model.

    Attributes:
        name: Name of the tensor.
        datatype: Type of its elements, as the protocol writes it.
        dims: Its shape without the number of rows.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]

    @property
    def data_type(self) -> inference_pb2.DataType:
        """The same type as a model's configuration writes it."""
        return _DATA_TYPES[self.datatype]

    @property
    def row_bytes(self) -> int:
        """What one row takes."""
        return math.prod(self.dims) * _NUMPY_TYPES[self.datatype].itemsize

    def bytes_of(self, rows: Images) -> bytes:
        """Return the bytes of some rows, little-endian and in C order."""
        content: bytes = rows.astype(_NUMPY_TYPES[self.datatype], copy=False).tobytes()
        return content


def input_of(manifest: Manifest) -> Tensor:
    """Return the tensor that a model takes."""
    return Tensor(UNIFORM, "FP32", (manifest.noise_dim,))


def outputs_of(model: ServedModel) -> dict[str, Tensor]:
    """Return the tensors that a model makes, by name."""
    manifest = model.manifest
    image = Tensor(IMAGE, {"float32": "FP32", "uint8": "UINT8"}[manifest.image_type], manifest.image_shape)
    latent = Tensor(LATENT, "FP32", (manifest.latent_dim,))
    return {tensor.name: tensor for tensor in ((image, latent) if model.makes_latents else (image,))}


def read_uniforms(request: _Request, noise_dim: int, max_rows: int) -> Uniforms:
    """Read the one tensor of a request; every size is checked before anything of that size is made.

    Args:
        request: With one input or more.
        noise_dim: D of the model.
        max_rows: Most rows.

    Returns:
        Shape (N, D).

    Raises:
        RefusedError: INVALID_ARGUMENT, it is not float32 [N, D] with N in 1 .. `max_rows`, or a value is not in range.
    """
    with blaming("inputs"):
        if len(request.inputs) != 1:
            raise RequestError(f"{len(request.inputs)} inputs; this model takes one, {UNIFORM!r}")
    tensor = request.inputs[0]
    with blaming("inputs[0].name"):
        if tensor.name != UNIFORM:
            raise RequestError(f"no input named {tensor.name[:80]!r}", hint=f"this model takes {UNIFORM!r}")
    with blaming("inputs[0].datatype"):
        if tensor.datatype != "FP32":
            raise RequestError(f"{UNIFORM!r} is {tensor.datatype[:80]!r}; this model takes FP32")
    with blaming("inputs[0].parameters"):
        if tensor.parameters:
            names = ", ".join(repr(name[:80]) for name in sorted(tensor.parameters))
            raise RequestError(f"unknown parameters of {UNIFORM!r}: {names}", hint="send its values with the request")
    shape = list(tensor.shape[:9])
    with blaming("inputs[0].shape"):
        if len(shape) != 2 or shape[1] != noise_dim or shape[0] < 1:
            raise RequestError(f"{UNIFORM!r} has shape {shape}; this model takes [N, {noise_dim}] with N >= 1")
        if shape[0] > max_rows:
            raise RequestError(f"{shape[0]} rows; at most {max_rows} go in one request", hint="send fewer at a time")
    is_raw = bool(request.raw_input_contents)
    rows = (_raw if is_raw else _listed)(request, shape[0], noise_dim)
    with blaming(_RAW_FIELD if is_raw else "inputs[0].contents"):
        return check_uniforms(rows, noise_dim)


def _raw(request: _Request, rows: int, noise_dim: int) -> Uniforms:
    content = request.raw_input_contents
    with blaming("raw_input_contents"):
        if len(content) != 1 or request.inputs[0].HasField("contents"):
            raise RequestError(
                f"{len(content)} raw contents for 1 input", hint="give its values once, raw or in its contents"
            )
    with blaming(_RAW_FIELD):
        if len(content[0]) != 4 * rows * noise_dim:
            raise RequestError(
                f"{UNIFORM!r} has {len(content[0])} bytes; {rows} rows of {noise_dim} FP32 values take "
                f"{4 * rows * noise_dim}"
            )
    return np.frombuffer(content[0], "<f4").reshape(rows, noise_dim).astype(np.float32, copy=False)


def _listed(request: _Request, rows: int, noise_dim: int) -> Uniforms:
    values = request.inputs[0].contents.fp32_contents
    with blaming("inputs[0].contents"):
        if len(values) != rows * noise_dim:
            raise RequestError(
                f"{UNIFORM!r} has {len(values)} values in fp32_contents; {rows} rows of {noise_dim} take "
                f"{rows * noise_dim}"
            )
    return np.fromiter(values, np.float32, rows * noise_dim).reshape(rows, noise_dim)
