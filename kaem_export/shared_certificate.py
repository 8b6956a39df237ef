"""The u-error of a graph whose latents are sums of components with shared uniforms: s_q = sum_p F_qp^-1(u_p).

The graph shows the sums alone. Where all uniforms but u_p stay at a base point, s_q moves by what z_qp moves, so
every component is measured by itself, tails included:

    |F_qp(s_q(u) - s_q(base) + F_qp^-1(base)) - u_p|

What a component is off by at the base point would cancel; so, and to see that every component has the uniform
that is its own, the sums are compared too, with all uniforms free, on the scale of their own distribution:

    |F_q(s_q(u)) - F_q(sum_p F_qp^-1(u_p))|,    F_q the law of the sum
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from kaem.runtime import LocalSampler
from kaem_export.oracle import Float64, LatentOracle
from kaem_export.probes import probe_uniforms
from kaem_train.sections import PriorConfig

_BASE = 0.25
_COMPONENT_PROBES = 500
_SUM_PROBES = 50


def shared_u_error(sampler: LocalSampler, state: Mapping[str, torch.Tensor], prior: PriorConfig) -> float:
    """Return the largest of both errors; NaN where a latent is not a number.

    Args:
        sampler: The loaded graph.
        state: The checkpoint's model tensors, by name.
        prior: The prior's section, with `u_sharing` per_p.
    """
    components = LatentOracle(state, prior)
    sums = LatentOracle(state, replace(prior, u_sharing="per_qp"))
    errors = [*_of_components(sampler, components, prior), *_of_sums(sampler, components, sums, prior)]
    return float(np.max(errors))  # unlike Python's max, NumPy's keeps a NaN wherever it stands


def _of_components(sampler: LocalSampler, oracle: LatentOracle, prior: PriorConfig) -> list[float]:
    """The error of every component, the uniforms of the others at the base point."""
    probes = probe_uniforms(1, _COMPONENT_PROBES)[:, 0]
    expected = np.mod(probes.astype(np.float64), 1.0)
    errors = []
    for p in range(prior.num_components):
        uniform = np.full((len(probes) + 1, prior.num_components), _BASE, np.float32)
        uniform[1:, p] = probes
        latents = sampler.latents(uniform).astype(np.float64)
        for q in range(prior.num_latents):
            row = q * prior.num_components + p
            at_base = oracle.quantile(row, np.array([_BASE]))
            z = latents[1:, q] - latents[0, q] + at_base
            errors.append(float(np.abs(oracle.cdf(row, z) - expected).max()))
    return errors


def _of_sums(sampler: LocalSampler, components: LatentOracle, sums: LatentOracle, prior: PriorConfig) -> list[float]:
    """The error of every coordinate that the generator sees."""
    uniform = probe_uniforms(prior.num_components, _SUM_PROBES)
    latents = sampler.latents(uniform).astype(np.float64)
    u: Float64 = np.mod(uniform.astype(np.float64), 1.0)
    errors = []
    for q in range(prior.num_latents):
        rows = range(q * prior.num_components, (q + 1) * prior.num_components)
        exact = np.sum([components.quantile(row, u[:, p]) for p, row in enumerate(rows)], axis=0)
        found, wanted = np.split(sums.cdf(q, np.concatenate([latents[:, q], exact])), 2)
        errors.append(float(np.abs(found - wanted).max()))
    return errors
