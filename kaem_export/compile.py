"""The whole story: checkpoint -> distributions -> quantile tables -> graph -> certificate -> one file.

The file appears only when everything has been measured and kept its bound; nothing half-written is left behind.
"""

from __future__ import annotations

import platform
import tempfile
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import kaem
from kaem.artifact import ImageType, Manifest
from kaem.config import to_mapping
from kaem.errors import ArtifactError, VerificationError
from kaem.runtime import LocalSampler
from kaem_export.certificate import fingerprint_weights, measure
from kaem_export.collapse import LatentDistributions, collapse
from kaem_export.graph import attach_manifest, build_graph, graph_fingerprint
from kaem_export.quantile import quantile_tables
from kaem_train.checkpoint import load_model
from kaem_train.settings import Config

_PLOT_BINS = 64


def export(checkpoint: Path, output: Path, *, image_type: ImageType = "float32") -> Manifest:
    """Compile a checkpoint to one ONNX file that maps uniform noise to images.

    Args:
        checkpoint: A file written by training.
        output: Where the artifact goes; an existing file is replaced, but only by a finished and verified one.
        image_type: Element type of the images.

    Returns:
        The manifest, with its certificate, as written.

    Raises:
        ArtifactError: The checkpoint is unusable, or the output cannot be written.
        VerificationError: The compiled graph does not keep a bound of the certificate; no file is written.
    """
    if not output.parent.is_dir():
        raise ArtifactError(f"no folder {output.parent} to write {output.name} into", hint="create it first")
    if output.is_dir():
        raise ArtifactError(f"{output} is a folder", hint="give a file name, as in -o model.onnx")
    config, model = load_model(checkpoint)
    weights = fingerprint_weights(model.state_dict())
    distributions = collapse(model.prior)
    graph = build_graph(quantile_tables(distributions), model.generator, image_type)
    manifest = Manifest(
        family="kaem",
        name=config.name,
        noise_dim=config.prior.num_latents,
        latent_dim=config.prior.num_latents,
        image_shape=tuple(model.image_shape),
        image_type=image_type,
        prior=_describe_prior(config),
        densities=_densities(distributions),
        config=to_mapping(config),
        checkpoint_fingerprint=weights,
        graph_fingerprint=graph_fingerprint(graph),
        tools=_tool_versions(),
    )
    try:
        # Beside the output, so that the final rename stays on one file system.
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
            draft = Path(folder) / output.name
            draft.write_bytes(attach_manifest(graph, manifest))
            with LocalSampler(draft, workers=1) as sampler:
                manifest = replace(manifest, certificate=measure(sampler, config, model))
            require_kept(manifest)
            draft.write_bytes(attach_manifest(graph, manifest))
            draft.replace(output)
    except OSError as error:
        raise ArtifactError(f"cannot write {output}: {error.strerror}") from None
    return manifest


def require_kept(manifest: Manifest) -> None:
    """Raise unless every figure of the certificate is within its bound.

    Raises:
        VerificationError: Names each broken figure with its value and bound.
    """
    broken = [figure for figure in manifest.certificate if not figure.is_kept]
    if broken:
        figures = "; ".join(f"{figure.name} is {figure.value:.3g}, bound {figure.bound:.3g}" for figure in broken)
        raise VerificationError(f"the compiled graph does not keep its certificate: {figures}")


def _describe_prior(config: Config) -> dict[str, Any]:
    return {**to_mapping(config.prior), "collapsed": True}


def _densities(distributions: LatentDistributions) -> dict[str, Any]:
    """The latent densities coarsely, for plotting: per coordinate the ends of its support and mean densities."""
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
