"""Proof of an artifact: what it promises, measured on the very graph that will be run.

Every figure is recomputed from the artifact and the checkpoint alone, so anyone can repeat it with
`kaem verify`; the exporter measures the same figures before it lets a file appear.
"""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Any

from kaem.artifact import Figure, Manifest
from kaem.engines.cpu import LocalSampler, read_file
from kaem.errors import ArtifactError, VerificationError
from kaem_export.families.exported_families import exported_family
from kaem_export.families.family import Subject
from kaem_export.one_thread import one_thread
from kaem_export.proof.device import device_figures, open_on_device
from kaem_export.proof.manifest_check import check_description, check_identity, check_recorded, check_tables
from kaem_export.tables.leaves import TOLERANCE
from kaem_train.checkpoint import fingerprint_weights, load_model, read_checkpoint


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
        family, updates = exported_family(config), read_checkpoint(checkpoint).step
        check_description(artifact, here.manifest, config, family.describe(config, here.manifest), updates=updates)
        generator = family.generator(model.float().eval())
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
    family, updates = exported_family(config), read_checkpoint(checkpoint).step
    try:
        with LocalSampler(artifact, workers=1) as sampler:
            manifest = sampler.manifest
            check_identity(artifact, manifest, fingerprint_weights(model.state_dict()), checkpoint)
            check_description(artifact, manifest, config, family.describe(config, manifest), updates=updates)
            check_tables(artifact, manifest, energies=family.energies(model))
            judged = judged_tolerance(manifest, tolerance)
            figures = measure(Subject(sampler=sampler, artifact=artifact, config=config, model=model, tolerance=judged))
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
def measure(subject: Subject[Any]) -> tuple[Figure, ...]:
    """Measure the figures of a loaded artifact."""
    subject.model.float().eval()
    return exported_family(subject.config).measure(subject)
