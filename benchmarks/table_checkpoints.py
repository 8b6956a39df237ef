"""Small models of every basis and reference, trained on the embedded digits: their densities are what training makes.

    python benchmarks/table_checkpoints.py runs/tables [--updates 300]

A checkpoint that is there already is kept.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

_ON_UNIT = ("prior.low=0", "prior.high=1", "prior.grid_low=0", "prior.grid_high=1")
_MIXTURE = (
    *("prior.variant=mixture", "prior.frame=none", "prior.num_components=8"),
    "posterior.kind=importance",
)
_TRAINED = ("refit.kind=none", "training.prior_learning_rate=0.02")
"""The energies are to be those that gradients have made, and far from flat."""

SETTINGS: dict[str, tuple[str, ...]] = {
    **{f"basis-{basis}": (f"prior.basis={basis}",) for basis in ("rbf", "rswaf", "bspline")},
    **{f"basis-{basis}": (f"prior.basis={basis}", "prior.grid_size=8") for basis in ("fourier", "chebyshev", "morlet")},
    "reference-gaussian": (*_MIXTURE, "prior.reference=gaussian"),
    "reference-uniform": (*_MIXTURE, "prior.reference=uniform", *_ON_UNIT),
    "reference-none": (*_MIXTURE, "prior.reference=none", *_ON_UNIT),
    "reference-lognormal": (
        *(*_MIXTURE, "prior.reference=lognormal", "prior.low=0.001", "prior.grid_low=0.001"),
        *("prior.high=8", "prior.grid_high=8"),
    ),
    "reference-learnable": (*_MIXTURE, "prior.reference=learnable_gaussian"),
}
"""Laid over the preset `digits`: experts in a frame for the bases, mixtures for the references."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--only", choices=SETTINGS)
    options = parser.parse_args()
    for name in [options.only] if options.only else SETTINGS:
        train(options.folder / name, (*SETTINGS[name], *_TRAINED), options.updates)


def train(folder: Path, settings: tuple[str, ...], updates: int) -> Path:
    """Train one model with `kaem train digits` unless its checkpoint is there, and return that."""
    checkpoint = folder / "ckpt.pt"
    if not checkpoint.exists():
        words = [word for setting in settings for word in ("--set", setting)]
        command = [sys.executable, "-m", "cli.main", "train", "digits", "--updates", str(updates), "-o", str(folder)]
        subprocess.run([*command, *words], check=True, stdout=subprocess.DEVNULL)
    return checkpoint


if __name__ == "__main__":
    main()
