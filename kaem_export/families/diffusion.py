"""A diffusion model as a graph: a normal draw per pixel, then every step of its sampler in one loop over the UNet.

    x0 = clip((x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t), -1, 1),     eps = eps_theta(x_t, t)

    DDIM (Song et al. 2021, eq. 12)   x' = sqrt(abar') x0 + sqrt(1 - abar' - sigma^2) eps + sigma xi
    DDPM (Ho et al. 2020, eq. 7)      x' = c0 x0 + c1 x_t + sigma xi

`latent` is the first x, pixels in order: all that a deterministic sampler starts from. DDIM with eta = 0 has no
further noise, so D = C H W; otherwise xi comes from one stream per pixel, seeded by six more uniforms
(`recursive_noise.py`), so D = 7 C H W, however many steps there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, assert_never

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from typing_extensions import override

from kaem.artifact import Figure, ImageType, Manifest
from kaem.errors import ConfigError, VerificationError
from kaem_export.families.diffusion_certificate import probe_rows, sampler_parity
from kaem_export.families.family import (
    Compiled,
    Description,
    ExportedFamily,
    Request,
    Sampling,
    Subject,
    require_noise_dim,
    stated_steps,
)
from kaem_export.families.recursive_noise import NUM_WORDS, advance_streams, seed_streams
from kaem_export.families.unet import unet_graph
from kaem_export.graph import finish_graph
from kaem_export.onnx_builder import Op, add_constant, move_graph, split, start_graph, write_loop
from kaem_export.proof.head import measured_tensors, require_head
from kaem_export.proof.normal_draws import normal_figures
from kaem_export.proof.rows import BATCHES, noise_mismatches, row_figures
from kaem_export.tables.lookup import Head
from kaem_export.tables.normal import NORMAL_U_ERROR_BOUND, draw_normals
from kaem_train.config import DiffusionConfig
from kaem_train.config.settings import Config
from kaem_train.families.diffusion import Diffusion, sampling_schedule

_HEAD = "denoising steps"
_SAMPLERS: dict[str, Literal["ddim", "ddpm"]] = {"ddim": "ddim", "ddpm": "ddpm"}
_DEFAULT_DDIM_STEPS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The steps of a sampler as numbers: each float32 of shape (S,) but for the timesteps, rounded once from float64.

    Attributes:
        timesteps: t, int64.
        of_noisy: a of x0 = clip(a x_t - b eps).
        of_noise: b.
        to_clean: Factor of x0 in x'.
        to_noise: Factor of eps in x'; zero in DDPM.
        to_noisy: Factor of x_t in x'; zero in DDIM.
        sigma: Factor of xi in x'; zero in the last step.
    """

    timesteps: NDArray[np.int64]
    of_noisy: NDArray[np.float32]
    of_noise: NDArray[np.float32]
    to_clean: NDArray[np.float32]
    to_noise: NDArray[np.float32]
    to_noisy: NDArray[np.float32]
    sigma: NDArray[np.float32]

    @property
    def is_random(self) -> bool:
        """Whether there is noise besides the first."""
        return bool(self.sigma.any())


def sampler_settings(config: DiffusionConfig, sampling: Sampling) -> DiffusionConfig:
    """Return the settings with what was asked for; another sampler than theirs has T (DDPM) or 50 steps by default.

    Raises:
        ConfigError: The steps do not divide T.
    """
    sampler, steps = sampling.sampler or config.sampler, sampling.steps
    if steps is None:
        other = {"ddpm": config.noise_steps, "ddim": _DEFAULT_DDIM_STEPS}[sampler]
        steps = config.sampling_steps if sampler == config.sampler else other
    return replace(config, sampler=sampler, sampling_steps=steps)


