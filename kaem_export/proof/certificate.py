"""Proof of an artifact: what it promises, measured on the very graph that will be run.

Every figure is recomputed from the artifact and the checkpoint alone, so anyone can repeat it with
`kaem verify`; the exporter measures the same figures before it lets a file appear.
"""

from __future__ import annotations

import math
from collections.abc import Container
from pathlib import Path
from typing import assert_never

import numpy as np
import torch
from numpy.typing import NDArray

from kaem.artifact import Figure, Manifest
from kaem.engines.cpu import LocalSampler, read_file
from kaem.errors import ArtifactError, VerificationError
from kaem_export.families.diffusion import stated_sampler
from kaem_export.families.diffusion_certificate import probe_rows, sampler_parity
from kaem_export.families.latent_ebm import DRAWS, stated_chain
from kaem_export.families.latent_ebm_certificate import chain_parity
from kaem_export.one_thread import one_thread
from kaem_export.priors.manifest_entries import energies_field, u_error_bound
from kaem_export.priors.prior_tables import prior_laws
from kaem_export.proof.device import device_figures, open_on_device
from kaem_export.proof.intensities import range_figure
from kaem_export.proof.latents import latent_distance, latent_figures
from kaem_export.proof.manifest_check import (
    check_description,
    check_identity,
    check_recorded,
    check_tables,
    keeps_components,
)
from kaem_export.proof.normal_draws import normal_figures
from kaem_export.proof.rows import BATCHES, noise_mismatches, probe_uniforms, row_figures, tail_uniforms
from kaem_export.rewrite.int8 import MOST_ERROR, PROBES
from kaem_export.tables.leaves import TOLERANCE
from kaem_train.checkpoint import fingerprint_weights, load_model, read_checkpoint
from kaem_train.config.settings import Config
from kaem_train.families.build import Model
from kaem_train.families.diffusion import Diffusion
from kaem_train.families.kaem import Kaem
from kaem_train.families.latent_ebm import LatentEbm
from kaem_train.model.generators.onnx_generator import OnnxGenerator

PARITY_BOUND = 1e-5
"""Largest difference of an intensity in [0, 1] between ONNX Runtime and torch, both in float32."""

PARITY_BOUNDS = {"float32": PARITY_BOUND, "float16": 2e-2, "int8": MOST_ERROR}
"""The same by the precision of the generator. With float16 two thousandths of the range are common and a steep sigmoid
makes more of them; what int8 promises is its signal-to-noise ratio, and this bound, at samples of
which one latent is in a tail, only that no pixel is lost."""

_PARITY_ROWS = 256
_USUAL_LATENT = 16.0
"""Size of a latent up to which `PARITY_BOUND` holds: what a layer rounds grows with what it is given."""


def verify_on_device(
    artifact: Path, checkpoint: Path, device: str, *, allow_modules: Container[str] = ()
) -> tuple[Manifest, tuple[Figure, ...]]:
    """Measure what a GPU makes of an artifact; see `device_certificate`.

    Args:
        artifact: An exported ONNX file; its TensorRT engine lies beside it.
        checkpoint: The checkpoint it claims to come from.
        device: `cuda:N` or `tensorrt:N`.
        allow_modules: Generator classes that may be imported, as for `load_model`.

    Raises:
        ArtifactError: A file is missing or cannot be read, or the checkpoint is none.
        VerificationError: The artifact was not made from this checkpoint, or its graph was changed.
        ConfigError: The device has another name, or the artifact is not for it.
        BackendError: There is no such device, or it cannot run the artifact.
    """
    config, model = load_model(checkpoint, allow_modules=allow_modules)
    with LocalSampler(artifact) as here, open_on_device(artifact, device) as there:
        check_identity(artifact, here.manifest, fingerprint_weights(model.state_dict()), checkpoint)
        check_description(artifact, here.manifest, config, updates=read_checkpoint(checkpoint).step)
        generator = None if isinstance(model, Diffusion) else model.float().eval().generator
        return here.manifest, device_figures(there, here, generator, device)


def verify(
    artifact: Path, checkpoint: Path, *, allow_modules: Container[str] = (), tolerance: float = TOLERANCE
) -> tuple[Manifest, tuple[Figure, ...]]:
    """Measure every figure of an artifact again.

    Args:
        artifact: An exported ONNX file.
        checkpoint: The checkpoint it claims to come from.
        allow_modules: As for `load_model`.
        tolerance: Error in u that its tables may have been made for; a manifest that states more is judged by this.

    Returns:
        The artifact's manifest and the figures as measured now; all bounds are those of this version of kaem, none is
        the manifest's.

    Raises:
        ArtifactError: A file is missing or cannot be read, or the checkpoint is none: nothing is known of the artifact.
        VerificationError: The artifact is damaged, was not made from this checkpoint, its graph was changed, or its
            manifest says something that is not so.
    """
    read_file(artifact)
    config, model = load_model(checkpoint, allow_modules=allow_modules)
    try:
        with LocalSampler(artifact, workers=1) as sampler:
            manifest = sampler.manifest
            check_identity(artifact, manifest, fingerprint_weights(model.state_dict()), checkpoint)
            check_description(artifact, manifest, config, updates=read_checkpoint(checkpoint).step)
            prior = model.prior if config.has_energies and isinstance(model, Kaem) else None
            check_tables(artifact, manifest, energies=None if prior is None else energies_field(prior))
            figures = measure(sampler, config, model, artifact, tolerance=judged_tolerance(manifest, tolerance))
    except ArtifactError as error:  # the file was read, so it is its content that is wrong
        raise VerificationError(error.message, hint=error.hint) from None
    if all(figure.is_kept for figure in figures):
        check_recorded(artifact, manifest, figures)
    return manifest, figures


