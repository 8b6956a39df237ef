"""How often adjacent temperatures swap, by number of temperatures and power of the ladder, on a finished model.

    python benchmarks/swaps.py runs/results/svhn/vae/seed0/ckpt.pt --data ../shared/data/svhn.npz --sigma 0.25

The generator stays; its likelihood gets the deviation that the paper's presets fix. Step sizes adapt during the
first runs of a ladder, swaps are then averaged over the following ones. t_k = (k / N_t)^p.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path

import torch

from kaem_train.checkpoint import load_kaem
from kaem_train.config import PosteriorConfig
from kaem_train.data import load_dataset, take_batch
from kaem_train.posterior.tempering import TemperingPosterior
from kaem_train.rng import noise_stream

_LADDERS = ((5, 2.0), (5, 0.5), (5, 4.0), (10, 4.0), (20, 4.0), (20, 6.0))
_ADAPTING, _MEASURED = 4, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--sigma", type=float, default=0.25)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    config, model = load_kaem(options.checkpoint)
    model.sigma.fill_(options.sigma)
    images = load_dataset(replace(config.data, source="files", path=options.data)).train
    print("| N_t | p | swap acceptance of the pairs (0, 1), (1, 2), ... | lowest | log p(x given z), first, last |")
    print("|---|---|---|---|---|")
    for number, power in _LADDERS:
        section = PosteriorConfig(
            kind="tempering",
            num_temperatures=number,
            power_start=power,
            power_end=power,
            num_steps=max(options.steps, 8 * number),  # every pair is tried several times
        )
        posterior = TemperingPosterior(section, "quadrature", updates=1)
        found: dict[str, list[float]] = {}
        for run in range(_ADAPTING + _MEASURED):
            batch = take_batch(images, options.batch, seed=0, step=run, augment_flip=False)
            with torch.no_grad():
                metrics = posterior.terms(model, batch, 0, noise_stream(0, run, "posterior")).metrics
            if run >= _ADAPTING:
                for name, value in metrics.items():
                    found.setdefault(name, []).append(float(value))
        means = {name: math.fsum(values) / len(values) for name, values in found.items()}
        swaps = [means[f"swap_{k}_{k + 1}"] for k in range(number) if f"swap_{k}_{k + 1}" in means]
        ends = f"{means['first_log_likelihood']:.0f}, {means['last_log_likelihood']:.0f}"
        listed = ", ".join(f"{100 * value:.1f}" for value in swaps)
        print(f"| {number} | {power:g} | {listed} % | {100 * min(swaps):.2f} % | {ends} |", flush=True)


if __name__ == "__main__":
    main()
