"""Quantiles of a graph whose components are functions of their own.

First sums of summands, their uniforms shared over q or not: s_q = sum_p F_qp^-1(u_p). The graph's own summands are
compared with their distributions one by one, tails included; and that latents are the sums of just these summands is a
figure of its own,

    |s_q - sum_p z_qp| / (2^-24 sum_p |z_qp|),

at most P - 1 in whatever order P numbers are added. Then mixtures, every component on its own share of the uniforms
that pick it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from kaem.artifact import Figure
from kaem.engines.cpu import LocalSampler
from kaem_export.proof.oracle import Float64, LatentOracle
from kaem_export.proof.rows import inner_tensor, probe_uniforms
from kaem_export.proof.scores import Float32, Quantiles, signed_uniforms
from kaem_train.config import PriorConfig

_COMPONENT_PROBES = 2_000
_SUM_PROBES = 2_000
_SHARE_MARGIN = 2.0**-20


def summand_quantiles(
    artifact: Path, tensor: str, noise_dim: int, oracle: LatentOracle, prior: PriorConfig
) -> Iterator[tuple[int, Quantiles]]:
    """Yield the quantiles of every summand that a graph adds up, by the oracle's rows q P + p.

    Args:
        artifact: The ONNX file.
        tensor: Name of the summands in the graph.
        noise_dim: P where uniforms are shared over q, Q P where every summand has one of its own.
        oracle: The oracle of the components alone.
        prior: The prior's section.
    """
    uniform = probe_uniforms(noise_dim, _COMPONENT_PROBES)
    summands = inner_tensor(artifact, tensor, uniform)
    for row in range(prior.num_latents * prior.num_components):
        q, p = divmod(row, prior.num_components)
        yield (
            row,
            quantiles_of(oracle, row, uniform[:, row if noise_dim > prior.num_components else p], summands[:, q, p]),
        )


def sum_error(sampler: LocalSampler, artifact: Path, tensor: str, prior: PriorConfig) -> Figure:
    """Measure whether the latents are the sums of the summands, up to the rounding of additions."""
    uniform = probe_uniforms(sampler.manifest.noise_dim, _SUM_PROBES)
    summands = inner_tensor(artifact, tensor, uniform).astype(np.float64)
    errors = np.abs(sampler.latents(uniform) - summands.sum(axis=2))
    return Figure(
        name="sum_error",
        value=float(np.max(errors / (2.0**-24 * np.maximum(np.abs(summands).sum(axis=2), 2.0**-126)))),
        bound=float(max(prior.num_components - 1, 0)),
        meaning="max |latent - sum of its summands| / (2^-24 sum of |summand|): one for every addition",
    )


def component_quantiles(
    sampler: LocalSampler,
    artifact: Path,
    tensor: str | None,
    state: Mapping[str, torch.Tensor],
    prior: PriorConfig,
) -> Iterator[tuple[int, Quantiles]]:
    """Yield the quantiles of a mixture's components, each picked in turn for all latents, by rows q P + p.

    A component whose share of the picking uniforms is below 2^-19 is not probed.

    Args:
        sampler: The loaded graph.
        artifact: Its file.
        tensor: Name of the graph's quantiles before the frame; None to undo the frame.
        state: The checkpoint's model tensors, by name.
        prior: The prior's section.
    """
    oracle = LatentOracle(state, alone(prior))
    logits = np.asarray(state["prior.logits"], np.float64)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    ends = np.pad(np.cumsum(weights, axis=1) / weights.sum(axis=1, keepdims=True), ((0, 0), (1, 0))) - 0.5
    uniform = probe_uniforms(prior.num_latents, _COMPONENT_PROBES)
    places = np.linspace(0.0, 1.0, len(uniform))[:, None]
    for p in range(prior.num_components):
        low, high = ends[:, p] + _SHARE_MARGIN, ends[:, p + 1] - _SHARE_MARGIN
        choice = np.where(high > low, low + (high - low) * places, ends[:, p]).astype(np.float32)
        rows = np.concatenate([uniform, choice], axis=1)
        quantiles: Float32 | Float64
        if tensor is None:
            quantiles = _unframed(sampler.latents(rows).astype(np.float64), state)
        else:
            quantiles = inner_tensor(artifact, tensor, rows)
        for q in np.flatnonzero(high > low):
            row = int(q) * prior.num_components + p
            yield row, quantiles_of(oracle, row, uniform[:, q], quantiles[:, q])


def quantiles_of(oracle: LatentOracle, row: int, uniform: Float32, z: Float32 | Float64) -> Quantiles:
    """Return quantiles z of uniforms, both of shape (N,), with what the oracle says of its function `row` there."""
    exact = z.astype(np.float64)
    return Quantiles(
        signed=signed_uniforms(uniform),
        z=z.astype(np.float32),
        cdf=oracle.cdf(row, exact),
        survival=oracle.survival(row, exact),
        density=oracle.density(row, exact),
    )


def alone(prior: PriorConfig) -> PriorConfig:
    """Return the prior with every function by itself, row q P + p: none mixed, none summed, no frame."""
    return replace(prior, variant="independent", u_sharing="per_p", frame="none", train_proportions=True)


def _unframed(latents: Float64, state: Mapping[str, torch.Tensor]) -> Float64:
    """Undo the common frame, where there is one."""
    if "prior.frame.matrix" not in state:
        return latents
    matrix, offset = (np.asarray(state[f"prior.frame.{name}"], np.float64) for name in ("matrix", "offset"))
    return np.asarray(np.linalg.solve(matrix, (latents - offset).T).T)