def stated_tolerance(manifest: Manifest) -> float:
    """Return the tolerance that an artifact says its tables were made for; 2^-24 where it has none of its own."""
    return float(manifest.prior.get("tolerance", TOLERANCE))


def judged_tolerance(manifest: Manifest, allowed: float) -> float:
    """Return the tolerance that an artifact is judged by: what it states, but no more than is allowed."""
    return min(max(stated_tolerance(manifest), TOLERANCE), max(allowed, TOLERANCE))


@one_thread()
def measure(
    sampler: LocalSampler, config: Config, model: Model, artifact: Path, *, tolerance: float = TOLERANCE
) -> tuple[Figure, ...]:
    """Measure the figures of a loaded artifact.

    Args:
        sampler: The artifact, opened where it is to be measured.
        config: Configuration of the checkpoint.
        model: It was compiled from.
        artifact: Its file.
        tolerance: Error in u that its quantile tables are judged by.
    """
    model = model.float().eval()
    figures = _figures(sampler, config, model, artifact, tolerance)
    if isinstance(model, Diffusion):
        return figures
    match config.generator.kind:
        case "cnn" | "kan" | "onnx":
            return figures  # ours end in a sigmoid, and a finished decoder is clipped in its file
        case "module":
            return *figures, range_figure(sampler, model.generator)
        case _:
            assert_never(config.generator.kind)


def _figures(
    sampler: LocalSampler, config: Config, model: Model, artifact: Path, tolerance: float
) -> tuple[Figure, ...]:
    noise_dim = sampler.manifest.noise_dim
    match config.family, model:
        case "ddpm", Diffusion():
            settings = stated_sampler(config.diffusion, sampler.manifest)
            rows = [size for size in BATCHES if size <= probe_rows(settings)]
            return (
                *normal_figures(artifact, noise_dim, "latent"),
                sampler_parity(sampler, artifact, model, settings),
                *row_figures(sampler, artifact, rows),
                noise_mismatches(),
            )
        case "latent_ebm", LatentEbm():
            return (
                *normal_figures(artifact, noise_dim, DRAWS),
                chain_parity(sampler, artifact, model.prior, stated_chain(config.latent_ebm, sampler.manifest)),
                _parity(sampler, model),
                *row_figures(sampler, artifact),
                noise_mismatches(),
            )
        case "vae", Kaem():
            return (
                *normal_figures(artifact, noise_dim, "latent"),
                _parity(sampler, model),
                *row_figures(sampler, artifact),
                noise_mismatches(),
            )
        case "kaem", Kaem():
            laws = prior_laws(model.prior, keep_components=keeps_components(sampler.manifest, config.prior))
            bound = u_error_bound(model.prior, laws, tolerance)
            return (
                *latent_figures(
                    *(sampler, artifact, model.state_dict(), config.prior), u_error_bound=bound, tolerance=tolerance
                ),
                *latent_distance(sampler),
                _parity(sampler, model),
                *row_figures(sampler, artifact),
                noise_mismatches(),
            )
        case family, _:
            raise AssertionError(f"nothing is measured of a {type(model).__name__} of the family {family!r}")


def _parity(sampler: LocalSampler, model: Kaem | LatentEbm) -> Figure:
    """max |onnx - torch| of the images decoded from the same latents; of a finished decoder, itself alone."""
    precision = sampler.manifest.compilation.get("precision", "float32")
    match precision:
        case "int8":  # whose units fit what occurs, and that is not every uniform extreme at once
            uniform = tail_uniforms(sampler.manifest.noise_dim, PROBES)
        case "float32" | "float16":
            uniform = probe_uniforms(sampler.manifest.noise_dim, _PARITY_ROWS)
        case _:
            raise ArtifactError(f"the manifest of {sampler.manifest.name} states no known precision, but {precision!r}")
    latents = sampler.latents(uniform)
    with torch.no_grad():
        expected = model.generator(torch.from_numpy(latents)).clamp(0.0, 1.0).numpy()
    images = sampler.decode(uniform)
    bound = PARITY_BOUNDS[precision]
    if precision == "float32":
        bound *= _parity_scale(latents)
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


def _parity_scale(latents: NDArray[np.float32]) -> float:
    """Return how many times as large as usual the largest latent is, as a power of two, so that machines agree."""
    largest = float(np.abs(latents).max())
    return 2.0 ** math.ceil(math.log2(largest / _USUAL_LATENT)) if _USUAL_LATENT < largest < math.inf else 1.0
