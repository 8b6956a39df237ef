"""All families by their name in a configuration."""

from __future__ import annotations

from typing import Any

from kaem.artifact import Manifest
from kaem.errors import ArtifactError
from kaem_export.families.diffusion import ExportedDiffusion
from kaem_export.families.family import ExportedFamily
from kaem_export.families.kaem import ExportedKaem
from kaem_export.families.latent_ebm import ExportedLatentEbm
from kaem_export.families.vae import ExportedVae
from kaem_train.config.families import FamilyName
from kaem_train.config.settings import Config

EXPORTED_FAMILIES: dict[FamilyName, ExportedFamily[Any]] = {
    "kaem": ExportedKaem(),
    "vae": ExportedVae(),
    "latent_ebm": ExportedLatentEbm(),
    "ddpm": ExportedDiffusion(),
}
"""One object a family; a test compares the names with those that a configuration may have."""


def exported_family(config: Config) -> ExportedFamily[Any]:
    """Return what the family of a configuration does for an artifact."""
    return EXPORTED_FAMILIES[config.family]


def family_of_manifest(manifest: Manifest) -> ExportedFamily[Any]:
    """Return what the family of an artifact does: diffusion models are named by their sampler there.

    Raises:
        ArtifactError: This kaem has no such family.
    """
    for family in EXPORTED_FAMILIES.values():
        if manifest.family in family.manifest_names:
            return family
    raise ArtifactError(
        f"{manifest.name} is of the family {manifest.family!r}, which this kaem does not make",
        hint="upgrade with: pip install --upgrade kaem",
    )
