"""The whole story: checkpoint -> distributions -> quantile tables -> graph -> certificate -> one file.

Every family has its own way from checkpoint to graph and to the figures that prove it (`families/`); the rest is here.

The file appears only when everything has been measured and kept its bound; nothing half-written is left behind.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Container
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import kaem
from kaem.artifact import ImageType, Manifest
from kaem.config import to_mapping
from kaem.engines.cpu import LocalSampler
from kaem.errors import RequestError, VerificationError
from kaem.files import replacing, require_place
from kaem_export.certificate import measure
from kaem_export.families.exported_families import exported_family
from kaem_export.families.family import AS_TRAINED, Compiled, Request, Sampling, Subject
from kaem_export.graph import attach_manifest, graph_fingerprint
from kaem_export.one_thread import one_thread
from kaem_export.options import Options, Precision
from kaem_export.priors.manifest_entries import require_tolerance
from kaem_export.rewrite.optimise import Optimised, Step, optimise, precision_of
from kaem_export.tables.leaves import TOLERANCE
from kaem_train.checkpoint import fingerprint_weights, load_model, read_checkpoint

_PRECISION_HINTS: dict[Precision, str] = {
    "float32": "the generator loses too much in float32: scale its inputs down, or train with smaller latents",
    "float16": "float16 is too coarse for this model: use --precision float32",
    "int8": "int8 is too coarse for this model: use --precision float32",
}
_NO_NUMBER = "for some latents of the prior the generator gives no number: look for roots, logarithms and quotients"
_ROWS_HINTS: dict[Precision, str] = {
    "float32": "an operator of this generator rounds a row otherwise in another batch: --batch 1 calls it row by row",
    "float16": "in float16 this model rounds a row otherwise in another batch: use --precision float32",
    "int8": "in int8 this model rounds a row otherwise in another batch: use --precision float32",
}
"""Where nothing but the sameness of rows is broken."""

_SHARP = "a density is too sharp for float32 tables: export with a larger --tolerance, or smooth its energies"
_STEEP = "a density is too steep where its domain ends: narrow prior.low and prior.high, or smooth its energies"
_TABLE_HINTS = {
    **dict.fromkeys(("u_error", "score", "score_999", "cdf_agreement"), _SHARP),
    **dict.fromkeys(("tail_error", "far_tail_error"), _STEEP),
}
"""By the first figure that is broken."""


def export(
    checkpoint: Path,
    output: Path,
    *,
    image_type: ImageType = "float32",
    tolerance: float = TOLERANCE,
    keep_components: bool = False,
    options: Options | None = None,
    watch: Callable[[Optimised], None] | None = None,
    allow_modules: Container[str] = (),
    sampling: Sampling = AS_TRAINED,
) -> Manifest:
    """Compile a checkpoint to one ONNX file that maps uniform noise to images.

    Args:
        checkpoint: A file written by training.
        output: Where the artifact goes; an existing file is replaced, but only by a finished and verified one.
        image_type: Element type of the images.
        tolerance: Error in u that the quantile tables aim at.
        keep_components: Keep the components of a mixture, or the summands of independent latents, as functions of
            their own, picked or summed in the graph; the law of the images is the same. Experts are always kept.
        options: How the graph is made fast; by default with the exact rewrites alone.
        watch: Called with the graph after every rewrite, before anything is written.
        allow_modules: As for `load_model`.
        sampling: Sampler and steps of a family that has them, where they are not to be the checkpoint's.

    Returns:
        The manifest, with its certificate, as written.

    Raises:
        ArtifactError: The checkpoint is unusable, or a density of its prior cannot be integrated.
        RequestError: The output cannot be written or is the checkpoint, the tolerance makes no sense, or the family
            has no such option.
        ConfigError: The model cannot take so many steps.
        VerificationError: The compiled graph does not keep a bound of the certificate; no file is written.
    """
    require_tolerance(tolerance)
    require_place(output, source=checkpoint)
    # The draft first of all: an output that cannot be written should not cost a compilation.
    with replacing(output) as draft, one_thread():
        config, model = load_model(checkpoint, allow_modules=allow_modules)
        family, options = exported_family(config), options or Options()
        weights = fingerprint_weights(model.state_dict())
        compiled = family.compile(
            config,
            model,
            Request(image_type=image_type, sampling=sampling, tolerance=tolerance, keep_components=keep_components),
        )
        said = compiled.description
        optimised = _optimise(compiled, options, has_loop=family.has_loop)
        graph = optimised.model
        if watch is not None:
            watch(optimised)
        manifest = Manifest(
            family=said.family,
            name=said.name,
            noise_dim=said.noise_dim,
            latent_dim=said.latent_dim,
            image_shape=_three(model.image_shape),
            image_type=image_type,
            prior=said.prior,
            head=compiled.head,
            densities=compiled.densities,
            config=to_mapping(config),
            checkpoint_fingerprint=weights,
            graph_fingerprint=graph_fingerprint(graph),
            tools=_tool_versions(),
            compilation={
                "passes": optimised.passes,
                "precision": precision_of(graph),  # a finished decoder may have one of its own
                "batch_sizes": list(options.batch),
                "large_batch_rows": optimised.large_batch_rows,
                "rows_per_call": optimised.rows_per_call,
            },
            updates=read_checkpoint(checkpoint).step,
        )
        draft.write_bytes(attach_manifest(graph, manifest))
        with LocalSampler(draft, workers=1) as sampler:
            subject = Subject(sampler=sampler, artifact=draft, config=config, model=model, tolerance=tolerance)
            manifest = replace(manifest, certificate=measure(subject))
        require_kept(manifest)
        draft.write_bytes(attach_manifest(graph, manifest))
    return manifest


def _optimise(compiled: Compiled, options: Options, *, has_loop: bool) -> Optimised:
    """Rewrite a graph; one with a loop stays as it was made, for the loop's body is written to be fast already."""
    if not has_loop:
        return optimise(compiled.graph, options)
    if options != Options():
        raise RequestError(
            f"a model of the family {compiled.description.family} samples in a loop, which has one form only",
            hint="leave --optimize, --precision and --batch out",
        )
    return Optimised(steps=(Step("as exported", compiled.graph),))


def require_kept(manifest: Manifest) -> None:
    """Raise unless every figure of the certificate is within its bound.

    Raises:
        VerificationError: Names each broken figure with its value and bound.
    """
    broken = [figure for figure in manifest.certificate if not figure.is_kept]
    if broken:
        figures = "; ".join("{} is {}, bound {}".format(figure.name, *figure.words) for figure in broken)
        has_no_number = any(figure.name == "image_parity" and math.isnan(figure.value) for figure in broken)
        raise VerificationError(
            f"the compiled graph does not keep its certificate: {figures}",
            hint=_NO_NUMBER if has_no_number else _remedy([figure.name for figure in broken], manifest),
        )


def _remedy(broken: list[str], manifest: Manifest) -> str:
    """Return what to do about figures that are not kept, the first of them foremost."""
    precision: Precision = manifest.compilation.get("precision", "float32")
    if {*broken} <= {"row_difference", "thread_difference"}:
        return _ROWS_HINTS[precision]
    if "image_parity" in broken:
        return _PRECISION_HINTS[precision]
    return _TABLE_HINTS.get(broken[0], "") if manifest.has_energies else ""


def _three(shape: tuple[int, ...]) -> tuple[int, int, int]:
    channels, height, width = shape
    return channels, height, width


def _tool_versions() -> dict[str, str]:
    return {
        "kaem": kaem.__version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "onnx", "onnxscript", "numpy", "scipy")},
    }
