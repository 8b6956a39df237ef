"""Eight-bit layers, calibrated on the model's own samples and refused where they cost too much accuracy.

Convolutions become 2 x 2 sub-pixel ones (`sub_pixel.py`), and then they, dense layers, and the activations between them
are quantised by onnxruntime.quantization: static scales, so that a row does not depend on its batch as it would with
scales taken from each batch; weights per channel in 7 bits, for on CPUs without VNNI instructions sums of 8-bit
products overflow.
Matches: layers after `latent`. Leaves alone: the prior, all nodes that `latent` depends on; the last layer and what
follows it, for its rounding would be seen unreduced; whatever ONNX Runtime has no int8 kernel for.
After it: images with at least `LEAST_PSNR` against the float32 graph on samples that were not calibrated on.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from kaem.backend import open_session
from kaem.errors import VerificationError
from kaem.noise import uniforms
from kaem_export.passes.editing import Patch, with_shapes
from kaem_export.passes.prior import prior_nodes
from kaem_export.passes.sub_pixel import to_sub_pixel

LEAST_PSNR = 42.0
"""In decibels, for intensities in [0, 1]: a root mean square error of 2 in 255."""

_CALIBRATION_SEED, _TEST_SEED = 0, 1
_ROWS = 256
_ROWS_PER_CALL = 32
_SUMS = frozenset({"Conv", "Gemm", "MatMul"})
_LAYERS = ["Conv", "Gemm", "MatMul", "LeakyRelu", "Relu", "DepthToSpace", "Slice", "Reshape"]


def to_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with its generator in int8.

    Args:
        model: From `uniform` to `image` and `latent`, after the exact rewrites; it is not changed.

    Raises:
        VerificationError: The images differ from those of `model` by more than `LEAST_PSNR` allows.
    """
    carrier = _with_own_latents(to_sub_pixel(with_shapes(ir.from_proto(model))))
    for index, node in enumerate(carrier.graph):
        node.name = f"node_{index}"  # the quantiser leaves out nodes by their names
    nodes = list(carrier.graph)
    last = max((index for index, node in enumerate(nodes) if node.op_type in _SUMS), default=0)
    kept = [node.name for node in (*prior_nodes(carrier), *nodes[last:])]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        prepared = ir.to_proto(carrier)
        add_pre_process_metadata(prepared)  # shapes are inferred; without this note the quantiser advises to do it
        onnx.save(prepared, source)
        quantize_static(
            *(source, target, _Samples(_noise_dim(model))),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_LAYERS,
            nodes_to_exclude=kept,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        quantised = onnx.load(target)
    quantised.producer_name, quantised.producer_version = model.producer_name, model.producer_version
    del quantised.metadata_props[:]
    del quantised.opset_import[1:]
    onnx.checker.check_model(quantised, full_check=True)
    found = psnr(model, quantised)
    if not found >= LEAST_PSNR:
        raise VerificationError(
            f"int8 images reach {found:.1f} dB against float32, {LEAST_PSNR:.0f} dB is the least that is let through",
            hint="export with --precision float32",
        )
    return quantised


def _with_own_latents(model: ir.Model) -> ir.Model:
    """Let the generator read a copy of the latents: what the quantiser rounds is then not the output `latent`."""
    latent = next(value for value in model.graph.outputs if value.name == "latent")
    readers = list(latent.uses())
    first = next((node for node in model.graph if node in {reader for reader, _ in readers}), None)
    if first is not None:
        copy = Patch(first, "latent_copy").node("Identity", [latent])
        copy.type, copy.shape = latent.type, latent.shape
        for reader, index in readers:
            reader.replace_input_with(index, copy)
    return model


def psnr(reference: onnx.ModelProto, model: onnx.ModelProto) -> float:
    """Peak signal-to-noise ratio in dB of one graph's images against another's, on samples of their own."""
    uniform = uniforms(_TEST_SEED, 0, _ROWS, _noise_dim(reference))
    first, second = (_images(graph, uniform) for graph in (reference, model))
    error = float(np.mean((first - second) ** 2))
    return float("inf") if error == 0.0 else -10.0 * float(np.log10(error))


def _images(model: onnx.ModelProto, uniform: NDArray[np.float32]) -> NDArray[np.float64]:
    session = open_session(model.SerializeToString(), "cpu", source="the graph")
    parts = [session.run(["image"], {"uniform": uniform[i : i + 32]})[0] for i in range(0, len(uniform), 32)]
    images = np.concatenate(parts)
    return images / 255.0 if images.dtype == np.uint8 else images.astype(np.float64)


def _noise_dim(model: onnx.ModelProto) -> int:
    return model.graph.input[0].type.tensor_type.shape.dim[1].dim_value


class _Samples(CalibrationDataReader):  # type: ignore[misc]
    """Uniforms as the server draws them, in calls of 32 rows."""

    def __init__(self, noise_dim: int) -> None:
        uniform = uniforms(_CALIBRATION_SEED, 0, _ROWS, noise_dim)
        self._rest = iter([uniform[i : i + _ROWS_PER_CALL] for i in range(0, _ROWS, _ROWS_PER_CALL)])

    def get_next(self) -> dict[str, Any] | None:
        rows = next(self._rest, None)
        return None if rows is None else {"uniform": rows}
