"""The lookup in quantile tables, and what others do in its place: the same draws of the same functions.

In a graph the usual way is to compare u with 200 values of F, sum and gather, without interpolation. Outside one it is
scipy's PINV. The folder tests, where `zoo.py` is, must be on the path.
"""

from __future__ import annotations

import numpy as np
import onnxruntime
from onnx import TensorProto, helper
from scipy.stats import sampling
from zoo import ZOO, Family

from kaem_export.tables.laws import Laws
from kaem_export.tables.lookup import quantile_nodes, signed_nodes, wrap
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
    signed, constants = signed_nodes("uniform", "signed")
    nodes, more = quantile_nodes(tables, "signed", "latent")
    return _session(signed + nodes, constants | more, tables.columns.size)


def compare_sum_gather(laws: Laws) -> onnxruntime.InferenceSession:
    """F at 200 points of z, compared with `uniform`, which is plain, summed and gathered."""
    count = len(laws)
    z = np.linspace(-6, 6, _GRID)
    cdf = np.stack([laws.evaluate(row, z)[0] for row in range(count)]).astype(np.float32)
    constants = {
        "last": np.array([2], np.int64),
        "cdf": cdf[None],
        "rows": (np.arange(count, dtype=np.int32) * _GRID)[None],
        "top": np.int32(_GRID - 1),
        "points": np.tile(z.astype(np.float32), count),
    }
    node = helper.make_node
    nodes = [
        node("Unsqueeze", ["uniform", "last"], ["u"]),
        node("Greater", ["u", "cdf"], ["above"]),
        node("Cast", ["above"], ["ones"], to=TensorProto.FLOAT),
        node("ReduceSum", ["ones", "last"], ["count"], keepdims=0),
        node("Cast", ["count"], ["cell"], to=TensorProto.INT32),
        node("Min", ["cell", "top"], ["inside"]),
        node("Add", ["inside", "rows"], ["row"]),
        node("Gather", ["points", "row"], ["latent"], axis=0),
    ]
    return _session(nodes, constants, count)


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


def _session(nodes, constants, count: int) -> onnxruntime.InferenceSession:
    model = wrap(nodes, constants, source=("uniform", count), target=("latent", count), opset=21, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
