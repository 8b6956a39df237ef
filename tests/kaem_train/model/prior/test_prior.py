"""The prior is a normalised density, and its samples follow it; references are scipy and closed forms."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

from kaem_train.config import PriorConfig
from kaem_train.model.prior.factorised import build_prior

pytestmark = pytest.mark.usefixtures("float64")

DOMAINS = {
    "gaussian": {"low": -6.0, "high": 6.0, "grid_low": -4.0, "grid_high": 4.0},
    "uniform": {"low": 0.0, "high": 1.0, "grid_low": 0.0, "grid_high": 1.0},
    "none": {"low": -1.2, "high": 1.2, "grid_low": -1.2, "grid_high": 1.2},
    "lognormal": {"low": 1e-3, "high": 8.0, "grid_low": 1e-3, "grid_high": 8.0},
    "learnable_gaussian": {"low": -6.0, "high": 6.0, "grid_low": -4.0, "grid_high": 4.0},
}


class TruncatedLognormal:
    """exp(N(0, 1)) on [0.001, 8], from scipy's untruncated one."""

    whole = scipy.stats.lognorm(1.0)
    below, above = whole.cdf(1e-3), whole.cdf(8.0)

    def cdf(self, z):
        return np.clip((self.whole.cdf(z) - self.below) / (self.above - self.below), 0.0, 1.0)

    def logpdf(self, z):
        return self.whole.logpdf(z) - np.log(self.above - self.below)


def _prior(variant="mixture", reference="gaussian", *, q=3, p=4, base="none", amplitude=1.0, has_tails=False):
    torch.manual_seed(0)
    prior = build_prior(
        PriorConfig(
            variant=variant,
            num_latents=q,
            num_components=p,
            reference=reference,
            base=base,
            **DOMAINS[reference],
        ),
        has_tails=has_tails,
    )
    with torch.no_grad():
        prior.bank.coefficients.copy_(amplitude * torch.randn_like(prior.bank.coefficients))
        if base != "none":
            prior.bank.base_weight.copy_(torch.randn_like(prior.bank.base_weight))
        if variant == "mixture":
            prior.logits.copy_(torch.randn_like(prior.logits))
        if reference == "learnable_gaussian" and amplitude:
            prior.reference.start(torch.randn(q, p), 0.3 + torch.rand(q, p))
    return prior


def _rng(seed=0):
    return torch.Generator().manual_seed(seed)


def _coordinate_densities(prior, z):
    """Density of every mixture coordinate at z, shape (M,) -> (Q, M), by a formula of its own."""
    log_joint = prior.unnormalised_log_density(z[None, None]).detach().numpy()
    fine = torch.linspace(prior.low, prior.high, 24_001)
    totals = scipy.integrate.simpson(
        np.exp(prior.unnormalised_log_density(fine[None, None]).detach().numpy()), x=fine.numpy()
    )
    alpha = np.exp(prior.logits.detach().numpy())
    alpha /= alpha.sum(1, keepdims=True)
    return (alpha[..., None] * np.exp(log_joint) / totals[..., None]).sum(1)


@pytest.mark.parametrize(
    ("reference", "base"),
    [(reference, "none") for reference in DOMAINS]
    + [(reference, base) for reference in ("gaussian", "uniform", "none") for base in ("silu", "relu")],
)
def test_every_component_integrates_to_one(reference, base):
    prior = _prior("independent", reference, base=base, amplitude=2.0)
    log_normalizer = prior.log_normalizer().detach()
    for q, p in np.ndindex(3, 4):

        def density(z, q=q, p=p):
            value = prior.unnormalised_log_density(torch.tensor(z).reshape(1, 1, 1))[q, p, 0]
            return math.exp(float(value.detach() - log_normalizer[q, p]))

        breaks = np.unique([*prior.bank.centers.tolist(), 0.0])
        breaks = breaks[(breaks > prior.low) & (breaks < prior.high)]
        total, _ = scipy.integrate.quad(density, prior.low, prior.high, points=breaks, limit=200)
        assert total == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("reference", DOMAINS)
def test_a_mixture_coordinate_integrates_to_one_and_weighs_its_components_by_alpha(reference):
    prior = _prior("mixture", reference, q=1, amplitude=2.0)
    z = torch.linspace(prior.low, prior.high, 4001)
    density = prior.log_density(z[:, None]).exp().detach().numpy()
    assert scipy.integrate.simpson(density, x=z.numpy()) == pytest.approx(1.0, abs=1e-6)
    assert np.allclose(density, _coordinate_densities(prior, z)[0], rtol=1e-8)


