"""What a baseline family prescribes, whatever the preset says: presets then work with every family.

All of them have N(0, I) where a KAEM has its prior: as the prior (VAE), as what an energy tilts (latent EBM), or
as the noise (DDPM). Only the number of latents is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kaem.config import merge

STANDARD_NORMAL: dict[str, Any] = {
    "variant": "mixture",
    "num_components": 1,
    "frame": "none",
    "reference": "gaussian",
    "base": "none",
    "low": -8.0,
    "high": 8.0,
}
"""Settings of a prior that is N(0, I) once its energies are 0; beyond +-8 lie 1e-15 of the mass."""

_ENCODER_KINDS = ("amortized", "weighted_bound", "refined")

_NOTES = {
    "vae": "the prior is N(0, I) from the first update to the last; of [prior], only num_latents is used",
    "latent_ebm": "[latent_ebm] replaces [posterior], sigma stays fixed; of [prior], only num_latents is used",
    "ddpm": "[diffusion] takes the place of [prior], [generator] and [posterior]",
}


def prescribe(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plain configuration with what its `family` prescribes laid over it, ready to be checked.

    A hyphen in the family's name counts as an underscore. A baseline's name ends in that of its family, so that
    its run has a folder of its own.
    """
    family = mapping.get("family", "kaem")
    if isinstance(family, str):
        family = family.replace("-", "_")
    result = {**mapping, "family": family} if "family" in mapping else dict(mapping)
    prior, posterior, name = (mapping.get(key) for key in ("prior", "posterior", "name"))
    if not isinstance(family, str) or family not in _NOTES or not isinstance(prior, dict):
        return result  # a KAEM, or a mistake that the checks of the whole will name
    result["prior"] = {**STANDARD_NORMAL, **{key: prior[key] for key in ("num_latents",) if key in prior}}
    inference: dict[str, Any] = {"prior_from": 1.0}
    if not isinstance(posterior, dict) or posterior.get("kind", "amortized") not in _ENCODER_KINDS:
        inference["kind"] = "amortized"
    training: dict[str, Any] = {"prior_gradient": "quadrature", "weight_penalty": 0.0, "generator_noise": 0.0}
    if family == "latent_ebm":
        # Short chains reach no image under the wide sigma that follows from not reaching any: it would stay so.
        training["learn_sigma"] = False
    result = merge(result, {"posterior": inference, "training": training, "refit": {"kind": "none"}})
    suffix = "-" + str(family).replace("_", "-")
    if isinstance(name, str) and not name.endswith(suffix):
        result["name"] = name + suffix
    return result


def prescription_note(family: str, posterior: str) -> str:
    """Return in one line what `family` overrides; empty for a KAEM.

    Args:
        family: Family of the run.
        posterior: `posterior.kind`: with the weighted bound a VAE is an IWAE, which is not what its name says.
    """
    if family not in _NOTES:
        return ""
    is_weighted = family == "vae" and posterior == "weighted_bound"
    bound = "; posterior.kind = weighted_bound makes it an importance-weighted one (IWAE)" if is_weighted else ""
    return f"family {family}: {_NOTES[family]}{bound}"
