"""Whether an artifact is what it says: made from this checkpoint, unchanged since, and described truly.

What a figure cannot show is compared here: digests, the description of the model, and the figures on record.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from kaem.artifact import Figure, Manifest
from kaem.config import to_mapping
from kaem.errors import ArtifactError, VerificationError
from kaem_export.families.family import Description
from kaem_export.graph import graph_fingerprint
from kaem_export.priors.manifest_entries import LEAST_TOLERANCE, MOST_TOLERANCE
from kaem_export.priors.own_frames import count_step_leaves
from kaem_export.proof.head import measured_tensors
from kaem_export.proof.quadrature import AGREEMENT_BOUND
from kaem_export.rewrite.optimise import PASS_NAMES, ROWS_PER_CALL, has_branches, precision_of
from kaem_export.tables.fit_tables import SCORE_BOUND
from kaem_train.config.settings import Config

_CLAIM_FACTOR = 4.0
_CLAIM_SLACK = 1e-6
"""A figure measured now may be this factor and this much more above the recorded one: processors round differently."""

CLAIMS = ("tools", "compilation.passes")
"""Fields of a manifest that nothing can be compared with: what made the file, and how."""

_LOOSEST_U_ERROR_BOUND = 2.0 * MOST_TOLERANCE + 1e-3


def check_identity(artifact: Path, manifest: Manifest, weights: str, checkpoint: Path) -> None:
    """Refuse an artifact of other weights, or one whose graph is not the one that its manifest was written for."""
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


def check_description(
    artifact: Path, manifest: Manifest, config: Config, description: Description, *, updates: int
) -> None:
    """Refuse a manifest that describes another model than the checkpoint holds.

    Args:
        artifact: The file.
        manifest: Its manifest.
        config: Configuration of the checkpoint.
        description: What the checkpoint's family says of it.
        updates: Optimiser steps of the checkpoint.
    """
    said: dict[str, Any] = {
        "config": manifest.config,
        "prior": {name: manifest.prior.get(name) for name in description.prior},
        "family": manifest.family,
        "name": manifest.name,
        "image_shape": list(manifest.image_shape),
        "latent_dim": manifest.latent_dim,
        "noise_dim": manifest.noise_dim,
        "updates": manifest.updates,
    }
    true: dict[str, Any] = {
        "config": to_mapping(config),
        "prior": description.prior,
        "family": description.family,
        "name": description.name,
        "image_shape": list(config.data.image_shape),
        "latent_dim": description.latent_dim,
        "noise_dim": description.noise_dim,
        "updates": updates,
    }
    for name, value in true.items():
        if said[name] != value:
            raise VerificationError(
                f"the manifest of {artifact} says {name} is {said[name]}, the checkpoint {value}",
                hint="export it again",
            )
    if description.family == "kaem":
        tolerance, bound = manifest.prior.get("tolerance"), manifest.prior["u_error_bound"]
        # A larger tolerance than the bound leaves room for would only make scores look small.
        if not (isinstance(tolerance, float) and tolerance >= LEAST_TOLERANCE and SCORE_BOUND * tolerance <= bound):
            raise ArtifactError(f"{artifact} states no usable tolerance, but {tolerance!r}", hint="export it again")


def check_recorded(artifact: Path, manifest: Manifest, measured: tuple[Figure, ...]) -> None:
    """Refuse a certificate that claims clearly less error than is there, or more than bounds of kaem let through."""
    before = {figure.name: figure for figure in manifest.certificate}
    names = {figure.name for figure in measured}
    if unknown := sorted({*before} - names):
        raise VerificationError(
            f"the certificate of {artifact} says something of {', '.join(unknown)}, which such a model does not have",
            hint="export it again",
        )
    for figure in measured:
        claim = before.get(figure.name)
        if (
            claim is None
            or not _is_entitled(claim, figure, manifest)
            or figure.value > min(_CLAIM_FACTOR * claim.value + _CLAIM_SLACK, claim.bound)
        ):
            said = "nothing" if claim is None else f"{claim.value:.2e} of at most {claim.bound:.2e}"
            raise VerificationError(
                f"the certificate of {artifact} says of {figure.name}: {said}; "
                f"measured: {figure.value:.2e} of at most {figure.bound:.2e}",
                hint="export it again",
            )


def _is_entitled(claim: Figure, figure: Figure, manifest: Manifest) -> bool:
    """Whether a recorded figure was judged by a bound that follows from what the manifest states."""
    if manifest.has_energies and figure.name == "u_error":
        return bool(claim.bound == manifest.prior["u_error_bound"])
    if manifest.has_energies and figure.name == "cdf_agreement":
        return claim.bound <= max(AGREEMENT_BOUND, SCORE_BOUND * float(manifest.prior["tolerance"]))
    # The scale of latents, by which parity is judged, is a power of two that another machine may see otherwise.
    return claim.bound <= figure.bound * (2.0 if figure.name == "image_parity" else 1.0)


def check_tables(artifact: Path, manifest: Manifest, *, energies: str | None) -> None:
    """Refuse a manifest that describes other tables than the graph has, other energies, or another way of calling it.

    Args:
        artifact: The file.
        manifest: Its manifest.
        energies: What the checkpoint's are; None where its family has none.
    """
    if (said := manifest.prior.get("energies")) not in (None, energies):
        raise VerificationError(
            f"the manifest of {artifact} says energies is {said!r}, the checkpoint {energies!r}",
            hint="export it again",
        )
    if isinstance(manifest.prior.get("table_leaves"), int):
        tensors, held = measured_tensors(manifest), onnx.load(artifact).graph.initializer
        sizes = {what: tuple(t.dims) for what, name in tensors.items() for t in held if t.name == name}
        found, fan_out = sizes["leaves"][0], sizes["separators"][1] + 1
        if manifest.prior.get("frame") == "own":  # whose last column has leaves of its own
            prior = manifest.prior
            found -= count_step_leaves(int(prior["num_components"]), int(prior["table_functions"]), fan_out)
        if found != (said := manifest.prior["table_leaves"]):
            raise VerificationError(
                f"the manifest of {artifact} says table_leaves is {said}, its graph has {found}",
                hint="export it again",
            )
    score = manifest.prior.get("score")
    if manifest.family == "kaem" and not (isinstance(score, float) and 0.0 <= score <= SCORE_BOUND):
        raise VerificationError(
            f"the manifest of {artifact} says prior.score is {score!r}, which is none of at most {SCORE_BOUND}",
            hint="export it again",
        )
    passes = manifest.compilation.get("passes", [])
    if unknown := [name for name in passes if name not in PASS_NAMES]:
        raise VerificationError(
            f"the manifest of {artifact} names passes that kaem does not have: {', '.join(map(str, unknown))}",
            hint="export it again",
        )
    limit = manifest.compilation.get("rows_per_call", 0)
    if limit not in (0, passes and ROWS_PER_CALL.get(passes[-1], 0)):
        raise VerificationError(
            f"the manifest of {artifact} says rows_per_call is {limit}, which its passes do not ask for",
            hint="export it again",
        )
