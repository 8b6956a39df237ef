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
from typing import Any, assert_never

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from kaem.artifact import Family, ImageType, Manifest
from kaem.errors import ConfigError, VerificationError
from kaem_export.families.compiled import Compiled, Sampling, require_noise_dim, stated_steps
from kaem_export.families.recursive_noise import NUM_WORDS, seed_nodes, stream_nodes
from kaem_export.families.unet import PREFIX, unet_graph
from kaem_export.graph import finished
from kaem_export.tables.lookup import Constants
from kaem_export.tables.normal import NORMAL_U_ERROR_BOUND, normal_nodes
from kaem_train.config import DiffusionConfig
from kaem_train.config.settings import Config
from kaem_train.families.diffusion import Diffusion, sampling_schedule
from kaem_train.fitting.decoder_graph import IR_VERSION, OPSET

_DEFAULT_DDIM_STEPS = 50
_STATES = [f"stream_{word}" for word in range(NUM_WORDS)]
_NEW_STATES = [f"new_stream_{word}" for word in range(NUM_WORDS)]


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


def compile_diffusion(config: Config, model: Diffusion, image_type: ImageType, sampling: Sampling) -> Compiled:
    """Compile a diffusion model with one of its samplers.

    Raises:
        ConfigError: The steps do not divide T, or an image has more pixels than an artifact may have uniforms.
        ArtifactError: torch cannot export the network.
    """
    settings = sampler_settings(config.diffusion, sampling)
    family, latent_dim, noise_dim, prior = describe_diffusion(model.image_shape, settings)
    require_noise_dim(noise_dim, "give --sampler ddim" if noise_dim > latent_dim else "train on smaller images")
    graph = diffusion_graph(unet_graph(model), model.image_shape, sampler_schedule(settings))
    return Compiled(
        graph=finished(graph, image_type),
        family=family,
        name=f"{config.name.removesuffix('-ddpm')}-{family}-{settings.sampling_steps}",
        noise_dim=noise_dim,
        latent_dim=latent_dim,
        prior=prior,
    )


def describe_diffusion(
    image_shape: tuple[int, ...], settings: DiffusionConfig
) -> tuple[Family, int, int, dict[str, Any]]:
    """Return family, Q, D and the description of the sampler, for the manifest."""
    pixels = math.prod(image_shape)
    prior = {
        "kind": "standard normal per pixel",
        "steps": settings.sampling_steps,
        "eta": settings.used_eta,
        "noise_steps": settings.noise_steps,
        "betas": settings.betas,
        "u_error_bound": NORMAL_U_ERROR_BOUND,
    }
    return settings.sampler, pixels, pixels * (1 + NUM_WORDS * sampler_schedule(settings).is_random), prior


def stated_sampler(config: DiffusionConfig, manifest: Manifest) -> DiffusionConfig:
    """Return the settings with the sampler and the number of steps that a manifest states.

    Raises:
        VerificationError: It states none that the model has.
    """
    if manifest.family not in ("ddim", "ddpm"):
        raise VerificationError(
            f"the manifest of {manifest.name} says family is {manifest.family}, the checkpoint ddpm",
            hint="export it again",
        )
    try:
        return sampler_settings(config, Sampling(sampler=manifest.family, steps=stated_steps(manifest)))
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


