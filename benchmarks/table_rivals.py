"""The lookup in quantile tables, and what others do in its place: the same draws of the same functions.

In a graph the usual way is to compare u with 200 values of F, sum and gather, without interpolation. Outside one it is
scipy's PINV. The folder tests, where `zoo.py` is, must be on the path.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
from scipy.stats import sampling
from zoo import ZOO, Family

from kaem_export.onnx_builder import add_constant, start_graph, to_model
from kaem_export.tables.laws import Laws
from kaem_export.tables.lookup import look_up, sign_uniforms
from kaem_export.tables.tree import QuantileTables

_FAMILY = ZOO["rbf20 f 8"]
_GRID = 200


def rbf_laws(count: int) -> Laws:
    """Functions of 21 Gaussian bumps with weights within 8."""
    rng = np.random.default_rng(0)
    parts = []
    for first in range(0, count, 128):
        weights = rng.uniform(-8, 8, (min(128, count - first), _FAMILY.weights.shape[1]))
        parts.append(Family(_FAMILY.features, weights, _FAMILY.edges, _FAMILY.reference).integrated())
    return Laws(parts=tuple(parts), law_of=np.arange(count), offset=np.zeros(count), scale=np.ones(count))


def own_lookup(tables: QuantileTables) -> onnxruntime.InferenceSession:
    """The nodes that an artifact has, from `uniform`, one column for each function."""
    builder, uniform = start_graph("uniform", tables.columns.size)
    return _session(builder, look_up(builder.op, tables, sign_uniforms(builder.op, uniform)).quantiles)


def compare_sum_gather(laws: Laws) -> onnxruntime.InferenceSession:
    """F at 200 points of z, compared with `uniform`, which is plain, summed and gathered."""
    count = len(laws)
    z = np.linspace(-6, 6, _GRID)
    cdf = np.stack([laws.evaluate(row, z)[0] for row in range(count)]).astype(np.float32)
    builder, uniform = start_graph("uniform", count)
    op = builder.op
    above = op.Greater(op.Unsqueeze(uniform, [2]), add_constant(op, cdf[None], "cdf"))
    passed = op.ReduceSum(op.Cast(above, to=ir.DataType.FLOAT), [2], keepdims=0)
    cell = op.Min(op.Cast(passed, to=ir.DataType.INT32), add_constant(op, np.int32(_GRID - 1), "top"))
    row = op.Add(cell, add_constant(op, (np.arange(count, dtype=np.int32) * _GRID)[None], "rows"))
    points = add_constant(op, np.tile(z.astype(np.float32), count), "points")
    return _session(builder, op.Gather(points, row, axis=0))


def scipys_pinv() -> sampling.NumericalInversePolynomial:
    """scipy's inverse of one such function."""

    class Density:
        def pdf(self, z):
            return float(np.exp(_FAMILY.log_density(0, z)[0]))

    mode = np.linspace(-6, 6, 10_001)
    center = float(mode[_FAMILY.log_density(0, mode).argmax()])
    return sampling.NumericalInversePolynomial(Density(), center=center, domain=(-6, 6), u_resolution=1e-10, order=5)


def plain_uniforms(v: np.ndarray) -> np.ndarray:
    """Signed uniforms as those in [0, 1)."""
    return np.mod(v, np.float32(1)).clip(0, np.float32(1 - 2**-24))


def _session(builder, latent) -> onnxruntime.InferenceSession:
    model = to_model(builder, latent=latent)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
