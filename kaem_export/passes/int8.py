"""Eight-bit layers, calibrated on the model's own samples and refused where they cost too much accuracy.

Scales are static, so that a row does not depend on its batch as it would with scales taken from each batch; the
layers themselves are `eight_bit.py`.
Matches: behind `latent`, dense layers of at least `_LEAST_WEIGHTS`, and chains of transposed convolutions of kernel 4,
stride 2, padding 1. Leaves alone: the prior, all nodes that `latent` depends on; every other layer and all activations.
After it: images with at least `LEAST_PSNR` against the float32 graph on samples that were not calibrated on, and
nowhere `MOST_ERROR` off, on samples from the prior's tails either.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from kaem.backend import open_session
from kaem.errors import VerificationError
from kaem.noise import uniforms
from kaem_export.passes.calibration import ranges
from kaem_export.passes.editing import constant, swept, with_shapes
from kaem_export.passes.eight_bit import chain_to_eight_bit, chains, dense_to_eight_bit, is_dense
from kaem_export.passes.prior import prior_nodes
from kaem_export.probes import tail_uniforms

LEAST_PSNR = 42.0
"""In decibels, for intensities in [0, 1]: a root mean square error of 2 in 255."""

MOST_ERROR = 0.25
"""Of any intensity in [0, 1], so that no pixel is lost."""

PROBES = 512
"""Rows at which `MOST_ERROR` is measured."""

ROWS_PER_CALL = 32
"""Of more rows, the 32-bit sums between two layers leave the processor's cache, and a row takes up to half as long
again; float32 convolutions have no such sums."""

_TEST_SEED = 1
_ROWS = 256
_LEAST_WEIGHTS = 1 << 15
"""Smaller products gain less than their rounding costs."""


def to_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with its generator in int8.

    Args:
        model: From `uniform` to `image` and `latent`, after the exact rewrites; it is not changed.

    Raises:
        VerificationError: The images differ from those of `model` by more than `LEAST_PSNR` or `MOST_ERROR` allow, or
            there is no layer to compute in 8 bits.
    """
    quantised = layers_to_int8(model)
    _require_accuracy(model, quantised)
    return quantised


def layers_to_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """Do the same whatever it costs in accuracy, for models from `latent` too.

    Raises:
        VerificationError: There is no layer to compute in 8 bits.
    """
    graph = with_shapes(ir.from_proto(model))
    inside = {*prior_nodes(graph)}
    nodes = [node for node in graph.graph if node not in inside]
    dense, doubling = [node for node in nodes if is_dense(node) and _num_weights(node) >= _LEAST_WEIGHTS], chains(nodes)
    layers = [*dense, *(layer for chain in doubling for layer in chain.layers)]
    if not layers:
        raise VerificationError(
            "no layer of this generator can be computed in int8", hint="export with --precision float32"
        )
    source = {node: str(node.inputs[0].name) for node in layers if node.inputs[0] is not None}
    by_name = ranges(model, source.values())
    found = {node: by_name[name] for node, name in source.items()}
    for node in dense:
        dense_to_eight_bit(node, found[node])
    for chain in doubling:
        chain_to_eight_bit(chain, found)
    quantised = ir.to_proto(with_shapes(swept(graph)))
    onnx.checker.check_model(quantised, full_check=True)
    return quantised


def psnr(reference: onnx.ModelProto, model: onnx.ModelProto) -> float:
    """Peak signal-to-noise ratio in dB of one graph's images against another's, on samples of their own."""
    uniform = uniforms(_TEST_SEED, 0, _ROWS, _noise_dim(reference))
    error = float(np.mean((_images(reference, uniform) - _images(model, uniform)) ** 2))
    return float("inf") if error == 0.0 else -10.0 * float(np.log10(error))


def _require_accuracy(reference: onnx.ModelProto, model: onnx.ModelProto) -> None:
    hint = "export with --precision float32"
    ratio = psnr(reference, model)
    if not ratio >= LEAST_PSNR:
        raise VerificationError(
            f"int8 images reach {ratio:.1f} dB against float32, {LEAST_PSNR:.0f} dB is the least that is let through",
            hint=hint,
        )
    uniform = tail_uniforms(_noise_dim(reference), PROBES)
    error = float(np.abs(_images(reference, uniform) - _images(model, uniform)).max())
    if not error <= MOST_ERROR:
        raise VerificationError(
            f"int8 images of samples in the prior's tails differ from float32 by up to {error:.2f}, "
            f"{MOST_ERROR} is the most that is let through",
            hint=hint,
        )


def _num_weights(node: ir.Node) -> int:
    weight = constant(node.inputs[1])
    return 0 if weight is None else math.prod(weight.shape)


def _images(model: onnx.ModelProto, uniform: NDArray[np.float32]) -> NDArray[np.float64]:
    session = open_session(model.SerializeToString(), "cpu", source="the graph")
    parts = [session.run(["image"], {"uniform": uniform[i : i + 32]})[0] for i in range(0, len(uniform), 32)]
    images = np.concatenate(parts)
    return images / 255.0 if images.dtype == np.uint8 else images.astype(np.float64)


def _noise_dim(model: onnx.ModelProto) -> int:
    return model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
