"""Small checkpoints of the baseline families, and graphs of a few nodes run on the real runtime."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import torch
from models import write_untrained

from kaem_train.config.settings import Config, load_config
from kaem_train.families.build import Model, build_model

_SMALL = ("prior.num_latents=3", "generator.dense=8", "generator.channels=[4]", "latent_ebm.hidden=16")
_SMALL_UNET = ("diffusion.channels=[8]", "diffusion.attention=[]", "diffusion.noise_steps=20")


def random_baseline(family: str, *overrides: str, seed: int = 0) -> tuple[Config, Model]:
    """A small model with random weights, the energy of a latent EBM steep enough to matter."""
    small = (*_SMALL, *_SMALL_UNET, "diffusion.sampling_steps=20")
    config = load_config("digits", [f"family={family}", *small, *overrides])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_model(config).eval().requires_grad_(False)
        if family == "latent_ebm":
            for parameter in model.prior.parameters():
                parameter.mul_(2.0)
    return config, model


def write_baseline_checkpoint(path: Path, family: str, *overrides: str, seed: int = 0) -> Path:
    """Write `random_baseline` as a checkpoint."""
    return write_untrained(path, *random_baseline(family, *overrides, seed=seed))


def session_of(graph: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A session on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
