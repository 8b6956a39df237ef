"""Where the encoder is the exact posterior, bounds are equalities and refinement changes nothing in law."""

import math

import pytest
import torch
from linear_gaussian import (
    PHI,
    SIGMA,
    assert_standard_normal,
    exact_evidence,
    linear_model,
    observe,
    precision,
    standardise,
)
from torch import nn

from kaem_train.config import PosteriorConfig
from kaem_train.posterior.amortized import AmortizedPosterior
from kaem_train.posterior.power import log_likelihood_of
from kaem_train.posterior.refined import RefinedPosterior
from kaem_train.posterior.short_run import run_chains
from kaem_train.posterior.weighted_bound import WeightedBoundPosterior
from kaem_train.training.objective import gaussian_entropy

pytestmark = pytest.mark.usefixtures("float64")


class _LinearEncoder(nn.Module):
    """The exact posterior, times `share` in its mean."""

    def __init__(self, share=1.0):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(share * PHI / SIGMA**2 / precision(1.0)))
        self.log_std = nn.Parameter(torch.tensor(-0.5 * math.log(precision(1.0))))

    def forward(self, images):
        mean = self.slope * images.flatten(1)
        return mean, self.log_std.expand_as(mean)


def _encoded(posterior_type, share=1.0, **settings):
    posterior = posterior_type(PosteriorConfig(prior_from=0.0, **settings), (1, 8, 8), (2,), updates=10)
    posterior.encoder = _LinearEncoder(share)
    return posterior


def _weighted(share, num, start=0.0):
    return _encoded(WeightedBoundPosterior, share, kind="weighted_bound", bound_samples=num, bound_from=start)


def _rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("num", [1, 7])
def test_with_the_exact_posterior_the_weighted_bound_is_the_evidence_without_noise(num):
    images = observe(50)
    terms = _weighted(1.0, num).terms(linear_model(), images, 5, _rng())
    assert float(terms.loss.detach()) == pytest.approx(-float(exact_evidence(images).mean()), abs=1e-6)
    assert float(terms.metrics["ess"]) == pytest.approx(num)


def test_the_weighted_bound_begins_when_it_is_told_to():
    images, model = observe(50), linear_model()
    encoder = _encoded(AmortizedPosterior, 0.7)
    late, whole = _weighted(0.7, 8, start=0.6), _weighted(0.7, 8)
    before = late.terms(model, images, 5, _rng())
    assert float(before.loss.detach()) == float(encoder.terms(model, images, 5, _rng()).loss.detach())
    assert "ess" not in before.metrics
    assert float(late.terms(model, images, 6, _rng()).loss.detach()) == float(
        whole.terms(model, images, 6, _rng()).loss.detach()
    )


def test_the_weighted_bound_tightens_with_its_samples():
    images = observe(2000)
    evidence = float(exact_evidence(images).mean())
    posteriors = [_weighted(0.7, num) for num in (1, 8)]
    bounds = [float(each.terms(linear_model(), images, 5, _rng()).metrics["bound"]) for each in posteriors]
    # The gap at one sample is the divergence of the shifted posterior, (0.3 m)^2 / 2 s^2 per latent.
    mean = PHI * images.flatten(1) / SIGMA**2 / precision(1.0)
    gap = float((0.5 * precision(1.0) * (0.3 * mean).square()).sum(1).mean())
    assert evidence - bounds[0] == pytest.approx(gap, abs=0.1)
    assert bounds[0] < bounds[1] < evidence


def test_adjusted_refinement_keeps_the_exact_posterior():
    settings = {"kind": "refined", "kernel": "mala", "refinement_steps": 3, "refinement_step_size": 0.5}
    refined = _encoded(RefinedPosterior, **settings)
    images = observe(4000)
    seen = []

    def spy(*args, **kwargs):
        seen.append(run_chains(*args, **kwargs))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kaem_train.posterior.refined.run_chains", spy)
        refined.terms(linear_model(), images, 5, _rng())
    assert_standard_normal(standardise(seen[0].last.z, images, 1.0))
    assert not torch.equal(seen[0].last.z, seen[0].first.z)
    assert 0.5 < float(seen[0].acceptance.mean()) < 1.0


def test_the_encoder_of_a_refined_posterior_follows_the_evidence_bound():
    refined, model, images = _encoded(RefinedPosterior, 0.7, kind="refined"), linear_model(), observe(20)
    parameters = list(refined.encoder.parameters())
    found = torch.autograd.grad(refined.terms(model, images, 5, _rng()).loss, parameters)
    mean, log_std = refined.encoder(images)
    z = mean + log_std.exp() * torch.randn(mean.shape, generator=_rng())
    bound = log_likelihood_of(model, images, z) + model.prior.log_density(z) + gaussian_entropy(log_std)
    for left, right in zip(found, torch.autograd.grad(-bound.mean(), parameters), strict=True):
        assert torch.allclose(left, right)


def test_the_generator_learns_from_refined_latents_only():
    refined = _encoded(RefinedPosterior, 0.0, kind="refined", refinement_steps=40, adapt_step=False)
    model, images = linear_model(), observe(4000)
    loss = refined.terms(model, images, 5, _rng()).loss
    (slope,) = torch.autograd.grad(loss, model.generator.phi)
    # At the true phi the likelihood gradient vanishes: draws of a wrong encoder have been led to the posterior.
    # Its largest deviation per image is that of x z / sigma^2, about 10; 40 steps leave 2 % of the start, and
    # eta .15 widens the chains by 8 %.
    x = images.flatten(1)
    unrefined = float((PHI / precision(1.0) / SIGMA**2) * x.shape[1])
    assert abs(float(slope)) < 0.2 * unrefined + 4.5 * 10.0 / math.sqrt(len(images))
