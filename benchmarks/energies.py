"""What univariate energies buy, in held-out log p(z) of a finished model's latents: with and without, by basis.

    python benchmarks/energies.py runs/results/fashion-mnist/vae/seed0/ckpt.pt --data ../shared/data/fashion_mnist.npz

Every row is a prior fitted to the same latents by maximum likelihood and scored on latents that no fit has seen,
before its energies were fitted (clusters, or one Gaussian per axis) and after. Decoder and latents never change.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

from kaem_train.fitting.fit_checkpoint import read_source
from kaem_train.fitting.fit_prior import PriorName, choose_prior_configs, fit_prior

_BASES = {"rbf": (), "rswaf": (), "bspline": (), "fourier": (), "chebyshev": (), "morlet": ("prior.grid_size=8",)}


def rows(bases_at: int) -> Iterator[tuple[str, PriorName, tuple[str, ...]]]:
    """Yield label, kind of prior and settings."""
    for basis, settings in _BASES.items():
        yield f"one energy per axis, {basis}", "strict", (f"prior.basis={basis}", *settings)
    yield "8 components per axis, rbf", "mixture", ()
    for number in (32, 128):
        yield f"{number} experts in a common frame, rbf", "experts", (f"prior.num_components={number}",)
    for number in (8, 16, 32, 64):
        if number != bases_at:
            yield f"{number} experts in own frames, rbf", "own-frames", (f"prior.num_components={number}",)
    for basis, settings in _BASES.items():
        words = (f"prior.num_components={bases_at}", f"prior.basis={basis}", *settings)
        yield f"{bases_at} experts in own frames, {basis}", "own-frames", words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", required=True, help="the images that the model was trained on")
    parser.add_argument("--updates", type=int, default=200, help="gradient steps on the energies")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bases-at", type=int, default=16, help="number of experts in own frames to compare bases at")
    options = parser.parse_args()
    latents = read_source(options.checkpoint, options.data, holdout=0.2, seed=options.seed).latents
    num_fitted, num_latents = latents.fitted.shape
    print("| prior | energies at their start | fitted | gain, nats | s |\n|---|---|---|---|---|")
    for label, name, settings in rows(options.bases_at):
        begin = time.perf_counter()
        configs = choose_prior_configs(name, num_latents, num_fitted, settings)
        scores = fit_prior(latents, configs, seed=options.seed, steps=options.updates).scores
        gain = scores.prior - scores.start
        seconds = time.perf_counter() - begin
        print(f"| {label} | {scores.start:.2f} | {scores.prior:.2f} | {gain:+.2f} | {seconds:.0f} |", flush=True)
    print(
        f"\nN(0, I) {scores.standard_normal:.2f}, one Gaussian {scores.full_gaussian:.2f}; {num_fitted:,} latents of "
        f"{num_latents} numbers fitted, {len(latents.scored):,} scored, {options.updates} steps, seed {options.seed}."
    )


if __name__ == "__main__":
    main()
