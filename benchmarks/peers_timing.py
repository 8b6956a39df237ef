"""The timed runs of a comparison: `kaem bench` commands over links with short names, so that tables stay readable."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cached_steps import ROOT


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One `kaem bench`: what it compares is interleaved; ratios are only taken within one.

    Attributes:
        name: Name of its report.
        title: What it shows.
        models: Names of samplers; empty for all.
        options: Options of `kaem bench`.
    """

    name: str
    title: str
    models: tuple[str, ...] = ()
    options: tuple[str, ...]


# A precision that is always reached: launches are not added, and the whole stays within 8 minutes.
_EFFORT = ("--launches", "6", "--seconds", "0.6", "--precision", "0.9")

EXPORTED = Run(
    name="exported",
    title="All exported models, ONNX Runtime",
    options=("--batch", "1,8,64", "--longest", "3s", *_EFFORT),
)
SAME_DECODER = Run(
    name="same-decoder",
    title="KAEM and VAE with the same decoder",
    models=("vae", "kaem"),
    options=("--batch", "1,64", "--launches", "25", "--seconds", "2", "--precision", "0.9"),
)
AS_USED = (
    Run(
        name="vae-torch",
        title="The VAE in torch",
        models=("vae",),
        options=("--engine", "onnxruntime,torch-eager,torch-compile", "--batch", "1,64", *_EFFORT),
    ),
    Run(
        name="latent-ebm-torch",
        title="The latent EBM in torch",
        models=("latent-ebm",),
        options=("--engine", "onnxruntime,torch-eager", "--batch", "1,64", *_EFFORT),
    ),
    Run(
        name="ddim-diffusers",
        title="DDIM in the pipeline of diffusers",
        models=("ddim-10", "ddim-50"),
        options=("--engine", "onnxruntime,diffusers", "--batch", "1,8", "--longest", "600ms", *_EFFORT),
    ),
    Run(
        name="ddpm-diffusers",
        title="DDPM in the pipeline of diffusers: one launch, a quick look without intervals",
        models=("ddpm-1000",),
        options=("--engine", "onnxruntime,diffusers", "--batch", "1", "--launches", "1"),
    ),
)
"""Each peer also in the form that its users run, beside its export."""

FASHION_MNIST = (SAME_DECODER, EXPORTED, *AS_USED)

SMOKE = (
    Run(name="exported", title="All", options=("--batch", "1,2", "--launches", "1", "--seconds", "0.02")),
    Run(
        name="ddim-diffusers",
        title="DDIM in the pipeline of diffusers",
        models=("ddim-2",),
        options=("--engine", "onnxruntime,diffusers", "--batch", "1", "--launches", "1", "--seconds", "0.02"),
    ),
)

RUNS = {"fashion-mnist": FASHION_MNIST, "smoke": SMOKE}


def link(folder: Path, name: str, artifact: Path, checkpoint: Path, evaluation: Path) -> None:
    """Give an artifact, its checkpoint and its evaluation a short name in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, target in ((".onnx", artifact), (".pt", checkpoint), (".eval.json", evaluation)):
        place = folder / f"{name}{suffix}"
        place.unlink(missing_ok=True)
        place.symlink_to(target.resolve())


def measure(run: Run, names: Iterable[str], models: Path, out: Path) -> None:
    """Run one `kaem bench` in the folder of links.

    Args:
        run: Which.
        names: Names of all samplers, in the plan's order.
        models: The folder of links.
        out: Where its report goes.

    Raises:
        SystemExit: It failed.
    """
    chosen = run.models or tuple(names)
    words = ["bench", *(f"{name}.onnx" for name in chosen), "--threads", "1", *run.options]
    words += [word for name in chosen for word in ("--quality", f"{name}.eval.json")]
    words += ["--json", str((out / f"{run.name}.json").resolve())]
    print(f"kaem {' '.join(words)}", flush=True)
    command = [sys.executable, "-P", "-m", "cli.main", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=models, env=environment, stdout=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        sys.exit(f"failed with {done.returncode}")
