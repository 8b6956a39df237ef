"""The latents of an exported KAEM: the graph's float32 quantiles against the oracle's float64 distributions.

The u-error is measured on the latents that the generator sees, the frame undone in float64. Scores and tails speak of
the tables: where there is a frame they are measured on what the graph puts into it, for undoing a frame magnifies the
rounding of its output. Where tables hold a standard law that is scaled and moved, latents have their u-error alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import assert_never

import numpy as np
import torch

from kaem.artifact import Figure
from kaem.engines.cpu import LocalSampler
from kaem.noise import uniforms
from kaem_export.proof.head import measured_tensors
from kaem_export.proof.oracle import LatentOracle
from kaem_export.proof.quadrature import graph_agreement, oracle_agreement
from kaem_export.proof.rows import inner_tensor, probe_uniforms
from kaem_export.proof.scores import Float32, Quantiles, score_figures, signed_uniforms
from kaem_export.proof.shared_uniforms import alone, component_quantiles, quantiles_of, sum_error, summand_quantiles
from kaem_train.config import PriorConfig, Variant

_SHARE_MARGIN = 2.0**-20
_LEAST_TAIL, _TAIL_OF_SUMS = 1e-9, 0.05
_DRAWS, _DRAWS_SEED = 1 << 15, 1956
_PLOT_ERROR = 1e-3
_STRIDE_OF_SUMS = 4
"""Every how many-eth probe of a sum is scored: its density takes two more Fourier series."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Probe:
    """Uniforms (M, D) and the oracle's row of the first of their Q latents."""

    first_row: int
    uniform: Float32


