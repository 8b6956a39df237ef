"""A latent EBM as a graph: normal draws, the short Langevin run with its gradient, then the decoder.

    z_0 = xi_0,     z_{t+1} = (1 - s^2/2) z_t + s^2/2 grad f(z_t) + s xi_{t+1},     t = 0 .. T - 1

f is a perceptron of two hidden layers with LeakyReLU, so its gradient is two matrix products forward and two back,
written out below. Each xi_t is Q normal draws of the row's own uniforms, in order: D = Q (1 + T).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch import nn

from kaem.artifact import Family, ImageType, Manifest
from kaem.errors import RequestError
from kaem_export.families.compiled import Compiled, Sampling, require_noise_dim, stated_steps
from kaem_export.graph import join_generator
from kaem_export.tables.lookup import Constants
from kaem_export.tables.normal import NORMAL_U_ERROR_BOUND, normal_nodes
from kaem_train.config import LatentEbmConfig
from kaem_train.config.settings import Config
from kaem_train.families.latent_ebm import EnergyPrior, LatentEbm

DRAWS = "draws"
"""Name of the normal draws (N, D) in the graph."""


def compile_latent_ebm(config: Config, model: LatentEbm, image_type: ImageType, sampling: Sampling) -> Compiled:
    """Compile a latent EBM: D = Q (1 + T), and `latent` is where the chains end.

    Raises:
        RequestError: A sampler is asked for; there is one only.
        ConfigError: So many steps need more uniforms than an artifact may have.
    """
    if sampling.sampler is not None:
        raise RequestError(
            f"--sampler {sampling.sampler}: a latent EBM has Langevin chains only", hint="leave --sampler out"
        )
    chain = config.latent_ebm
    if sampling.steps is not None:
        chain = replace(chain, prior_steps=sampling.steps)
    family, latent_dim, noise_dim, prior = describe_latent_ebm(config.prior.num_latents, chain)
    require_noise_dim(noise_dim, "give fewer --steps")
    nodes, constants = chain_nodes(model.prior, chain.prior_steps, chain.prior_step_size)
    return Compiled(
        graph=join_generator(nodes, constants, noise_dim, latent_dim, model.generator, image_type),
        family=family,
        name=config.name,
        noise_dim=noise_dim,
        latent_dim=latent_dim,
        prior=prior,
    )


def describe_latent_ebm(num_latents: int, chain: LatentEbmConfig) -> tuple[Family, int, int, dict[str, Any]]:
    """Return family, Q, D and the description of the prior, for the manifest."""
    prior = {
        "kind": "energy on N(0, I), short Langevin runs",
        "steps": chain.prior_steps,
        "step_size": chain.prior_step_size,
        "hidden": chain.hidden,
        "u_error_bound": NORMAL_U_ERROR_BOUND,
    }
    return "latent_ebm", num_latents, num_latents * (1 + chain.prior_steps), prior


def stated_chain(chain: LatentEbmConfig, manifest: Manifest) -> LatentEbmConfig:
    """Return the chain with the number of steps that a manifest states.

    Raises:
        VerificationError: It states none.
    """
    return replace(chain, prior_steps=stated_steps(manifest))


def chain_nodes(prior: EnergyPrior, num_steps: int, step_size: float) -> tuple[list[onnx.NodeProto], Constants]:
    """Return the nodes and constants from `uniform` (N, Q (1 + T)) to `latent` (N, Q)."""
    first, hinge, second, _, last = prior.layers
    if not (isinstance(first, nn.Linear) and isinstance(second, nn.Linear) and isinstance(last, nn.Linear)):
        raise AssertionError("the gradient below is that of three linear layers")
    slope = float(hinge.negative_slope)  # type: ignore[arg-type]
    rate = 0.5 * step_size**2
    weights = [layer.weight.detach().double().numpy() for layer in (first, second, last)]
    biases = [layer.bias.detach().float().numpy() for layer in (first, second)]
    nodes, constants = normal_nodes("uniform", DRAWS, "normal_")
    constants |= {
        "weight_1": weights[0].T,  # (Q, H)
        "bias_1": biases[0],
        "weight_2": weights[1].T,  # (H, H)
        "bias_2": biases[1],
        "back_3": weights[2],  # (1, H): the gradient of f by the second hidden layer's outputs
        "back_3_negative": slope * weights[2],
        "back_2": weights[1],  # (H, H)
        "back_1": rate * weights[0],  # (H, Q)
        "slope": np.float32(slope),
        "threshold": np.float32(0),
        "kept": np.float32(1.0 - rate),
        "step_size": np.float32(step_size),
        "sizes": np.array([prior.num_latents, prior.num_latents * num_steps], np.int64),
        "by_step": np.array([-1, num_steps, prior.num_latents], np.int64),
        "num_steps": np.int64(num_steps),
        "is_going": np.bool_(True),
    }
    constants = {
        name: value.astype(np.float32) if value.dtype == np.float64 else value for name, value in constants.items()
    }
    node = helper.make_node
    nodes += [
        node("Split", [DRAWS, "sizes"], ["start", "noises"], axis=1),
        node("Mul", ["noises", "step_size"], ["scaled_noises"]),
        node("Reshape", ["scaled_noises", "by_step"], ["noise_by_step"]),
        node("Loop", ["num_steps", "is_going", "start"], ["latent"], body=_step(slope, prior.num_latents)),
    ]
    return nodes, constants


def _step(slope: float, latent_dim: int) -> onnx.GraphProto:
    """One step, z (N, Q) -> z (N, Q); weights and noises are those of the graph around it."""
    node = helper.make_node
    value, latents = helper.make_tensor_value_info, ("N", latent_dim)
    nodes = [
        node("Gemm", ["z", "weight_1", "bias_1"], ["sum_1"]),
        node("LeakyRelu", ["sum_1"], ["hidden_1"], alpha=slope),
        node("Gemm", ["hidden_1", "weight_2", "bias_2"], ["sum_2"]),
        # Back through both layers. An output is positive exactly where its input is, and slope is 1 there.
        node("Greater", ["sum_2", "threshold"], ["is_up_2"]),
        node("Where", ["is_up_2", "back_3", "back_3_negative"], ["at_sum_2"]),
        node("Gemm", ["at_sum_2", "back_2"], ["at_hidden_1"]),
        node("Greater", ["hidden_1", "threshold"], ["is_up_1"]),
        node("Mul", ["at_hidden_1", "slope"], ["at_sum_1_negative"]),
        node("Where", ["is_up_1", "at_hidden_1", "at_sum_1_negative"], ["at_sum_1"]),
        node("Gather", ["noise_by_step", "step"], ["noise"], axis=1),
        node("Mul", ["z", "kept"], ["shrunk"]),
        node("Add", ["shrunk", "noise"], ["unguided"]),
        node("Gemm", ["at_sum_1", "back_1", "unguided"], ["moved"]),
        node("Identity", ["goes_on"], ["still_goes_on"]),
    ]
    return helper.make_graph(
        nodes,
        "langevin_step",
        [
            value("step", TensorProto.INT64, ()),
            value("goes_on", TensorProto.BOOL, ()),
            value("z", TensorProto.FLOAT, latents),
        ],
        [value("still_goes_on", TensorProto.BOOL, ()), value("moved", TensorProto.FLOAT, latents)],
    )