def test_a_constant_added_to_one_energy_changes_nothing():
    # An un-normalised mixture would turn weights 1/2, 1/2 into .12, .88.
    prior = _prior("mixture", "none", q=2, p=2, base="none")
    z = 2.0 * torch.rand(50, 2) - 1.0
    before = prior.log_density(z)
    original = prior.unnormalised_log_density
    offset = torch.tensor([[0.0, 2.0], [0.0, 0.0]])
    broadcast = prior.bank.broadcast
    prior.unnormalised_log_density = lambda nodes: original(nodes) + offset.unsqueeze(-1)
    prior.bank.broadcast = lambda latents: broadcast(latents) + offset
    assert torch.allclose(prior.log_density(z), before, atol=1e-12)


@pytest.mark.parametrize(
    ("reference", "distribution"),
    [
        ("gaussian", scipy.stats.truncnorm(-6, 6)),
        ("uniform", scipy.stats.uniform(0, 1)),
        ("lognormal", TruncatedLognormal()),
        ("learnable_gaussian", scipy.stats.truncnorm(-6, 6)),
    ],
)
@pytest.mark.parametrize("variant", ["mixture", "independent"])
def test_without_energy_the_prior_is_its_reference(variant, reference, distribution):
    prior = _prior(variant, reference, q=2, p=3, amplitude=0.0)
    z = prior.sample(20_000, _rng()).flatten(1)
    assert all(scipy.stats.kstest(column, distribution.cdf).pvalue > 1e-3 for column in z.T.numpy())
    points = prior.sample(10, _rng())
    expected = distribution.logpdf(points.flatten(1).numpy()).sum(1)
    assert np.allclose(prior.log_density(points).detach().numpy(), expected, atol=1e-10)


def test_nothing_lies_outside_the_domain():
    prior = _prior("mixture", "uniform")
    inside = torch.full((1, 3), 0.5)
    outside = torch.tensor([[0.5, 0.5, 1.01], [-0.01, 0.5, 0.5]])
    assert torch.isfinite(prior.log_density(inside)).all()
    assert torch.equal(prior.log_density(outside), torch.full((2,), -math.inf))
    z = prior.sample(10_000, _rng())
    assert float(z.min()) >= 0.0
    assert float(z.max()) <= 1.0


def test_mixture_samples_follow_the_mixture_density():
    prior = _prior("mixture", "gaussian", q=3, p=4, amplitude=2.0)
    z = prior.sample(100_000, _rng()).numpy()
    fine = torch.linspace(-6.0, 6.0, 24_001)
    for q, density in enumerate(_coordinate_densities(prior, fine)):
        cdf = scipy.integrate.cumulative_simpson(density, x=fine.numpy(), initial=0.0)
        assert scipy.stats.kstest(z[:, q], lambda x, cdf=cdf: np.interp(x, fine.numpy(), cdf)).pvalue > 1e-3


def test_components_are_drawn_as_often_as_alpha_says():
    prior = _prior("mixture", "none", q=2, p=3, amplitude=0.0)
    # Well separated components: the sign of z and its size tell which one was drawn.
    nodes = torch.linspace(-1.2, 1.2, 400)
    places = torch.tensor([-0.8, 0.0, 0.8]).reshape(1, 3, 1)
    targets = (-0.5 * ((nodes - places) / 0.12) ** 2).clamp_min(-25.0).expand(2, 3, 400)
    prior.bank.fit(targets, torch.full_like(targets, 1 / 400), nodes, ridge=1e-8)
    z = prior.sample(50_000, _rng())
    for q in range(2):
        drawn = torch.bucketize(z[:, q].contiguous(), torch.tensor([-0.4, 0.4]))
        counts = torch.bincount(drawn, minlength=3).numpy()
        expected = prior.log_weights()[q].exp().detach().numpy() * 50_000
        assert scipy.stats.chisquare(counts, expected).pvalue > 1e-3


def test_samples_of_every_function_have_its_mean_and_variance():
    prior = _prior("independent", "none", q=5, p=3, amplitude=3.0)
    z = prior.sample(40_000, _rng()).numpy()
    fine = torch.linspace(-1.2, 1.2, 8001)
    density = np.exp(prior.unnormalised_log_density(fine[None, None]).detach().numpy())
    density /= scipy.integrate.simpson(density, x=fine.numpy())[..., None]
    mean = scipy.integrate.simpson(density * fine.numpy(), x=fine.numpy())
    deviation = fine.numpy() - mean[..., None]
    variance = scipy.integrate.simpson(density * deviation**2, x=fine.numpy())
    fourth = scipy.integrate.simpson(density * deviation**4, x=fine.numpy())
    assert np.all(np.abs(z.mean(0) - mean) < 4.5 * np.sqrt(variance / 40_000))
    assert np.all(np.abs(z.var(0) - variance) < 4.5 * np.sqrt((fourth - variance**2) / 40_000))