class ExportedDiffusion(ExportedFamily[Diffusion]):
    """A diffusion model with one of its samplers."""

    manifest_names = tuple(_SAMPLERS)
    has_loop = True

    @override
    def compile(self, config: Config, model: Diffusion, request: Request) -> Compiled:
        request.refuse_tables(config.family)
        settings = sampler_settings(config.diffusion, request.sampling)
        description = _describe(config, model.image_shape, settings)
        require_noise_dim(
            description.noise_dim,
            "give --sampler ddim" if description.noise_dim > description.latent_dim else "train on smaller images",
        )
        graph, head = diffusion_graph(
            unet_graph(model), model.image_shape, sampler_schedule(settings), request.image_type
        )
        return Compiled(graph=graph, description=description, head=head.describe())

    @override
    def describe(self, config: Config, manifest: Manifest) -> Description:
        return _describe(config, config.data.image_shape, _stated_sampler(config, manifest))

    @override
    def measure(self, subject: Subject[Diffusion]) -> tuple[Figure, ...]:
        sampler, artifact, manifest = subject.sampler, subject.artifact, subject.sampler.manifest
        require_head(manifest, _HEAD)
        first, settings = measured_tensors(manifest)["quantiles"], _stated_sampler(subject.config, manifest)
        rows = [size for size in BATCHES if size <= probe_rows(settings)]
        return (
            *normal_figures(artifact, manifest.noise_dim, first),
            sampler_parity(sampler, artifact, first, subject.model, settings),
            *row_figures(sampler, artifact, rows),
            noise_mismatches(),
        )

    @override
    def set_sampling(self, config: Config, model: Diffusion, manifest: Manifest) -> None:
        model.config = _stated_sampler(config, manifest)

    @override
    def generator(self, model: Diffusion) -> None:
        return None


def _describe(config: Config, image_shape: tuple[int, ...], settings: DiffusionConfig) -> Description:
    pixels = math.prod(image_shape)
    return Description(
        family=settings.sampler,
        name=f"{config.name.removesuffix('-ddpm')}-{settings.sampler}-{settings.sampling_steps}",
        noise_dim=pixels * (1 + NUM_WORDS * sampler_schedule(settings).is_random),
        latent_dim=pixels,
        prior={
            "kind": "standard normal per pixel",
            "steps": settings.sampling_steps,
            "eta": settings.used_eta,
            "noise_steps": settings.noise_steps,
            "betas": settings.betas,
            "u_error_bound": NORMAL_U_ERROR_BOUND,
        },
    )


def _stated_sampler(config: Config, manifest: Manifest) -> DiffusionConfig:
    """Return the settings with the sampler and the number of steps that a manifest states.

    Raises:
        VerificationError: It states none that the model has.
    """
    if manifest.family not in _SAMPLERS:
        raise VerificationError(
            f"the manifest of {manifest.name} says family is {manifest.family}, the checkpoint ddpm",
            hint="export it again",
        )
    try:
        asked = Sampling(sampler=_SAMPLERS[manifest.family], steps=stated_steps(manifest))
        return sampler_settings(config.diffusion, asked)
    except ConfigError as error:
        raise VerificationError(
            f"the manifest of {manifest.name} says what cannot be: {error.message}", hint="export it again"
        ) from None


