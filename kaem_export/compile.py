"""The whole story: checkpoint -> distributions -> quantile tables -> graph -> certificate -> one file.

The file appears only when everything has been measured and kept its bound; nothing half-written is left behind.
"""

from __future__ import annotations

import platform
from collections.abc import Container
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import kaem
from kaem.artifact import ImageType, Manifest
from kaem.config import to_mapping
from kaem.errors import VerificationError
from kaem.files import replacing
from kaem.runtime import LocalSampler
from kaem_export.certificate import fingerprint_weights, measure
from kaem_export.graph import attach_manifest, build_graph, graph_fingerprint
from kaem_export.head import Frame
from kaem_export.leaves import TOLERANCE
from kaem_export.prior_tables import noise_dim, tabulate
from kaem_export.promise import densities, promise, require_tolerance
from kaem_train.checkpoint import load_kaem
from kaem_train.model.own_frames import OwnFramesPrior
from kaem_train.model.prior import Prior


def export(
    checkpoint: Path,
    output: Path,
    *,
    image_type: ImageType = "float32",
    tolerance: float = TOLERANCE,
    keep_components: bool = False,
    allow_modules: Container[str] = (),
) -> Manifest:
    """Compile a checkpoint to one ONNX file that maps uniform noise to images.

    Args:
        checkpoint: A file written by training.
        output: Where the artifact goes; an existing file is replaced, but only by a finished and verified one.
        image_type: Element type of the images.
        tolerance: Error in u that the quantile tables aim at.
        keep_components: Keep the components of a mixture, or the summands of independent latents, as functions of
            their own, picked or summed in the graph; the law of the images is the same. Experts are always kept.
        allow_modules: As for `load_model`.

    Returns:
        The manifest, with its certificate, as written.

    Raises:
        ArtifactError: The checkpoint is unusable, or a density of its prior cannot be integrated.
        RequestError: The output cannot be written, or the tolerance makes no sense.
        VerificationError: The compiled graph does not keep a bound of the certificate; no file is written.
    """
    require_tolerance(tolerance)
    with replacing(output) as draft:  # first of all: an output that cannot be written should not cost a compilation
        config, model = load_kaem(checkpoint, allow_modules=allow_modules)
        weights = fingerprint_weights(model.state_dict())
        tabulated = tabulate(model.prior, tolerance=tolerance, keep_components=keep_components)
        graph = build_graph(tabulated.tables, model.generator, image_type, _frame(model.prior))
        manifest = Manifest(
            family=config.family,
            name=config.name,
            noise_dim=noise_dim(model.prior, keep_components=keep_components),
            latent_dim=config.prior.num_latents,
            image_shape=_three(model.image_shape),
            image_type=image_type,
            prior={**to_mapping(config.prior), **promise(model.prior, tabulated)},
            densities=densities(model.prior, tabulated),
            config=to_mapping(config),
            checkpoint_fingerprint=weights,
            graph_fingerprint=graph_fingerprint(graph),
            tools=_tool_versions(),
        )
        draft.write_bytes(attach_manifest(graph, manifest))
        with LocalSampler(draft, workers=1) as sampler:
            manifest = replace(manifest, certificate=measure(sampler, config, model))
        require_kept(manifest)
        draft.write_bytes(attach_manifest(graph, manifest))
    return manifest


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


def _tool_versions() -> dict[str, str]:
    return {
        "kaem": kaem.__version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "onnx", "onnxscript", "numpy", "scipy")},
    }