def diffusion_graph(unet: onnx.GraphProto, image_shape: tuple[int, ...], schedule: Schedule) -> onnx.ModelProto:
    """Return the graph from `uniform` to `image`, float32, and `latent`; not yet finished.

    Args:
        unet: As of `unet_graph`; it moves into the loop's body.
        image_shape: (C, H, W).
        schedule: Schedule of the sampler.
    """
    pixels = math.prod(image_shape)
    node = helper.make_node
    first, constants = normal_nodes("first_uniform" if schedule.is_random else "uniform", "latent", "first_")
    constants |= {
        "image_sizes": np.array([-1, *image_shape], np.int64),
        "num_steps": np.int64(len(schedule.timesteps)),
        "is_going": np.bool_(True),
        "minus_one": np.float32(-1),
        "zero": np.float32(0),
        "one": np.float32(1),
        "half": np.float32(0.5),
        "timesteps": schedule.timesteps,
    }
    nodes, states = [], []
    if schedule.is_random:
        states = _STATES
        seeds, seed_constants = seed_nodes("stream_uniform", pixels, [f"first_{name}" for name in states])
        constants |= {"uniform_sizes": np.array([pixels, NUM_WORDS * pixels], np.int64), **seed_constants}
        nodes = [node("Split", ["uniform", "uniform_sizes"], ["first_uniform", "stream_uniform"], axis=1), *seeds]
    body, step_constants = _step(unet, image_shape, schedule)
    nodes += [
        *first,
        node("Reshape", ["latent", "image_sizes"], ["first_noisy"]),
        node(
            "Loop",
            ["num_steps", "is_going", "first_noisy", *(f"first_{name}" for name in states)],
            ["last", *(f"last_{name}" for name in states)],
            body=body,
        ),
        node("Add", ["last", "one"], ["lifted"]),
        node("Mul", ["lifted", "half"], ["grey"]),
        node("Clip", ["grey", "zero", "one"], ["image"]),
    ]
    graph = helper.make_graph(
        nodes,
        "diffusion",
        [helper.make_tensor_value_info("uniform", TensorProto.FLOAT, ["N", pixels * (1 + NUM_WORDS * bool(states))])],
        [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", *image_shape]),
            helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["N", pixels]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in {**constants, **step_constants}.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _step(unet: onnx.GraphProto, image_shape: tuple[int, ...], schedule: Schedule) -> tuple[onnx.GraphProto, Constants]:
    """Return the loop's body, x_t (N, C, H, W) to x', and constants of the graph around it."""
    node, make = helper.make_node, helper.make_tensor_value_info
    pixels = math.prod(image_shape)
    noisy, timestep, noise = (f"{PREFIX}{name}" for name in ("image", "timestep", "noise"))
    constants: Constants = {}

    def factor(name: str) -> list[onnx.NodeProto]:
        constants[f"{name}_by_step"] = getattr(schedule, name)
        return [node("Gather", [f"{name}_by_step", "step"], [name], axis=0)]

    nodes = [
        node("Gather", ["timesteps", "step"], [timestep], axis=0),
        *unet.node,
        *factor("of_noisy"),
        *factor("of_noise"),
        node("Mul", [noisy, "of_noisy"], ["raised"]),
        node("Mul", [noise, "of_noise"], ["subtracted"]),
        node("Sub", ["raised", "subtracted"], ["unclipped"]),
        node("Clip", ["unclipped", "minus_one", "one"], ["clean"]),
        *factor("to_clean"),
        node("Mul", ["clean", "to_clean"], ["term_0"]),
    ]
    terms = {"to_noise": noise, "to_noisy": noisy, "sigma": "step_noise"}
    states, new_states = (_STATES, _NEW_STATES) if schedule.is_random else ([], [])
    if schedule.is_random:
        drawn, drawn_constants = stream_nodes(states, new_states, "step_uniform")
        normal, normal_constants = normal_nodes("step_uniform", "flat_step_noise", "step_normal_")
        constants |= {**drawn_constants, **normal_constants}
        nodes += [*drawn, *normal, node("Reshape", ["flat_step_noise", "image_sizes"], ["step_noise"])]
    used = [name for name in terms if getattr(schedule, name).any()]
    for number, name in enumerate(used, start=1):
        nodes += [
            *factor(name),
            node("Mul", [terms[name], name], [f"part_{number}"]),
            node("Add", [f"term_{number - 1}", f"part_{number}"], [f"term_{number}"]),
        ]
    nodes.append(node("Identity", ["goes_on"], ["still_goes_on"]))
    images: list[int | str] = ["N", *image_shape]
    streams: list[int | str] = ["N", pixels]
    body = helper.make_graph(
        nodes,
        "denoising_step",
        [
            make("step", TensorProto.INT64, ()),
            make("goes_on", TensorProto.BOOL, ()),
            make(noisy, TensorProto.FLOAT, images),
            *(make(name, TensorProto.INT64, streams) for name in states),
        ],
        [
            make("still_goes_on", TensorProto.BOOL, ()),
            make(f"term_{len(used)}", TensorProto.FLOAT, images),
            *(make(name, TensorProto.INT64, streams) for name in new_states),
        ],
        # ONNX Runtime lays convolutions out for speed only where the weights are in the same graph: 1.4 times faster.
        unet.initializer,
    )
    return body, constants
