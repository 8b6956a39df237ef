"""Quantile tables: how exact, how large, how fast to bake and to look up; a Markdown table on stdout.

    python benchmarks/tables.py [folder of checkpoints]

Speeds are ratios of processor time, alternately measured in one process on one thread. The alternative in a
graph is the usual one: compare u with 200 values of F, sum, gather, and no interpolation. Outside it is scipy's PINV.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper
from scipy.stats import sampling

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from zoo import ZOO, Family

from kaem.errors import KaemError
from kaem.noise import uniforms
from kaem_export.bake import bake, score
from kaem_export.collapse import collapse
from kaem_export.laws import Laws
from kaem_export.lookup import quantile_nodes, signed_nodes, wrap
from kaem_export.prior_tables import tabulate
from kaem_export.tree import QuantileTables
from kaem_train.checkpoint import load_kaem
from kaem_train.model.prior import MixturePrior
from kaem_train.sections import PriorConfig

_GRID = 200
_ROUNDS = 15


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print("### Exactness and size\n")
    print("| functions | number | leaves each | KB each | score 99.9 % | score max | max u-error | bake s |")
    print("|---|---|---|---|---|---|---|---|")
    for name, family in ZOO.items():
        _row(name, family.laws)
    for checkpoint in sorted(Path(sys.argv[1]).rglob("ckpt.pt")) if len(sys.argv) > 1 else []:
        _checkpoint_row(checkpoint)
    print("\n### Baking\n\n| what | s, one thread |\n|---|---|")
    print(f"| 3240 functions, RBF | {_seconds(_many_functions):.1f} |")
    print(f"| 100 marginals of 201 components, RBF | {_seconds(_marginals):.1f} |")
    print("\n### Looking up 100 columns, one thread\n")
    print("| batch | ns a value | share of compare-sum-gather at 200 values | times scipy PINV |\n|---|---|---|---|")
    for batch in (64, 256):
        _speed_row(batch)


def _row(name: str, laws_of) -> None:
    start = time.process_time()
    laws = laws_of()
    baked = bake(laws)
    seconds = time.process_time() - start
    _print_row(name, laws, baked, seconds)


def _checkpoint_row(path: Path) -> None:
    try:
        config, model = load_kaem(path)
        start = time.process_time()
        tabulated = tabulate(model.prior)
    except KaemError as error:
        print(f"| {path}: {error} | | | | | | | |")
        return
    prior = config.prior
    name = f"{path.parent}: {prior.variant}, {prior.basis}, Q {prior.num_latents}, P {prior.num_components}"
    _print_row(name, tabulated.laws, tabulated.baked, time.process_time() - start)


def _print_row(name: str, laws: Laws, baked, seconds: float) -> None:
    tables, count = baked.tables, baked.tables.num_functions
    largest, quantile, worst = _scores(laws, tables)
    leaves = np.count_nonzero(tables.leaves[:, 3:].any(axis=1)) / count
    size = tables.num_bytes / 1000 / count
    number = f"{len(laws)}" if count == len(laws) else f"{len(laws)} ({count} tables)"
    figures = (f"{leaves:.0f}", f"{size:.1f}", f"{quantile:.2f}", f"{largest:.2f}", f"{worst:.1e}", f"{seconds:.2f}")
    print(f"| {name} | {number} | {' | '.join(figures)} |", flush=True)


def _scores(laws: Laws, tables: QuantileTables) -> tuple[float, float, float]:
    """Score half a million draws and both tails, in the arithmetic of the graph."""
    own = tables.reading(np.arange(tables.num_functions))
    depth = np.geomspace(2.0**-33, 0.5, max(50, 100_000 // own.num_functions), dtype=np.float32)[:, None]
    count = max(200, 500_000 // own.num_functions)
    v = np.concatenate([uniforms(3, 0, count, 1), depth, -depth])
    v = np.repeat(v, own.num_functions, axis=1)
    z = own.look_up(v)
    scores, errors = [], []
    for part, run, first in laws.slices(np.arange(own.num_functions)):
        cdf, survival, density = part.evaluate(np.arange(run.start, run.stop) - first, z[:, run].astype(np.float64))
        found, u_error, _ = score(cdf, survival, density, v[:, run], z[:, run])
        scores.append(found.reshape(-1))
        errors.append(u_error.max())
    every = np.concatenate(scores)
    return float(every.max()), float(np.quantile(every, 0.999)), float(max(errors))


def _seconds(work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _many_functions() -> None:
    bake(_rbf_laws(3240))


def _rbf_laws(count: int) -> Laws:
    family, rng = ZOO["rbf20 f 8"], np.random.default_rng(0)
    parts = []
    for first in range(0, count, 128):
        weights = rng.uniform(-8, 8, (min(128, count - first), family.weights.shape[1]))
        parts.append(Family(family.features, weights, family.edges, family.reference).integrated())
    return Laws(parts=tuple(parts), law_of=np.arange(count), offset=np.zeros(count), scale=np.ones(count))


def _marginals() -> None:
    prior = MixturePrior(PriorConfig(num_latents=100, num_components=201))
    with torch.no_grad():
        prior.bank.coefficients.uniform_(-8, 8)
        prior.logits.normal_()
    bake(collapse(prior))


def _speed_row(batch: int) -> None:
    laws = _rbf_laws(100)
    tables = bake(laws).tables
    signed, constants = signed_nodes("uniform", "signed")
    nodes, more = quantile_nodes(tables, "signed", "latent")
    ours = _session(signed + nodes, constants | more)
    theirs = _session(*_compare_sum_gather(laws))
    v = uniforms(1, 0, batch, 100)
    plain = np.mod(v, np.float32(1)).clip(0, np.float32(1 - 2**-24))
    pinv = _pinv()
    u = plain.astype(np.float64).reshape(-1)
    took = _alternately(
        lambda: ours.run(None, {"uniform": v}), lambda: theirs.run(None, {"uniform": plain}), lambda: pinv.ppf(u)
    )
    per_value = took[0] / v.size * 1e9
    print(f"| {batch} | {per_value:.0f} | {took[0] / took[1]:.2f} | {took[0] / took[2]:.1f} |")


def _session(nodes, constants) -> onnxruntime.InferenceSession:
    model = wrap(nodes, constants, source=("uniform", 100), target=("latent", 100), opset=21, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _compare_sum_gather(laws: Laws):
    """F at 200 points of z, compared with u, summed and gathered."""
    z = np.linspace(-6, 6, _GRID)
    cdf = np.stack([laws.evaluate(row, z)[0] for row in range(100)]).astype(np.float32)
    constants = {
        "last": np.array([2], np.int64),
        "cdf": cdf[None],
        "rows": (np.arange(100, dtype=np.int32) * _GRID)[None],
        "top": np.int32(_GRID - 1),
        "points": np.tile(z.astype(np.float32), 100),
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
    return nodes, constants


def _pinv():
    family = ZOO["rbf20 f 8"]

    class Density:
        def pdf(self, z):
            return float(np.exp(family.log_density(0, z)[0]))

    mode = np.linspace(-6, 6, 10_001)
    center = float(mode[family.log_density(0, mode).argmax()])
    return sampling.NumericalInversePolynomial(Density(), center=center, domain=(-6, 6), u_resolution=1e-10, order=5)


def _alternately(*works) -> list[float]:
    """Best processor time of each, taking turns."""
    best = [np.inf] * len(works)
    for round_ in range(_ROUNDS):
        for index, work in enumerate(works):
            took = _seconds(lambda work=work: [work() for _ in range(5)]) / 5
            if round_:
                best[index] = min(best[index], took)
    return best


if __name__ == "__main__":
    main()
