"""What the values inside a graph are like on the model's own samples, for 8-bit units that fit them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from kaem.backend import open_session
from kaem.noise import uniforms
from kaem_export.passes.editing import with_shapes
from kaem_export.passes.eight_bit import Range
from kaem_export.probes import tail_uniforms

_SEED = 0
_ROWS = 256
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
    rows = np.concatenate([uniforms(_SEED, 0, _ROWS, noise_dim), tail_uniforms(noise_dim, _ROWS, _SEED)])
    found = {}
    for name, value in _values(model, {*names}, rows).items():
        mean = value[:_ROWS].astype(np.float64).mean(axis=(0, *range(2, value.ndim)))
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
