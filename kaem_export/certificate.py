"""Proof of an artifact: what it promises, measured on the very graph that will be run.

Every figure is recomputed from the artifact and the checkpoint alone, so anyone can repeat it with
`kaem verify`; the exporter measures the same figures before it lets a file appear.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from kaem.artifact import Figure, Manifest, fingerprint
from kaem.config import to_mapping
from kaem.errors import ArtifactError, VerificationError
from kaem.runtime import LocalSampler
from kaem_export.families.diffusion import describe_diffusion, stated_sampler
from kaem_export.families.diffusion_certificate import probe_rows, sampler_parity
from kaem_export.families.latent_ebm import DRAWS, describe_latent_ebm, stated_chain
from kaem_export.families.latent_ebm_certificate import chain_parity
from kaem_export.families.normal_certificate import normal_u_error
from kaem_export.families.vae import vae_prior
from kaem_export.graph import graph_fingerprint
from kaem_export.numerics import has_branches, precision_of
from kaem_export.oracle import LatentOracle
from kaem_export.probes import probe_uniforms
from kaem_export.promise import MOST_TOLERANCE
from kaem_export.shared_certificate import component_u_error, summand_u_error
from kaem_train.baselines.diffusion import Diffusion
from kaem_train.baselines.latent_ebm import LatentEbm
from kaem_train.build import Model
from kaem_train.checkpoint import load_model
from kaem_train.model.kaem import Kaem
from kaem_train.model.onnx_generator import OnnxGenerator
from kaem_train.sections import PriorConfig
from kaem_train.settings import Config

PARITY_BOUND = 1e-5
"""Largest difference of an intensity in [0, 1] between ONNX Runtime and torch, both in float32."""

PARITY_BOUNDS = {"float32": PARITY_BOUND, "float16": 2e-2, "int8": 0.25}
"""The same by the precision of the generator. With float16 two thousandths of the range are common and a steep sigmoid
makes more of them; what int8 promises is its signal-to-noise ratio, and this bound only that no pixel is lost."""

BRANCH_BOUND = 1e-5
"""Largest difference of a row between the two forms of a graph with a large-batch branch: rounding of both."""

_BATCHES = (1, 2, 3, 5, 7, 8, 15, 16, 31, 33, 64, 100, 127, 128, 255, 256)
_PARITY_ROWS = 256
_CLAIM_FACTOR = 4.0
_CLAIM_SLACK = 1e-6
"""A figure measured now may be this factor and this much more above the recorded one: processors round differently."""

_LOOSEST_U_ERROR_BOUND = 2.0 * MOST_TOLERANCE + 1e-3
_SHARE_MARGIN = 2.0**-20


def verify(
    artifact: Path, checkpoint: Path, *, allow_modules: Container[str] = ()
) -> tuple[Manifest, tuple[Figure, ...]]:
    """Measure every figure of an artifact again.

    Args:
        artifact: An exported ONNX file.
        checkpoint: The checkpoint it claims to come from.
        allow_modules: As for `load_model`.

    Returns:
        The artifact's manifest and the figures as measured now; the bound of `u_error` is the one that the
        manifest states, for it depends on the tables, the other bounds are those of this version of kaem.

    Raises:
        ArtifactError: A file is missing or unreadable.
        VerificationError: The artifact was not made from this checkpoint, its graph was changed, or its manifest
            says something that is not so.
    """
    config, model = load_model(checkpoint, allow_modules=allow_modules)
    with LocalSampler(artifact, workers=1) as sampler:
        manifest = sampler.manifest
        _check_identity(artifact, manifest, fingerprint_weights(model.state_dict()), checkpoint)
        _check_description(artifact, manifest, config)
        figures = measure(sampler, config, model, artifact)
    if all(figure.is_kept for figure in figures):
        _check_recorded(artifact, manifest.certificate, figures)
    return manifest, figures


def measure(sampler: LocalSampler, config: Config, model: Model, artifact: Path) -> tuple[Figure, ...]:
    """Measure the figures of a loaded artifact, whose file is `artifact`, against the model it was compiled from."""
    model = model.float().eval()
    noise_dim = sampler.manifest.noise_dim
    if isinstance(model, Diffusion):
        settings = stated_sampler(config.diffusion, sampler.manifest)
        rows = [size for size in _BATCHES if size <= probe_rows(settings)]
        return (
            normal_u_error(artifact, noise_dim, "latent"),
            sampler_parity(sampler, artifact, model, settings),
            _row_difference(sampler, rows),
        )
    if isinstance(model, LatentEbm):
        return (
            normal_u_error(artifact, noise_dim, DRAWS),
            chain_parity(sampler, artifact, model.prior, stated_chain(config.latent_ebm, sampler.manifest)),
            _parity(sampler, model),
            _row_difference(sampler, _BATCHES),
        )
    if config.family == "vae":
        return (
            normal_u_error(artifact, noise_dim, "latent"),
            _parity(sampler, model),
            _row_difference(sampler, _BATCHES),
        )
    return (
        _u_error_of_latents(sampler, model.state_dict(), config.prior),
        _parity(sampler, model),
        _row_difference(sampler, _BATCHES),
    )


def fingerprint_weights(state: Mapping[str, torch.Tensor]) -> str:
    """Digest of a model's tensors: names, shapes, types and values, whatever file they came from."""
    parts = []
    for name in sorted(state):
        array = state[name].detach().cpu().numpy()
        parts.append(f"{name} {array.dtype} {array.shape}\n".encode() + np.ascontiguousarray(array).tobytes())
    return fingerprint(b"".join(parts))


