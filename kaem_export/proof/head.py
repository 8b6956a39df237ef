"""What the manifest of an artifact says of its head: its kind, and the tensors of the graph that are measured."""

from __future__ import annotations

from collections.abc import Mapping

from kaem.artifact import Manifest
from kaem.errors import VerificationError
from kaem_train.config import PriorConfig

_KEEPING = ("summands", "components")


def require_head(manifest: Manifest, kind: str, *, has_quantiles: bool = True) -> None:
    """Refuse an artifact whose manifest describes another head than its checkpoint gives.

    Args:
        manifest: Manifest of the artifact.
        kind: Kind of the head.
        has_quantiles: Whether its tables hold the latents' own laws.

    Raises:
        VerificationError: The manifest says something else, or nothing.
    """
    said, tensors = manifest.head.get("kind"), measured_tensors(manifest)
    if said != kind:
        raise VerificationError(
            f"the manifest of {manifest.name} says the kind of its head is {said!r}, the checkpoint {kind!r}",
            hint="export it again",
        )
    if ("quantiles" in tensors) != has_quantiles:
        raise VerificationError(
            f"the manifest of {manifest.name} says quantiles are {tensors.get('quantiles')!r}, "
            f"which does not fit the tables of such a checkpoint",
            hint="export it again",
        )


def measured_tensors(manifest: Manifest) -> Mapping[str, str]:
    """Return the names of tensors of a graph by what they hold, as its manifest says.

    Raises:
        VerificationError: It says nothing of the kind.
    """
    if not manifest.head:
        raise VerificationError(
            f"the artifact of {manifest.name} was made by an older kaem, which did not say how its latents are made",
            hint="it can be sampled and served as before; to verify it, export the checkpoint again",
        )
    tensors = manifest.head.get("tensors")
    if not (isinstance(tensors, dict) and all(isinstance(name, str) for name in tensors.values())):
        raise VerificationError(f"the manifest of {manifest.name} names no tensors of its head", hint="export it again")
    return tensors


def keeps_components(manifest: Manifest, prior: PriorConfig) -> bool:
    """Whether the artifact was exported with --keep-components."""
    return prior.is_collapsed and manifest.head.get("kind") in _KEEPING
