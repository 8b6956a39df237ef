"""Eight-bit layers, calibrated on the model's own samples and refused where they cost too much accuracy.

Scales are static, so that a row does not depend on its batch as it would with scales taken from each batch; the
layers themselves are `eight_bit.py`.
Matches: behind `latent`, dense layers of at least `_LEAST_WEIGHTS`, and chains of transposed convolutions of kernel 4,
stride 2, padding 1. Leaves alone: the prior, all nodes that `latent` depends on; every other layer and all activations.
After it: images with at least `LEAST_PSNR` against the float32 graph on samples that were not calibrated on, and
nowhere `MOST_ERROR` off, on samples from the prior's tails either.

What the values inside a graph are like on the model's own samples, for 8-bit units that fit them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from kaem.engines.session import open_session
from kaem.errors import VerificationError
from kaem.noise import uniforms
from kaem_export.proof.rows import tail_uniforms
from kaem_export.rewrite.editing import constant, prior_nodes, swept, with_shapes
from kaem_export.rewrite.eight_bit import Range, chain_to_eight_bit, chains, dense_to_eight_bit, is_dense

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


_SEED = 0
_CALIBRATION_ROWS = 256
_ROWS_PER_CALL = 32
_CLIPPED = np.linspace(0.3, 1.0, 29)
_MOST_VALUES = 1 << 20


def ranges(model: onnx.ModelProto, names: Iterable[str]) -> dict[str, Range]:
    """Return for values of a graph the ends of 8-bit numbers that round them with the least mean square error.

    Args:
        model: Model of one input, `uniform`, or another whose values are like it.
        names: Names of values with rows of channels: (N, C) or (N, C, H, W).

    The samples are 256 random ones, and as many with one uniform in a tail, so that what is rare there still fits.
    """
    noise_dim = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    rows = np.concatenate(
        [uniforms(_SEED, 0, _CALIBRATION_ROWS, noise_dim), tail_uniforms(noise_dim, _CALIBRATION_ROWS, _SEED)]
    )
    found = {}
    for name, value in _values(model, {*names}, rows).items():
        mean = value[:_CALIBRATION_ROWS].astype(np.float64).mean(axis=(0, *range(2, value.ndim)))
        flat = value.reshape(-1)
        low, high = _ends(flat[:: -(-len(flat) // _MOST_VALUES)], float(flat.min()), float(flat.max()))
        found[name] = Range(low, high, mean)
    return found


def _ends(values: NDArray[np.float32], low: float, high: float) -> tuple[float, float]:
    """Try to cut both ends, or the upper one alone: rare values may lose more than all others gain by a finer unit."""
    low, high = min(low, 0.0), max(high, 0.0)
    tried = [(low * least, high * most) for most in _CLIPPED for least in {most, 1.0}]
    return min(tried, key=lambda ends: _error(values, *ends))


def _error(values: NDArray[np.float32], low: float, high: float) -> float:
    step = np.float32(max((high - low) / 255.0, 1e-30))
    first = np.rint(low / step)
    rounded = np.clip(np.rint(values / step), first, first + 255) * step
    return float(np.mean((rounded - values) ** 2))


def _values(model: onnx.ModelProto, names: set[str], rows: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Run the graph with these values as its outputs."""
    proto = ir.to_proto(with_shapes(ir.from_proto(model)))
    inner = {value.name: value for value in proto.graph.value_info}
    outer, source = {value.name for value in proto.graph.output}, model.graph.input[0].name
    proto.graph.output.extend(inner[name] for name in sorted(names - outer - {source}))
    session = open_session(proto.SerializeToString(), "cpu", source="the graph")
    order = sorted(names - {source})
    calls = [
        session.run(order, {source: rows[first : first + _ROWS_PER_CALL]})
        for first in range(0, len(rows), _ROWS_PER_CALL)
    ]
    found = {name: np.concatenate(parts) for name, parts in zip(order, zip(*calls, strict=True), strict=True)}
    return found | ({source: rows} if source in names else {})