def _u_error_of_latents(sampler: LocalSampler, state: Mapping[str, torch.Tensor], prior: PriorConfig) -> Figure:
    """sup over u of |F(F^-1(u)) - u|: the graph's float32 latents against the oracle's float64 CDF."""
    if prior.u_sharing == "per_p" or (_keeps_components(sampler.manifest, prior) and prior.variant == "independent"):
        value, what = summand_u_error(sampler, state, prior), ", of every component and of their sums"
    elif _keeps_components(sampler.manifest, prior):
        value, what = component_u_error(sampler, state, prior), ", of every component"
    else:
        value = _u_error(sampler, LatentOracle(state, prior), prior)
        what = ", every expert on its own share of the last uniform" if prior.variant == "experts" else ""
    return Figure(
        name="u_error",
        value=value,
        bound=float(sampler.manifest.prior["u_error_bound"]),
        meaning="max |F(F^-1(u)) - u|: baked quantiles against independent float64 quadrature" + what,
    )


def _keeps_components(manifest: Manifest, prior: PriorConfig) -> bool:
    """Whether the artifact was exported with --keep-components."""
    return prior.is_collapsed and manifest.prior.get("collapsed") is False


def _u_error(sampler: LocalSampler, oracle: LatentOracle, prior: PriorConfig) -> float:
    worst = 0.0
    dim = prior.num_latents
    for first_row, uniform in _probes(oracle, prior):
        univariate = oracle.univariate(sampler.latents(uniform).astype(np.float64), first_row // dim)
        expected = np.mod(uniform.astype(np.float64), 1.0)
        errors = [np.abs(oracle.cdf(first_row + q, univariate[:, q]) - expected[:, q]).max() for q in range(dim)]
        worst = float(np.max([worst, *errors]))  # unlike Python's max, NumPy's keeps a NaN wherever it stands
    return worst


def _probes(oracle: LatentOracle, prior: PriorConfig) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield the oracle's first row and uniforms (M, D): once, or for every expert with uniforms that pick it.

    Those are spread over the expert's share of [-1/2, 1/2), both of its ends included but for 2^-20; an expert
    without so large a share is not probed.
    """
    dim = prior.num_latents
    if prior.variant != "experts":
        yield 0, probe_uniforms(dim, 2_000 if prior.variant == "independent" else 20_000)
        return
    uniform = probe_uniforms(dim, max(64, 20_000 // len(oracle.weights)))
    ends = np.concatenate([[0.0], np.cumsum(oracle.weights)]) - 0.5
    for expert, (low, high) in enumerate(pairwise(ends)):
        if high - low > 2 * _SHARE_MARGIN:
            choice = np.linspace(low + _SHARE_MARGIN, high - _SHARE_MARGIN, len(uniform), dtype=np.float32)
            yield expert * dim, np.concatenate([uniform, choice[:, None]], axis=1)


def _parity(sampler: LocalSampler, model: Kaem | LatentEbm) -> Figure:
    """max |onnx - torch| of the images decoded from the same latents; of a finished decoder, itself alone."""
    uniform = probe_uniforms(sampler.manifest.noise_dim, _PARITY_ROWS)
    with torch.no_grad():
        expected = model.generator(torch.from_numpy(sampler.latents(uniform))).numpy()
    images = sampler.decode(uniform)
    precision = sampler.manifest.compilation.get("precision", "float32")
    bound = PARITY_BOUNDS[precision]
    if sampler.manifest.image_type == "uint8":
        images, bound = images / np.float32(255), bound + 0.5 / 255  # rounding to 8 bits is part of the graph
    return Figure(
        name="image_parity",
        value=float(np.abs(images - expected).max()),
        bound=bound,
        meaning="max |onnx - decoder alone| over images of the same latents, both in ONNX Runtime"
        if isinstance(model.generator, OnnxGenerator)
        else f"max |onnx - torch| over images of the same latents, intensities in [0, 1], generator in {precision}",
    )


def _row_difference(sampler: LocalSampler, batches: Sequence[int]) -> Figure:
    """Largest difference between a sample alone in its batch and the same sample in batches of other sizes."""
    uniform = probe_uniforms(sampler.manifest.noise_dim, -(-max(batches) // 2))[: max(batches)]
    alone = np.concatenate([sampler.decode(row[None]) for row in uniform]).astype(np.float32)
    worst = 0.0
    for size in batches:
        for first in {0, (len(uniform) - size) // 2, len(uniform) - size}:
            batch = sampler.decode(uniform[first : first + size]).astype(np.float32)
            worst = float(np.max([worst, np.abs(batch - alone[first : first + size]).max()]))
    bound = 0.0
    if sampler.manifest.compilation.get("large_batch_rows", 0) > 1:
        bound = BRANCH_BOUND if sampler.manifest.image_type == "float32" else 1.0  # a pixel on the edge of two levels
    return Figure(
        name="row_difference",
        value=worst,
        bound=bound,
        meaning="max difference of one sample between batch sizes and positions; 0 means equal bits"
        if bound == 0.0
        else "max difference of one sample between batch sizes, small and large ones being computed by two forms",
    )


def _check_identity(artifact: Path, manifest: Manifest, weights: str, checkpoint: Path) -> None:
    if manifest.checkpoint_fingerprint != weights:
        raise VerificationError(
            f"{artifact} was not exported from {checkpoint}: it names the weights "
            f"{manifest.checkpoint_fingerprint[:19]}, the checkpoint holds {weights[:19]}",
            hint="give the checkpoint it was exported from, or export this one",
        )
    try:
        model: Any = onnx.load(artifact)
    except Exception as error:  # onnx raises protobuf's own exceptions
        raise ArtifactError(f"{artifact} cannot be parsed as ONNX: {error}") from None
    stated, found_precision = manifest.compilation.get("precision", "float32"), precision_of(model)
    if stated != found_precision:
        raise VerificationError(
            f"the manifest of {artifact} says its generator computes in {stated}, its graph does in {found_precision}",
            hint="export it again",
        )
    if bool(manifest.compilation.get("large_batch_rows", 0) > 1) != has_branches(model):
        raise VerificationError(
            f"the manifest of {artifact} and its graph do not agree on a large-batch form", hint="export it again"
        )
    bound = manifest.prior.get("u_error_bound")
    if not (isinstance(bound, float) and 0.0 < bound <= _LOOSEST_U_ERROR_BOUND):
        raise ArtifactError(f"{artifact} states no usable bound of its u_error, but {bound!r}", hint="export it again")
    found = graph_fingerprint(model)
    if found != manifest.graph_fingerprint:
        raise VerificationError(
            f"the graph of {artifact} was changed after its export: its digest is {found[:19]}, "
            f"its manifest says {manifest.graph_fingerprint[:19]}",
            hint="export it again",
        )


def _check_description(artifact: Path, manifest: Manifest, config: Config) -> None:
    """Refuse a manifest that describes another model than the checkpoint holds."""
    family, latent_dim, noise_dim, prior = _description(config, manifest)
    said: dict[str, Any] = {
        "config": manifest.config,
        "prior": {name: manifest.prior.get(name) for name in prior},
        "family": manifest.family,
        "image_shape": list(manifest.image_shape),
        "latent_dim": manifest.latent_dim,
        "noise_dim": manifest.noise_dim,
    }
    true: dict[str, Any] = {
        "config": to_mapping(config),
        "prior": prior,
        "family": family,
        "image_shape": list(config.data.image_shape),
        "latent_dim": latent_dim,
        "noise_dim": noise_dim,
    }
    for name, value in true.items():
        if said[name] != value:
            raise VerificationError(
                f"the manifest of {artifact} says {name} is {said[name]}, the checkpoint {value}",
                hint="export it again",
            )


def _description(config: Config, manifest: Manifest) -> tuple[str, int, int, dict[str, Any]]:
    """Return family, Q, D and prior as the checkpoint has them, with the steps and sampler that the manifest states."""
    if config.family == "ddpm":
        return describe_diffusion(config.data.image_shape, stated_sampler(config.diffusion, manifest))
    if config.family == "latent_ebm":
        return describe_latent_ebm(config.prior.num_latents, stated_chain(config.latent_ebm, manifest))
    dim = config.prior.num_latents
    if config.family == "vae":
        return "vae", dim, dim, vae_prior()
    num_uniforms = config.prior.num_uniforms
    if _keeps_components(manifest, config.prior):
        num_uniforms *= 2 if config.prior.variant == "mixture" else config.prior.num_components
    return "kaem", dim, num_uniforms, to_mapping(config.prior)


def _check_recorded(artifact: Path, recorded: tuple[Figure, ...], measured: tuple[Figure, ...]) -> None:
    """Refuse a certificate that claims clearly less error than is there, or other bounds than those that hold."""
    before = {figure.name: figure for figure in recorded}
    for figure in measured:
        claim = before.get(figure.name)
        if claim is None or claim.bound != figure.bound or figure.value > _CLAIM_FACTOR * claim.value + _CLAIM_SLACK:
            said = "nothing" if claim is None else f"{claim.value:.2e} of at most {claim.bound:.2e}"
            raise VerificationError(
                f"the certificate of {artifact} says of {figure.name}: {said}; "
                f"measured: {figure.value:.2e} of at most {figure.bound:.2e}",
                hint="export it again",
            )
