"""Quantile tables: how exact, how large, how fast to bake and to look up, and every bar with its verdict; Markdown.

    python benchmarks/tables.py [--checkpoints folder] [--quick]

The synthetic zoo of tests/zoo.py, and every ckpt.pt below a folder (`table_checkpoints.py` trains one of every basis
and reference). Speeds are ratios of processor time, alternately measured in one process on one thread. The alternative
in a graph is the usual one: compare u with 200 values of F, sum, gather, and no interpolation. Outside it is scipy's
PINV.
"""

from __future__ import annotations

import argparse
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

from table_figures import BARS, Figures, figures, worst
from zoo import ZOO, Family

from kaem.errors import KaemError
from kaem.noise import uniforms
from kaem_export.bake import bake
from kaem_export.collapse import collapse
from kaem_export.laws import Laws
from kaem_export.lookup import quantile_nodes, signed_nodes, wrap
from kaem_export.noise_certificate import noise_mismatches
from kaem_export.prior_tables import tabulate
from kaem_train.checkpoint import load_kaem
from kaem_train.model.prior import MixturePrior
from kaem_train.sections import PriorConfig

_GRID = 200
_ROUNDS = 15
_COLUMNS = ("leaves", "kilobytes", "score_999", "score", "u_error", "tail", "far_tail", "descent", "outside", "tilt")
_SMOOTH = ("near flat", "rbf20 f 2", "rbf20 f 8", "gaussian", "lognormal", "relu kink")
"""Energies within 8 of each other, without a valley."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=Path, help="folder of trained models")
    parser.add_argument("--quick", action="store_true", help="leave out what takes more than a minute")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print("### Exactness and size\n")
    print("| functions | number | " + " | ".join(_COLUMNS) + " | bake s |")
    print("|---" * (len(_COLUMNS) + 3) + "|")
    found = {name: _row(name, family.laws) for name, family in ZOO.items()}
    for checkpoint in sorted(options.checkpoints.rglob("ckpt.pt")) if options.checkpoints else []:
        found |= _checkpoint_row(checkpoint)
    bars = [(name, worst([*found.values()])[name], bar) for name, bar in BARS.items()]
    bars.append(("tilt of smooth energies within 8", max(found[name].tilt for name in _SMOOTH), 1e-9))
    bars += _sizes_and_speeds(quick=options.quick)
    bars.append(("words of noise unlike Random123's", noise_mismatches().value, 0.0))
    print("\n### Bars\n\n| figure | worst | bar | |\n|---|---|---|---|")
    for name, value, bar in bars:
        print(f"| {name} | {value:.3g} | {bar:.3g} | {'met' if value <= bar else 'missed'} |")
    print(
        "\nF against twice the resolution, total mass, equal rows and errors for densities that cannot be integrated:"
    )
    print("tests/kaem_export/test_densities.py, test_collapse.py and test_tables.py.")


def _row(name: str, laws_of) -> Figures:
    start = time.process_time()
    laws = laws_of()
    baked = bake(laws)
    return _print_row(name, laws, baked, time.process_time() - start)


def _checkpoint_row(path: Path) -> dict[str, Figures]:
    try:
        config, model = load_kaem(path)
        start = time.process_time()
        tabulated = tabulate(model.prior)
    except KaemError as error:
        print(f"| {path}: {error} |" + " |" * (len(_COLUMNS) + 2))
        return {}
    prior = config.prior
    name = (
        f"{path.parent.name}: {prior.variant}, {prior.basis}, {prior.reference}, "
        f"Q {prior.num_latents}, P {prior.num_components}"
    )
    return {name: _print_row(name, tabulated.laws, tabulated.baked, time.process_time() - start)}


def _print_row(name: str, laws: Laws, baked, seconds: float) -> Figures:
    count = baked.tables.num_functions
    found = figures(laws, baked.tables)
    number = f"{len(laws)}" if count == len(laws) else f"{len(laws)} ({count} tables)"
    cells = [f"{getattr(found, column):.2g}" for column in _COLUMNS]
    print(f"| {name} | {number} | {' | '.join(cells)} | {seconds:.2f} |", flush=True)
    return found


def _sizes_and_speeds(*, quick: bool) -> list[tuple[str, float, float]]:
    """Bake the two large sets and race the lookup: figures with their bars."""
    tables = bake(_rbf_laws(100)).tables
    nodes = signed_nodes("uniform", "signed")[0] + quantile_nodes(tables, "signed", "quantile")[0]
    bars = [
        ("nodes of a lookup", float(len(nodes)), 35.0),
        ("gathers of a lookup", float(sum(node.op_type == "Gather" for node in nodes)), 2.0),
    ]
    for label, laws_of, seconds, megabytes in (
        ("100 marginals of 201 components", _marginals, 5.0, 1.0),
        ("3240 functions", lambda: _rbf_laws(3240), 10.0, 16.0),
    ):
        if quick:
            break
        start = time.process_time()
        baked = bake(laws_of())
        bars.append((f"{label}: bake, s", time.process_time() - start, seconds))
        bars.append((f"{label}: MB", baked.tables.num_bytes / 1e6, megabytes))
    for batch in (64, 256):
        per_value, of_gather, of_pinv = _speed(batch)
        print(f"\nLooking up 100 columns of {batch} rows: {per_value:.0f} ns a value.")
        bars.append((f"share of compare-sum-gather's time at {batch} rows", of_gather, 0.5))
        bars.append((f"times scipy's PINV at {batch} rows", of_pinv, 4.0))
    return bars


def _seconds(work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _rbf_laws(count: int) -> Laws:
    family, rng = ZOO["rbf20 f 8"], np.random.default_rng(0)
    parts = []
    for first in range(0, count, 128):
        weights = rng.uniform(-8, 8, (min(128, count - first), family.weights.shape[1]))
        parts.append(Family(family.features, weights, family.edges, family.reference).integrated())
    return Laws(parts=tuple(parts), law_of=np.arange(count), offset=np.zeros(count), scale=np.ones(count))


def _marginals() -> Laws:
    prior = MixturePrior(PriorConfig(num_latents=100, num_components=201))
    with torch.no_grad():
        prior.bank.coefficients.uniform_(-8, 8)
        prior.logits.normal_()
    return collapse(prior)


def _speed(batch: int) -> tuple[float, float, float]:
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
    return took[0] / v.size * 1e9, took[0] / took[1], took[0] / took[2]


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