_PROBED: dict[Variant, str] = {
    "independent": "",
    "mixture": "",
    "experts": ", every expert on its own share of the last uniform",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredPrior:
    """An artifact, and what its latents are compared with.

    Attributes:
        sampler: The loaded artifact.
        artifact: Its file.
        state: The checkpoint's model tensors, by name.
        prior: The prior's section of the configuration.
        u_error_bound: Bound of the u-error.
        tolerance: Tolerance in u, that scores are measured by.
    """

    sampler: LocalSampler
    artifact: Path
    state: Mapping[str, torch.Tensor]
    prior: PriorConfig
    u_error_bound: float
    tolerance: float

    @property
    def weights_digest(self) -> str:
        """Digest of the weights, by which functions and points of the quadrature are drawn."""
        return self.sampler.manifest.checkpoint_fingerprint

    @property
    def tensors(self) -> Mapping[str, str]:
        """Names of tensors in the graph, by what they hold."""
        return measured_tensors(self.sampler.manifest)

    def u_error_figure(self, value: float, what: str = "") -> Figure:
        """Return the figure of a u-error."""
        return Figure(
            name="u_error",
            value=value,
            bound=self.u_error_bound,
            meaning="max |F(F^-1(u)) - u|: baked quantiles against independent float64 quadrature" + what,
        )


def measure_summands(measured: MeasuredPrior) -> tuple[Figure, ...]:
    """Measure latents that are sums of functions of their own: every summand, and the sums."""
    prior = alone(measured.prior)
    oracle = LatentOracle(measured.state, prior)
    noise_dim, tensor = measured.sampler.manifest.noise_dim, measured.tensors["summands"]
    parts = [part for _, part in summand_quantiles(measured.artifact, tensor, noise_dim, oracle, measured.prior)]
    return (
        measured.u_error_figure(_largest_u_error(parts), ", of every summand"),
        *(score_figures(parts, measured.tolerance) if "quantiles" in measured.tensors else ()),
        sum_error(measured.sampler, measured.artifact, tensor, measured.prior),
        oracle_agreement(measured.state, prior, measured.weights_digest),
    )


def measure_components(measured: MeasuredPrior) -> tuple[Figure, ...]:
    """Measure latents that each pick a component that is a function of its own."""
    sampler, artifact, state, prior = measured.sampler, measured.artifact, measured.state, measured.prior
    parts = [part for _, part in component_quantiles(sampler, artifact, None, state, prior)]
    tabulated = measured.tensors.get("quantiles")
    scored = parts if tabulated == "latent" else []
    if tabulated not in (None, "latent"):
        scored = [part for _, part in component_quantiles(sampler, artifact, tabulated, state, prior)]
    return (
        measured.u_error_figure(_largest_u_error(parts), ", of every component"),
        *(score_figures(scored, measured.tolerance) if scored else ()),
        oracle_agreement(state, alone(prior), measured.weights_digest),
    )


def measure_univariate(measured: MeasuredPrior) -> tuple[Figure, ...]:
    """Measure latents that each follow one function, given the expert where there are experts."""
    prior, digest = measured.prior, measured.weights_digest
    oracle = LatentOracle(measured.state, prior)
    probes = list(_probes(oracle, prior))
    u_error = measured.u_error_figure(_u_error(measured.sampler, oracle, prior, probes), _PROBED[prior.variant])
    tabulated = measured.tensors.get("quantiles")
    if tabulated is None:
        return u_error, oracle_agreement(measured.state, alone(prior) if oracle.is_sum else prior, digest)
    quantiles = [part for probe in probes for part in _quantiles(measured.artifact, tabulated, oracle, prior, probe)]
    scores = score_figures([part for _, part in quantiles], measured.tolerance)
    agreement = (
        oracle_agreement(measured.state, alone(prior), digest)
        if oracle.is_sum
        else graph_agreement(quantiles, measured.state, prior, digest, measured.tolerance)
    )
    return u_error, *scores, agreement


def latent_distance(sampler: LocalSampler) -> tuple[Figure, ...]:
    """Compare the densities in a manifest with the latents that its graph draws; none where they do not say of what.

    The bound is that of Dvoretzky, Kiefer, Wolfowitz and Massart for so many draws, at one in a million for all Q
    together, and what is lost by 64 bins of four digits.
    """
    densities = sampler.manifest.densities
    if densities.get("of") != "latent":
        return ()
    latents = sampler.latents(uniforms(_DRAWS_SEED, 0, _DRAWS, sampler.manifest.noise_dim))
    worst = 0.0
    for q, row in enumerate(zip(densities["low"], densities["high"], densities["density"], strict=True)):
        low, high, density = row
        edges = np.linspace(low, high, len(density) + 1)
        stated = np.append(0.0, np.cumsum(density) * (high - low) / len(density))
        drawn = np.searchsorted(np.sort(latents[:, q]), edges, side="right") / len(latents)
        worst = float(np.max([worst, np.abs(stated - drawn).max()]))
    bound = math.sqrt(math.log(2e6 * latents.shape[1]) / (2 * len(latents))) + _PLOT_ERROR
    return (
        Figure(
            name="latent_distance",
            value=worst,
            bound=bound,
            meaning=f"Kolmogorov distance of the manifest's densities from {_DRAWS:,} latents of the graph",
        ),
    )


def _largest_u_error(parts: list[Quantiles]) -> float:
    return float(np.max([part.u_error() for part in parts]))  # NumPy's keeps a NaN wherever it stands


def _u_error(sampler: LocalSampler, oracle: LatentOracle, prior: PriorConfig, probes: list[_Probe]) -> float:
    """sup over u of |F(F^-1(u)) - u|: the graph's float32 latents against the oracle's float64 CDF."""
    worst = 0.0
    dim = prior.num_latents
    for probe in probes:
        latents = sampler.latents(probe.uniform).astype(np.float64)
        univariate = oracle.univariate(latents, probe.first_row // dim)
        expected = np.mod(probe.uniform.astype(np.float64), 1.0)
        errors = [np.abs(oracle.cdf(probe.first_row + q, univariate[:, q]) - expected[:, q]).max() for q in range(dim)]
        worst = float(np.max([worst, *errors]))  # unlike Python's max, NumPy's keeps a NaN wherever it stands
    return worst


def _probes(oracle: LatentOracle, prior: PriorConfig) -> Iterator[_Probe]:
    """Yield uniforms once, or for every expert uniforms that pick it.

    Those are spread over the expert's share of [-1/2, 1/2), both of its ends included but for 2^-20; an expert
    without so large a share is not probed.
    """
    dim = prior.num_latents
    match prior.variant:
        case "independent":
            yield _Probe(first_row=0, uniform=probe_uniforms(dim, 2_000))
        case "mixture":
            yield _Probe(first_row=0, uniform=probe_uniforms(dim, 20_000))
        case "experts":
            uniform = probe_uniforms(dim, max(64, 20_000 // len(oracle.weights)))
            ends = np.concatenate([[0.0], np.cumsum(oracle.weights)]) - 0.5
            for expert, (low, high) in enumerate(pairwise(ends)):
                if high - low > 2 * _SHARE_MARGIN:
                    choice = np.linspace(low + _SHARE_MARGIN, high - _SHARE_MARGIN, len(uniform), dtype=np.float32)
                    yield _Probe(first_row=expert * dim, uniform=np.concatenate([uniform, choice[:, None]], axis=1))
        case _:
            assert_never(prior.variant)


def _quantiles(
    artifact: Path, tensor: str, oracle: LatentOracle, prior: PriorConfig, probe: _Probe
) -> Iterator[tuple[int, Quantiles]]:
    uniform = probe.uniform[:: _STRIDE_OF_SUMS if oracle.is_sum else 1]
    latents = inner_tensor(artifact, tensor, uniform).reshape(len(uniform), -1)
    for q in range(prior.num_latents):
        row = probe.first_row + q
        if oracle.is_sum:
            yield row, _of_sum(oracle, row, uniform[:, q], latents[:, q])
        else:
            yield row, quantiles_of(oracle, row, uniform[:, q], latents[:, q])


def _of_sum(oracle: LatentOracle, row: int, uniform: Float32, z: Float32) -> Quantiles:
    """Return quantiles of a sum; in the tails its distribution is relatively precise."""
    signed, exact = signed_uniforms(uniform), z.astype(np.float64)
    cdf = oracle.cdf(row, exact)
    survival = 1.0 - cdf
    for is_upper, found in ((False, cdf), (True, survival)):
        depth = np.abs(signed)
        is_tail = (depth > _LEAST_TAIL) & (depth < _TAIL_OF_SUMS) & ((signed < 0) == is_upper)
        if is_tail.any():
            found[is_tail] = oracle.tail_of_sum(row, exact[is_tail], is_upper=is_upper)
    return Quantiles(signed=signed, z=z, cdf=cdf, survival=survival, density=oracle.density(row, exact))
