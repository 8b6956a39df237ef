"""Parity of a latent EBM's chains: the graph's against the same draws advanced in float64 with torch's gradient.

The gradient of f jumps where a hidden unit changes sign. A chain that comes to such a place within rounding may take
either side, and both are right; so the half of the chains that stays farthest from all of them is judged.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kaem.artifact import Figure
from kaem.engines.cpu import LocalSampler
from kaem.noise import uniforms
from kaem_export.proof.rows import inner_tensor
from kaem_train.config import LatentEbmConfig
from kaem_train.families.latent_ebm import EnergyPrior

CHAIN_BOUND = 1e-4
"""Largest difference of a latent; float32 chains of 60 steps are off by about 1e-6."""

_SEED = 2006_08205
_ROWS = 64


def chain_parity(
    sampler: LocalSampler, artifact: Path, tensor: str, prior: EnergyPrior, chain: LatentEbmConfig
) -> Figure:
    """Compare where the chains end.

    Args:
        sampler: The loaded graph.
        artifact: Its file.
        tensor: Name of the normal draws in the graph.
        prior: The energy that it was compiled from.
        chain: Steps and step size that its manifest states.
    """
    uniform = uniforms(_SEED, 0, _ROWS, sampler.manifest.noise_dim)
    draws = torch.from_numpy(inner_tensor(artifact, tensor, uniform)).double()
    by_step = draws.reshape(_ROWS, 1 + chain.prior_steps, prior.num_latents)
    ends, margin = _chains(copy.deepcopy(prior).double(), by_step, chain.prior_step_size)
    errors = np.abs(sampler.latents(uniform) - ends.numpy()).max(axis=1)
    return Figure(
        name="chain_parity",
        value=float(errors[np.argsort(margin.numpy())[_ROWS // 2 :]].max()),
        bound=CHAIN_BOUND,
        meaning="max |onnx - torch in float64| over latents at the end of the chains, same draws; of the half of the "
        "chains that stays farthest from the kinks of the energy",
    )


def _chains(prior: EnergyPrior, draws: Tensor, step_size: float) -> tuple[Tensor, Tensor]:
    """Return ends (S, Q) and least distances to a kink (S,), relative to the terms of the unit's sum."""
    z, margin = draws[:, 0], torch.full((len(draws),), torch.inf, dtype=draws.dtype)
    for noise in draws[:, 1:].unbind(1):
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            (score,) = torch.autograd.grad(prior.log_density(z).sum(), z)
        with torch.no_grad():
            margin = torch.minimum(margin, _distance(prior, z))
            z = z + 0.5 * step_size**2 * score + step_size * noise
    return z.detach(), margin


def _distance(prior: EnergyPrior, z: Tensor) -> Tensor:
    least = torch.full((len(z),), torch.inf, dtype=z.dtype)
    inside = z
    for layer in list(prior.layers)[:-1]:
        if isinstance(layer, torch.nn.Linear):
            terms = inside.abs() @ layer.weight.abs().T + layer.bias.abs()
            least = torch.minimum(least, (layer(inside).abs() / terms).amin(1))
        inside = layer(inside)
    return least
