"""Quantile tables: how exact, how large, how fast to bake and to look up, and every bar with its verdict; Markdown.

    python benchmarks/tables.py [--checkpoints folder] [--quick]

The synthetic zoo (`zoo.py`), and every ckpt.pt below a folder (`table_checkpoints.py` trains one of every basis
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
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support" / "models"))

from heads import written_nodes
from table_figures import BARS, Figures, figures, worst
from table_rivals import compare_sum_gather, own_lookup, plain_uniforms, rbf_laws, scipys_pinv
from zoo import ZOO

from kaem.errors import KaemError
from kaem.noise import uniforms
from kaem_export.priors.layouts import choose_layout
from kaem_export.proof.rows import noise_mismatches
from kaem_export.tables.collapse import collapse
from kaem_export.tables.fit_tables import bake
from kaem_export.tables.laws import Laws
from kaem_export.tables.lookup import look_up, sign_uniforms
from kaem_train.checkpoint import load_kaem
from kaem_train.config import PriorConfig
from kaem_train.model.prior.factorised import MixturePrior

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
    print("tests/kaem_export/tables/test_densities.py, test_collapse.py and test_tables.py.")


def _row(name: str, laws_of) -> Figures:
    start = time.process_time()
    laws = laws_of()
    baked = bake(laws)
    return _print_row(name, laws, baked, time.process_time() - start)


def _checkpoint_row(path: Path) -> dict[str, Figures]:
    try:
        config, model = load_kaem(path)
        start = time.process_time()
        laws = choose_layout(model.prior).laws
        baked = bake(laws)
    except KaemError as error:
        print(f"| {path}: {error} |" + " |" * (len(_COLUMNS) + 2))
        return {}
    prior = config.prior
    name = (
        f"{path.parent.name}: {prior.variant}, {prior.basis}, {prior.reference}, "
        f"Q {prior.num_latents}, P {prior.num_components}"
    )
    return {name: _print_row(name, laws, baked, time.process_time() - start)}


def _print_row(name: str, laws: Laws, baked, seconds: float) -> Figures:
    count = baked.tables.num_functions
    found = figures(laws, baked.tables)
    number = f"{len(laws)}" if count == len(laws) else f"{len(laws)} ({count} tables)"
    cells = [f"{getattr(found, column):.2g}" for column in _COLUMNS]
    print(f"| {name} | {number} | {' | '.join(cells)} | {seconds:.2f} |", flush=True)
    return found


def _sizes_and_speeds(*, quick: bool) -> list[tuple[str, float, float]]:
    """Bake the two large sets and race the lookup: figures with their bars."""
    tables = bake(rbf_laws(100)).tables
    nodes = written_nodes(lambda op, uniform: look_up(op, tables, sign_uniforms(op, uniform)), tables.columns.size)
    bars = [
        ("nodes of a lookup", float(len(nodes)), 35.0),
        ("gathers of a lookup", float(sum(node.op_type == "Gather" for node in nodes)), 2.0),
    ]
    for label, laws_of, seconds, megabytes in (
        ("100 marginals of 201 components", _marginals, 5.0, 1.0),
        ("3240 functions", lambda: rbf_laws(3240), 10.0, 16.0),
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


def _marginals() -> Laws:
    prior = MixturePrior(PriorConfig(num_latents=100, num_components=201))
    with torch.no_grad():
        prior.bank.coefficients.uniform_(-8, 8)
        prior.logits.normal_()
    return collapse(prior)


def _speed(batch: int) -> tuple[float, float, float]:
    laws = rbf_laws(100)
    ours, theirs, pinv = own_lookup(bake(laws).tables), compare_sum_gather(laws), scipys_pinv()
    v = uniforms(1, 0, batch, 100)
    plain = plain_uniforms(v)
    u = plain.astype(np.float64).reshape(-1)
    took = _alternately(
        lambda: ours.run(None, {"uniform": v}), lambda: theirs.run(None, {"uniform": plain}), lambda: pinv.ppf(u)
    )
    return took[0] / v.size * 1e9, took[0] / took[1], took[0] / took[2]


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
