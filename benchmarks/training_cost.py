"""What one update costs: each posterior against the VAE's update, and each setting of speed against its default.

    python benchmarks/training_cost.py --data fashion_mnist.npz
    python benchmarks/training_cost.py --data svhn.npz --preset svhn --table settings --threads 2

The VAE is `amortized` with `posterior.prior_from=1`: the same networks, and N(0, I) as the prior to the end. Rows
are measured in turn, the second of two updates each, round after round, so that a busy machine slows all of them;
the ratio is the median of the rounds' ratios. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import time

import torch

from kaem_train.config.settings import load_config
from kaem_train.data import Dataset, load_dataset
from kaem_train.training.trainer import Trainer

_EVIDENCE = "posterior.kind=amortized"
_NO_ENCODER = ("prior.frame=none",)
TABLES = {
    "posteriors": {
        "VAE": (_EVIDENCE, "posterior.prior_from=1.0"),
        "amortized, before the switch": (_EVIDENCE, "posterior.prior_from=0.9"),
        "amortized, after it": (_EVIDENCE, "posterior.prior_from=0.0"),
        "refined, 2 steps": ("posterior.kind=refined", "posterior.prior_from=0.0"),
        "weighted_bound, k = 5": ("posterior.kind=weighted_bound", "posterior.prior_from=0.0"),
        "importance, N = 100": ("posterior.kind=importance", *_NO_ENCODER),
        "langevin, 20 steps": ("posterior.kind=langevin", "posterior.num_steps=20", *_NO_ENCODER),
        "langevin, 40 steps": ("posterior.kind=langevin", "posterior.num_steps=40", *_NO_ENCODER),
        "tempering, 5 x 40 steps": ("posterior.kind=tempering", "posterior.num_steps=40", *_NO_ENCODER),
    },
    "settings": {
        "defaults": (),
        "ema_decay = 0.999": ("training.ema_decay=0.999",),
        "precision = bfloat16": ("training.precision=bfloat16",),
        "compile = true": ("training.compile=true",),
        "both": ("training.precision=bfloat16", "training.compile=true"),
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="images of the preset's shape")
    parser.add_argument("--preset", default="fashion-mnist")
    parser.add_argument("--table", choices=TABLES, default="posteriors")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, default=None, help="only the first of the table")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = dict(list(TABLES[arguments.table].items())[: arguments.rows])
    source = ("data.source=files", f"data.path={arguments.data}")
    dataset = load_dataset(load_config(arguments.preset, source).data)
    times = measured(arguments.preset, source, dataset, rows, arguments.rounds)
    first = next(iter(times.values()))
    print(
        f"{arguments.preset}, batch 64 unless the preset says otherwise; {datetime.date.today()}, {_processor()}, "
        f"{arguments.threads} threads, torch {torch.__version__}, median of {arguments.rounds} interleaved rounds"
    )
    print(f"\n| update | ms | relative to {next(iter(times))} |\n|---|---|---|")
    for name, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, first, strict=True))
        print(f"| {name} | {1e3 * statistics.median(seconds):.1f} | {ratio:.2f} |")


def measured(
    preset: str, source: tuple[str, ...], dataset: Dataset, rows: dict[str, tuple[str, ...]], rounds: int
) -> dict[str, list[float]]:
    trainers = {name: Trainer(load_config(preset, (*source, *row)), dataset) for name, row in rows.items()}
    for trainer in trainers.values():
        for _ in range(2):  # the first starts the prior and compiles
            trainer.update(None)
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(rounds):
        for name, trainer in trainers.items():
            trainer.update(None)  # not timed: it finds the caches as the row before left them
            begin = time.perf_counter()
            trainer.update(None)
            times[name].append(time.perf_counter() - begin)
    return times


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