def test_latents_of_different_functions_are_uncorrelated():
    for variant, columns in (("independent", 12), ("mixture", 3)):
        z = _prior(variant, amplitude=2.0).sample(40_000, _rng()).flatten(1)
        correlation = torch.corrcoef(z.T) - torch.eye(columns)
        assert float(correlation.abs().max()) < 4.5 / math.sqrt(40_000)


@pytest.mark.parametrize("variant", ["mixture", "independent"])
def test_the_score_is_right_in_the_tails(variant):
    prior = _prior(variant, "gaussian", q=2, p=1, amplitude=0.0)
    z = torch.tensor([[4.0, -4.0]]).reshape(1, *prior.latent_shape).requires_grad_()
    (score,) = torch.autograd.grad(prior.log_density(z).sum(), z)
    assert torch.allclose(score, -z, atol=1e-9)


def test_two_hundred_latents_keep_their_gradient_in_float32():
    prior = _prior("mixture", "gaussian", q=200, p=3).float()
    z = prior.sample(8, _rng())
    (-prior.log_density(z).mean()).backward()
    gradient = prior.bank.coefficients.grad
    assert torch.isfinite(gradient).all()
    assert bool((gradient.abs().sum((1, 2)) > 0).all())


@pytest.mark.parametrize("variant", ["mixture", "independent"])
def test_the_quadrature_gradient_is_the_contrastive_one_in_expectation(variant):
    # Eq. 16 at a data point: grad log p(z+) = grad E(z+) - E_prior grad E(z-), here per coefficient.
    prior = _prior(variant, "none", q=2, p=2)
    observed = prior.sample(1, _rng(5))
    (exact,) = torch.autograd.grad(prior.log_density(observed).sum(), prior.bank.coefficients)
    negatives = prior.sample(100_000, _rng(6))

    def features(z):
        h = 2.4 / 20
        return torch.exp(-0.5 * ((z.unsqueeze(-1) - prior.bank.centers) / h) ** 2)

    if variant == "independent":
        positive, negative = features(observed)[0], features(negatives)
        estimate = positive - negative.mean(0)
        error = negative.std(0) / math.sqrt(len(negatives))
        assert bool(((exact - estimate).abs() <= 4.5 * error + 1e-9).all())
        return
    # Mixture: the model expectation of grad_c log p is zero (eq. 41).
    per_sample = torch.stack(
        [
            torch.autograd.grad(prior.log_density(batch).sum(), prior.bank.coefficients)[0] / len(batch)
            for batch in negatives.split(1000)
        ]
    )
    error = per_sample.std(0) / math.sqrt(len(per_sample))
    assert bool((per_sample.mean(0).abs() <= 4.5 * error + 1e-9).all())


@pytest.mark.parametrize("reference", ["gaussian", "learnable_gaussian"])
@pytest.mark.parametrize("variant", ["mixture", "independent"])
def test_the_expected_log_density_is_exact_or_a_bound(variant, reference):
    prior = _prior(variant, reference, amplitude=0.5, has_tails=True)
    mean = 0.5 * torch.randn(4, *prior.latent_shape)
    std = 0.05 + 0.5 * torch.rand(4, *prior.latent_shape)
    draws = mean + std * torch.randn(20_000, *mean.shape, generator=_rng())
    values = prior.log_density(draws.flatten(0, 1)).unflatten(0, draws.shape[:2])
    error = values.std(0) / math.sqrt(20_000)
    closed = prior.expected_log_prob(mean, std)
    if variant == "independent":
        assert bool(((closed - values.mean(0)).abs() < 4.5 * error).all())
    else:
        assert bool((closed < values.mean(0) + 4.5 * error).all())
        assert bool((closed > values.mean(0) - 1.0).all())


def test_the_generator_sees_one_number_per_latent():
    z = torch.randn(5, 3, 4)
    assert torch.equal(_prior("independent").generator_input(z), z.sum(2))
    assert torch.equal(_prior("mixture").generator_input(z[..., 0]), z[..., 0])


def test_a_float32_prior_moved_to_float64_integrates_at_full_precision():
    torch.set_default_dtype(torch.float32)
    prior = _prior("independent", "none", amplitude=2.0).double()
    reference = prior.cumulative().log_total
    assert torch.allclose(prior.log_normalizer(), reference, atol=1e-9)
