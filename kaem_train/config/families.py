"""What every family settles without torch: its name, what it prescribes, its rates, how it is sampled.

Presets work with every family, for a baseline prescribes what its name asks for, whatever the preset says. All
baselines have N(0, I) where a KAEM has its prior: as the prior (VAE), as what an energy tilts (latent EBM), or as the
noise (DDPM). Only the number of latents is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from kaem.artifact import sampling_words
from kaem.config import merge

if TYPE_CHECKING:
    from kaem_train.config.settings import Config

FamilyName = Literal["kaem", "vae", "latent_ebm", "ddpm"]

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
_TRAINING = {"prior_gradient": "quadrature", "weight_penalty": 0.0, "generator_noise": 0.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyRules:
    """What a family settles of a configuration.

    Attributes:
        note: What it overrides, in one line; empty where it overrides nothing.
        has_energies: Whether the prior is one of univariate energies, and not N(0, I) or what tilts it.
        has_generator: Whether images come of a generator of latents.
        libraries: Libraries that it needs beside those of every family.
        training: Settings of training that it prescribes.
        learning_rates: Returns Adam's step sizes of the networks and of the prior.
        sampling: Returns how weights are sampled, in the words of a manifest.
    """

    note: str = ""
    has_energies: bool = False
    has_generator: bool = True
    libraries: tuple[str, ...] = ()
    training: Mapping[str, Any] = field(default_factory=lambda: _TRAINING)
    learning_rates: Callable[[Config], tuple[float, float]] = lambda config: (
        config.training.learning_rate,
        config.training.prior_learning_rate,
    )
    sampling: Callable[[Config], str] = lambda config: sampling_words(config.family)


FAMILY_RULES: dict[FamilyName, FamilyRules] = {
    "kaem": FamilyRules(has_energies=True),
    "vae": FamilyRules(
        note="the prior is N(0, I) from the first update to the last; of [prior], only num_latents is used"
    ),
    "latent_ebm": FamilyRules(
        note="[latent_ebm] replaces [posterior], sigma stays fixed; of [prior], only num_latents is used",
        # Short chains reach no image under the wide sigma that follows from not reaching any: it would stay so.
        training={**_TRAINING, "learn_sigma": False},
        learning_rates=lambda config: (config.training.learning_rate, config.latent_ebm.learning_rate),
        sampling=lambda config: sampling_words(config.family, config.latent_ebm.prior_steps),
    ),
    "ddpm": FamilyRules(
        note="[diffusion] takes the place of [prior], [generator] and [posterior]",
        has_generator=False,
        libraries=("diffusers",),
        learning_rates=lambda config: (config.diffusion.learning_rate, config.diffusion.learning_rate),
        sampling=lambda config: sampling_words(
            config.diffusion.sampler, config.diffusion.sampling_steps, config.diffusion.used_eta
        ),
    ),
}
"""One object a family; torch's half of it is a file in `kaem_train/families/`, that of artifacts in `kaem_export/`."""


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
    rules = next((rules for known, rules in FAMILY_RULES.items() if known == family), None)
    if rules is None or not rules.note or not isinstance(prior, dict):
        return result  # a KAEM, or a mistake that the checks of the whole will name
    result["prior"] = {**STANDARD_NORMAL, **{key: prior[key] for key in ("num_latents",) if key in prior}}
    inference: dict[str, Any] = {"prior_from": 1.0}
    if not isinstance(posterior, dict) or posterior.get("kind", "amortized") not in _ENCODER_KINDS:
        inference["kind"] = "amortized"
    result = merge(result, {"posterior": inference, "training": dict(rules.training), "refit": {"kind": "none"}})
    suffix = "-" + str(family).replace("_", "-")
    if isinstance(name, str) and not name.endswith(suffix):
        result["name"] = name + suffix
    return result


def prescription_note(family: FamilyName, posterior: str) -> str:
    """Return in one line what `family` overrides; empty for a KAEM.

    Args:
        family: Family of the run.
        posterior: `posterior.kind`: with the weighted bound a VAE is an IWAE, which is not what its name says.
    """
    note = FAMILY_RULES[family].note
    is_weighted = family == "vae" and posterior == "weighted_bound"
    bound = "; posterior.kind = weighted_bound makes it an importance-weighted one (IWAE)" if is_weighted else ""
    return f"family {family}: {note}{bound}" if note else ""
