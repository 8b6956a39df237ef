"""The final refit: a new prior for a finished generator, by maximum likelihood on posterior latents.

Training moves prior and generator together and leaves the prior a little behind. Once the generator rests, the
aggregate posterior is a fixed set of points, and expectation maximisation fits experts in their own frames to it
in seconds. Images that neither prior has seen judge: their latents choose the number of experts, and whether the
refit is used at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kaem_train.checkpoint import FinishedModel
from kaem_train.config import PriorConfig, RefitConfig
from kaem_train.data import Images
from kaem_train.devices import bring_to_cpu, move_to_cpu
from kaem_train.families.kaem import Kaem
from kaem_train.fitting.density import fit_density, mean_log_density
from kaem_train.fitting.mixtures import FullMixture, fit_full_mixture
from kaem_train.model.prior.factorised import Prior
from kaem_train.model.prior.own_frames import OwnFramesPrior
from kaem_train.posterior import Posterior

_HELD_OUT_SHARE = 0.1
_LEAST_IMAGES_PER_EXPERT = 10
_INFERRED_TOGETHER = 64
_WANTED_LATENTS = 10_000
_MOST_DRAWS = 8
_DOMAIN = 8.0
_CORRECTED_TOGETHER = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Refit:
    """What was tried. Scores are mean log p(z) in nats over latents of images kept aside.

    Attributes:
        finished: The model with the new prior; None where the trained one is better, or nothing was tried.
        trained_score: Score of the trained prior.
        scores: Scores of the Gaussian experts, by their number.
        score: Score of the best of them after its univariate functions were fitted.
        num_experts: How many that one has.
        skipped: Why some or all were not tried; empty if they were.
    """

    finished: FinishedModel | None = None
    trained_score: float | None = None
    scores: dict[int, float] = field(default_factory=dict)
    score: float | None = None
    num_experts: int | None = None
    skipped: str = ""


def refit_prior(
    model: Kaem,
    posterior: Posterior,
    images: Images | Tensor,
    settings: RefitConfig,
    rng: torch.Generator,
    judges: Images | Tensor | None = None,
) -> Refit:
    """Fit experts in their own frames to the latents of images, and compare them with the trained prior.

    Args:
        model: Trained; it stays as it is.
        posterior: Posterior that infers the latents.
        images: Training images, shape (N, C, H, W).
        settings: What to try.
        rng: Chooses images, draws latents and starts the fits.
        judges: Images that the model was not trained on, shape (M, C, H, W). Without any, a tenth of the chosen
            training images is not fitted to and judges: images that the trained prior has seen.

    Returns:
        The better model, if there is one, and what was measured.
    """
    prior = model.prior
    if len(prior.latent_shape) > 1:
        return Refit(skipped=f"latents of the {prior.variant} prior are summed")
    if not posterior.infers:
        return Refit(skipped="this posterior draws its latents from the prior itself")
    chosen = torch.randperm(len(images), generator=rng)[: settings.num_images]
    num_held_out = 0 if judges is not None else max(1, round(_HELD_OUT_SHARE * len(chosen)))
    num_fitted = len(chosen) - num_held_out
    tried = [num for num in settings.num_experts if num * _LEAST_IMAGES_PER_EXPERT <= num_fitted]
    left_out = ", ".join(str(num) for num in settings.num_experts if num not in tried)
    skipped = f"{num_fitted} images are too few for {left_out} experts" if left_out else ""
    if not tried:
        return Refit(skipped=skipped)
    # The aggregate posterior has the width of every image's own: few images show it only in several draws of each.
    draws = _count_draws(num_fitted)
    if judges is not None:
        held_out = _infer_often(model, posterior, judges, torch.arange(len(judges)), _count_draws(len(judges)), rng)
    else:
        held_out = _infer_often(model, posterior, images, chosen[:num_held_out], draws, rng)
    fitted = _infer_often(model, posterior, images, chosen[num_held_out:], draws, rng)
    seed = int(torch.randint(2**31, (), generator=rng))
    mixtures = {num: fit_full_mixture(fitted, num, seed=seed, draws=draws) for num in tried}
    scores = {num: float(mixture.log_density(held_out).mean()) for num, mixture in mixtures.items()}
    best = max(scores, key=scores.__getitem__)
    config, candidate = _build_experts(mixtures[best], fitted)
    if settings.correction_steps:
        fit = fit_density(
            candidate,
            fitted,
            held_out,
            steps=settings.correction_steps,
            rng=rng,
            batch_size=_CORRECTED_TOGETHER,
            parameters=[*candidate.bank.parameters(), candidate.logits],
        )
        score = fit.after
    else:
        score = mean_log_density(candidate, held_out)
    with move_to_cpu(prior) as trained:
        trained_score = mean_log_density(trained, held_out)
    is_better = score > trained_score
    candidate.widen(torch.cat([fitted, held_out]))
    return Refit(
        finished=FinishedModel(prior=config, model_state=state_with_prior(model, candidate)) if is_better else None,
        trained_score=trained_score,
        scores=scores,
        score=score,
        num_experts=best,
        skipped=skipped,
    )


def _count_draws(num_images: int) -> int:
    return min(_MOST_DRAWS, math.ceil(_WANTED_LATENTS / num_images))


def _infer_often(
    model: Kaem, posterior: Posterior, images: Images | Tensor, chosen: Tensor, draws: int, rng: torch.Generator
) -> Tensor:
    return torch.cat([infer_latents(model, posterior, images, chosen, rng) for _ in range(draws)])


def infer_latents(
    model: Kaem, posterior: Posterior, images: Images | Tensor, chosen: Tensor, rng: torch.Generator
) -> Tensor:
    """Return one latent of every chosen image, on the CPU: shape (S, Q).

    Args:
        model: Trained.
        posterior: One that `infers`.
        images: Shape (N, C, H, W).
        chosen: Their numbers, shape (S,).
        rng: Source of the draws.
    """
    parts = torch.split(chosen, _INFERRED_TOGETHER)
    return torch.cat([posterior.latents(model, images[part], rng).detach().cpu() for part in parts])


def _build_experts(mixture: FullMixture, latents: Tensor) -> tuple[PriorConfig, OwnFramesPrior]:
    """Return the prior that is this mixture: its univariate functions are 0."""
    config = PriorConfig(
        variant="experts",
        frame="own",
        num_latents=latents.shape[1],
        num_components=len(mixture.weights),
        low=-_DOMAIN,
        high=_DOMAIN,
    )
    with torch.random.fork_rng(devices=[]):  # what a prior draws at its birth is overwritten here
        prior = OwnFramesPrior(config).to(latents)
    with torch.no_grad():
        prior.bank.coefficients.zero_()
    prior.start(mixture.weights, mixture.means, mixture.covariances)
    return config, prior


def state_with_prior(model: Kaem, prior: Prior) -> dict[str, Tensor]:
    """Return a copy of the model's state, on the CPU, with another prior's in the place of its own."""
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("prior.")}
    state |= {f"prior.{name}": value for name, value in prior.state_dict().items()}
    return {name: value.clone() for name, value in bring_to_cpu(state).items()}
