"""The u-error of a graph whose components are functions of their own.

First sums of summands, their uniforms shared over q or not: s_q = sum_p F_qp^-1(u_p).

The graph shows the sums alone. Where all uniforms but u_p stay at a base point, s_q moves by what z_qp moves, so
every component is measured by itself, tails included:

    |F_qp(s_q(u) - s_q(base) + F_qp^-1(base)) - u_p|

What a component is off by at the base point would cancel; so, and to see that every component has the uniform
that is its own, the sums are compared too, with all uniforms free, on the scale of their own distribution:

    |F_q(s_q(u)) - F_q(sum_p F_qp^-1(u_p))|,    F_q the law of the sum

Then mixtures, every component on its own share of the uniforms that pick it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from kaem.runtime import LocalSampler
from kaem_export.oracle import Float64, LatentOracle
from kaem_export.probes import probe_uniforms
from kaem_train.sections import PriorConfig

_BASE = 0.25
_COMPONENT_PROBES = 500
_SUM_PROBES = 50
_SHARE_MARGIN = 2.0**-20


def summand_u_error(sampler: LocalSampler, state: Mapping[str, torch.Tensor], prior: PriorConfig) -> float:
    """Return the largest of both errors; NaN where a latent is not a number.

    Args:
        sampler: The loaded graph.
        state: The checkpoint's model tensors, by name.
        prior: The prior's section. Where every summand has a uniform of its own, those of one p are set alike.
    """
    components = LatentOracle(state, alone(prior))
    sums = LatentOracle(state, replace(prior, u_sharing="per_qp"))
    errors = [*_of_components(sampler, components, prior), *_of_sums(sampler, components, sums, prior)]
    return float(np.max(errors))  # unlike Python's max, NumPy's keeps a NaN wherever it stands


def component_u_error(sampler: LocalSampler, state: Mapping[str, torch.Tensor], prior: PriorConfig) -> float:
    """Return the largest u-error of a mixture's components, each picked in turn for all latents.

    A component whose share of the picking uniforms is below 2^-19 is not probed.
    """
    oracle = LatentOracle(state, alone(prior))
    logits = np.asarray(state["prior.logits"], np.float64)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    ends = np.pad(np.cumsum(weights, axis=1) / weights.sum(axis=1, keepdims=True), ((0, 0), (1, 0))) - 0.5
    uniform = probe_uniforms(prior.num_latents, _COMPONENT_PROBES)
    expected = np.mod(uniform.astype(np.float64), 1.0)
    places = np.linspace(0.0, 1.0, len(uniform))[:, None]
    errors = [0.0]
    for p in range(prior.num_components):
        low, high = ends[:, p] + _SHARE_MARGIN, ends[:, p + 1] - _SHARE_MARGIN
        choice = np.where(high > low, low + (high - low) * places, ends[:, p]).astype(np.float32)
        latents = sampler.latents(np.concatenate([uniform, choice], axis=1)).astype(np.float64)
        errors += [
            float(np.abs(oracle.cdf(q * prior.num_components + p, z) - expected[:, q]).max())
            for q, z in enumerate(_unframed(latents, state).T)
            if high[q] > low[q]
        ]
    return float(np.max(errors))


def alone(prior: PriorConfig) -> PriorConfig:
    """Return the prior with every function by itself, row q P + p: none mixed, none summed, no frame."""
    return replace(prior, variant="independent", u_sharing="per_p", frame="none", train_proportions=True)


def _unframed(latents: Float64, state: Mapping[str, torch.Tensor]) -> Float64:
    """Undo the common frame, where there is one."""
    if "prior.frame.matrix" not in state:
        return latents
    matrix, offset = (np.asarray(state[f"prior.frame.{name}"], np.float64) for name in ("matrix", "offset"))
    return np.asarray(np.linalg.solve(matrix, (latents - offset).T).T)


def _latents(sampler: LocalSampler, uniform: NDArray[np.float32]) -> Float64:
    """Return latents of uniforms (N, P) that all q share, whether the graph takes those or Q P."""
    repeats = sampler.manifest.noise_dim // uniform.shape[1]
    return sampler.latents(np.tile(uniform, repeats)).astype(np.float64)


def _of_components(sampler: LocalSampler, oracle: LatentOracle, prior: PriorConfig) -> list[float]:
    """The error of every component, the uniforms of the others at the base point."""
    probes = probe_uniforms(1, _COMPONENT_PROBES)[:, 0]
    expected = np.mod(probes.astype(np.float64), 1.0)
    errors = []
    for p in range(prior.num_components):
        uniform = np.full((len(probes) + 1, prior.num_components), _BASE, np.float32)
        uniform[1:, p] = probes
        latents = _latents(sampler, uniform)
        for q in range(prior.num_latents):
            row = q * prior.num_components + p
            at_base = oracle.quantile(row, np.array([_BASE]))
            z = latents[1:, q] - latents[0, q] + at_base
            errors.append(float(np.abs(oracle.cdf(row, z) - expected).max()))
    return errors


def _of_sums(sampler: LocalSampler, components: LatentOracle, sums: LatentOracle, prior: PriorConfig) -> list[float]:
    """The error of every coordinate that the generator sees."""
    uniform = probe_uniforms(prior.num_components, _SUM_PROBES)
    latents = _latents(sampler, uniform)
    u: Float64 = np.mod(uniform.astype(np.float64), 1.0)
    errors = []
    for q in range(prior.num_latents):
        rows = range(q * prior.num_components, (q + 1) * prior.num_components)
        exact = np.sum([components.quantile(row, u[:, p]) for p, row in enumerate(rows)], axis=0)
        found, wanted = np.split(sums.cdf(q, np.concatenate([latents[:, q], exact])), 2)
        errors.append(float(np.abs(found - wanted).max()))
    return errors
