"""The whole story: checkpoint -> distributions -> quantile tables -> graph -> certificate -> one file.

The file appears only when everything has been measured and kept its bound; nothing half-written is left behind.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Container
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import kaem
from kaem.artifact import ImageType, Manifest
from kaem.config import to_mapping
from kaem.errors import VerificationError
from kaem.files import replacing
from kaem.runtime import LocalSampler
from kaem_export.certificate import fingerprint_weights, measure
from kaem_export.collapse import (
    LatentDistributions,
    collapse,
    component_distributions,
    expert_distributions,
    expert_marginals,
)
from kaem_export.experts import ExpertTables, expert_tables, expert_weights, frame_rounding
from kaem_export.graph import attach_manifest, build_graph, graph_fingerprint
from kaem_export.head import Frame
from kaem_export.optimise import Optimised, optimise
from kaem_export.options import Options
from kaem_export.quantile import TABLE_CELLS, U_ERROR_BOUND, QuantileTables, quantile_tables
from kaem_export.shared import SharedTables, shared_tables
from kaem_export.warp import WarpTables
from kaem_train.checkpoint import load_kaem
from kaem_train.model.experts import ExpertsPrior
from kaem_train.model.own_frames import OwnFramesPrior
from kaem_train.model.prior import IndependentPrior, Prior

_PLOT_BINS = 64


def export(
    checkpoint: Path,
    output: Path,
    *,
    image_type: ImageType = "float32",
    options: Options | None = None,
    watch: Callable[[Optimised], None] | None = None,
    allow_modules: Container[str] = (),
) -> Manifest:
    """Compile a checkpoint to one ONNX file that maps uniform noise to images.

    Args:
        checkpoint: A file written by training.
        output: Where the artifact goes; an existing file is replaced, but only by a finished and verified one.
        image_type: Element type of the images.
        options: How the graph is made fast; by default with the exact rewrites alone.
        watch: Called with the graph after every rewrite, before anything is written.
        allow_modules: As for `load_model`.

    Returns:
        The manifest, with its certificate, as written.

    Raises:
        ArtifactError: The checkpoint is unusable.
        RequestError: The output cannot be written.
        VerificationError: The compiled graph does not keep a bound of the certificate; no file is written.
    """
    with replacing(output) as draft:  # first of all: an output that cannot be written should not cost a compilation
        config, model = load_kaem(checkpoint, allow_modules=allow_modules)
        weights = fingerprint_weights(model.state_dict())
        tables, marginals, promise = _tables(model.prior)
        options = options or Options()
        optimised = optimise(build_graph(tables, model.generator, image_type, _frame(model.prior)), options)
        graph = optimised.model
        if watch is not None:
            watch(optimised)
        manifest = Manifest(
            family=config.family,
            name=config.name,
            noise_dim=config.prior.num_uniforms,
            latent_dim=config.prior.num_latents,
            image_shape=_three(model.image_shape),
            image_type=image_type,
            prior={**to_mapping(config.prior), "collapsed": config.prior.is_collapsed, **promise},
            densities=_densities(marginals),
            config=to_mapping(config),
            checkpoint_fingerprint=weights,
            graph_fingerprint=graph_fingerprint(graph),
            tools=_tool_versions(),
            compilation={
                "passes": optimised.passes,
                "precision": options.precision,
                "batch_sizes": list(options.batch),
                "large_batch_rows": optimised.large_batch_rows,
            },
        )
        draft.write_bytes(attach_manifest(graph, manifest))
        with LocalSampler(draft, workers=1) as sampler:
            manifest = replace(manifest, certificate=measure(sampler, config, model))
        require_kept(manifest)
        draft.write_bytes(attach_manifest(graph, manifest))
    return manifest


def _tables(prior: Prior) -> tuple[QuantileTables | ExpertTables | SharedTables, LatentDistributions, dict[str, Any]]:
    """Return the tables of a prior, the marginals of its Q univariate latents, and what is promised of them."""
    if isinstance(prior, ExpertsPrior | OwnFramesPrior):
        weights = expert_weights(prior)
        distributions = expert_distributions(prior)
        tables = expert_tables(distributions, weights)
        rounding = frame_rounding(prior) if isinstance(prior, OwnFramesPrior) else 0.0
        return tables, expert_marginals(distributions, weights), _promise(tables.warps, rounding)
    distributions = collapse(prior)
    if isinstance(prior, IndependentPrior) and prior.shares_uniforms:
        shared = shared_tables(component_distributions(prior), prior.num_components)
        return shared, distributions, _promise(shared.warps)
    promise = {"table_cells": TABLE_CELLS, "u_error_bound": U_ERROR_BOUND}
    return quantile_tables(distributions), distributions, promise


def _promise(warps: WarpTables, rounding: float = 0.0) -> dict[str, Any]:
    return {"table_cells": warps.coefficients.shape[1], "u_error_bound": warps.u_error_bound + rounding}


def _frame(prior: Prior) -> Frame | None:
    frame = prior.frames if isinstance(prior, OwnFramesPrior) else prior.frame
    if frame is None:
        return None
    state = {name: value.detach().float().numpy() for name, value in frame.state_dict().items()}
    return Frame(offset=state["offset"], matrix=state["matrix"])


def require_kept(manifest: Manifest) -> None:
    """Raise unless every figure of the certificate is within its bound.

    Raises:
        VerificationError: Names each broken figure with its value and bound.
    """
    broken = [figure for figure in manifest.certificate if not figure.is_kept]
    if broken:
        figures = "; ".join(f"{figure.name} is {figure.value:.3g}, bound {figure.bound:.3g}" for figure in broken)
        raise VerificationError(f"the compiled graph does not keep its certificate: {figures}")


def _three(shape: tuple[int, ...]) -> tuple[int, int, int]:
    channels, height, width = shape
    return channels, height, width


def _densities(distributions: LatentDistributions) -> dict[str, Any]:
    """The densities before the frame, coarsely, for plotting: per coordinate its support and mean densities."""
    edges, density = distributions.density(_PLOT_BINS)
    return {
        "low": edges[:, 0].tolist(),
        "high": edges[:, -1].tolist(),
        "density": [[float(f"{value:.4g}") for value in row] for row in np.maximum(density, 0)],
    }


def _tool_versions() -> dict[str, str]:
    return {
        "kaem": kaem.__version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "onnx", "onnxscript", "numpy", "scipy")},
    }