def sampler_schedule(settings: DiffusionConfig) -> Schedule:
    """Return the numbers of every step, from the library's abar and timesteps, in float64 until they are rounded."""
    library = sampling_schedule(settings)
    timesteps = np.asarray(library.timesteps, np.int64)
    kept = np.append(library.alphas_cumprod.double().numpy(), 1.0)  # abar; after the last step, at index -1, it is 1
    now, then = kept[timesteps], kept[np.maximum(timesteps - settings.noise_steps // settings.sampling_steps, -1)]
    variance = (1.0 - then) / (1.0 - now) * (1.0 - now / then)
    none = np.zeros_like(now)
    match settings.sampler:
        case "ddim":
            sigma = settings.eta * np.sqrt(variance)
            to_clean, to_noise, to_noisy = np.sqrt(then), np.sqrt(1.0 - then - sigma**2), none
        case "ddpm":
            sigma = np.sqrt(variance)
            to_clean = np.sqrt(then) * (1.0 - now / then) / (1.0 - now)
            to_noise, to_noisy = none, np.sqrt(now / then) * (1.0 - then) / (1.0 - now)
        case _:
            assert_never(settings.sampler)
    return Schedule(
        timesteps=timesteps,
        of_noisy=(1.0 / np.sqrt(now)).astype(np.float32),
        of_noise=np.sqrt((1.0 - now) / now).astype(np.float32),
        to_clean=to_clean.astype(np.float32),
        to_noise=to_noise.astype(np.float32),
        to_noisy=to_noisy.astype(np.float32),
        sigma=sigma.astype(np.float32),
    )


def diffusion_graph(
    unet: ir.Graph, image_shape: tuple[int, ...], schedule: Schedule, image_type: ImageType = "float32"
) -> tuple[onnx.ModelProto, Head]:
    """Return the graph from `uniform` to `image` and `latent`, and its head.

    Args:
        unet: Network as `unet_graph` gives it; a copy of it becomes part of the loop's body.
        image_shape: Shape of an image, (C, H, W).
        schedule: Schedule of the sampler.
        image_type: Element type of the images.
    """
    pixels = math.prod(image_shape)
    builder, uniform = start_graph("uniform", pixels * (1 + NUM_WORDS * schedule.is_random))
    op = builder.op
    states: list[ir.Value] = []
    if schedule.is_random:
        uniform, seeds = split(op, uniform, [pixels, NUM_WORDS * pixels], 1)
        states = seed_streams(op, seeds, pixels)
    draws = draw_normals(op, uniform)
    step = partial(_write_step, unet=unet, image_shape=image_shape, schedule=schedule)
    starts = {"noisy": op.Reshape(draws.quantiles, [-1, *image_shape])}
    starts |= {f"stream_{word}": state for word, state in enumerate(states)}
    starts["noisy"].shape = ir.Shape(["N", *image_shape])
    last, *_ = write_loop(op, len(schedule.timesteps), step, starts)
    image = op.Clip(op.Mul(op.Add(last, 1.0), 0.5), 0.0, 1.0)
    head = Head(kind=_HEAD, latent=draws.quantiles, lookup=draws, measured={"quantiles": draws.quantiles})
    return finish_graph(builder, image, draws.quantiles, image_type), head


def _write_step(
    op: Op,
    number: ir.Value,
    noisy: ir.Value,
    *states: ir.Value,
    unet: ir.Graph,
    image_shape: tuple[int, ...],
    schedule: Schedule,
) -> list[ir.Value]:
    """Write the loop's body: x_t (N, C, H, W) to x', and streams of noise to the next."""

    def current(values: NDArray[Any], name: str) -> ir.Value:
        return op.Gather(add_constant(op, values, name), number, axis=0)

    # ONNX Runtime lays convolutions out for speed only where the weights are in the same graph: 1.4 times faster.
    (noise,) = move_graph(unet, op.builder, "unet_", [noisy, current(schedule.timesteps, "timesteps")])
    of_noisy, of_noise = current(schedule.of_noisy, "of_noisy"), current(schedule.of_noise, "of_noise")
    clean = op.Clip(op.Sub(op.Mul(noisy, of_noisy), op.Mul(noise, of_noise)), -1.0, 1.0)
    result = op.Mul(clean, current(schedule.to_clean, "to_clean"))
    terms = [(schedule.to_noise, noise, "to_noise"), (schedule.to_noisy, noisy, "to_noisy")]
    advanced: list[ir.Value] = []
    if states:
        advanced, drawn = advance_streams(op, list(states))
        step_noise = op.Reshape(draw_normals(op, drawn).quantiles, [-1, *image_shape])
        terms.append((schedule.sigma, step_noise, "sigma"))
    for factors, term, name in terms:
        if factors.any():
            result = op.Add(result, op.Mul(term, current(factors, name)))
    return [result, *advanced]
