"""The network whose throughput is swept: that of the goals in docs/benchmarks.md, with random weights.

Its prior is of the kind that the presets' refit leaves: Gaussian experts in frames of their own.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from heads import graph_of_prior

from kaem_export.options import Options
from kaem_export.rewrite.optimise import optimise
from kaem_train.config.settings import load_config
from kaem_train.families.kaem import Kaem

_SETTINGS = ("prior.frame=own", "prior.num_components=32", "prior.num_latents=100", "generator.channels=[256,128,64]")


def sweep_graphs() -> tuple[str, dict[str, bytes]]:
    """Return what the model is, and its graph by precision; $KAEM_GPU_MODEL names another one, taken as it is."""
    named = os.environ.get("KAEM_GPU_MODEL")
    if named:
        return named, {"float32": Path(named).read_bytes()}
    model = Kaem(load_config("svhn", [*_SETTINGS])).eval()
    with torch.no_grad():
        model.prior.bank.coefficients.zero_()
    plain = graph_of_prior(model.prior, model.generator, "uint8")
    return "100 -> 256 -> 128 -> 64 -> 3x32x32, random weights, uint8", {
        "float32": optimise(plain, Options()).model.SerializeToString(),
        "float16": optimise(plain, Options(precision="float16")).model.SerializeToString(),
    }
