"""Langevin chains have the moments theory gives them; the adjusted ones sample their target exactly."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from linear_gaussian import assert_standard_normal, linear_model, observe, precision, standardise

from kaem_train.config import PosteriorConfig, PriorConfig
from kaem_train.model.prior.factorised import build_prior
from kaem_train.posterior.langevin import StepNoise, StepSizes, langevin_step, reflect
from kaem_train.posterior.power import PowerPosterior, power_posterior
from kaem_train.posterior.short_run import run_chains

pytestmark = pytest.mark.usefixtures("float64")


def _rng(seed=0):
    return torch.Generator().manual_seed(seed)


def _run(kernel, eta, num=6_000, steps=60):
    model, images = linear_model(), observe(num)
    target = power_posterior(model, images, torch.ones(1))
    run = run_chains(
        target,
        model.prior.sample(num, _rng(1)),
        _rng(2),
        num_steps=steps,
        step_size=torch.full((num,), eta),
        is_adjusted=kernel == "mala",
    )
    return standardise(run.last.z, images, 1.0), run


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_unadjusted_moments_are_off_by_the_step_size_as_theory_says(share):
    # z' - m = (1 - eta lambda)(z - m) + sqrt(2 eta) xi has variance 1 / (lambda (1 - eta lambda / 2)): a bias
    # O(eta). 60 steps leave (1 - .2)^60 = 1.5e-6 of the start.
    z, run = _run("ula", share / precision(1.0))
    assert_standard_normal(z * math.sqrt(1.0 - share / 2.0))
    assert float(run.last.log_likelihood.mean()) > float(run.first.log_likelihood.mean())


def test_adjusted_moments_are_exact():
    z, run = _run("mala", 0.5 / precision(1.0))
    assert_standard_normal(z)
    assert 0.5 < float(run.acceptance.mean()) < 0.99


def test_a_preconditioned_step_moves_every_latent_at_its_own_scale():
    num, scales = 20_000, torch.tensor([0.05, 3.0])
    target = PowerPosterior(
        log_prior=lambda z: -0.5 * (z / scales).square().sum(1),
        log_likelihood=lambda z: 0.0 * z.sum(1),
        temperatures=torch.ones(num),
        low=-math.inf,
        high=math.inf,
    )
    variance = scales.square().expand(num, 2)
    run = run_chains(
        target,
        torch.zeros(num, 2),
        _rng(),
        num_steps=30,
        step_size=torch.full((num,), 0.5),
        variance=variance,
        is_adjusted=True,
    )
    for column in (run.last.z / scales).T:
        assert_standard_normal(column)


def _prior(reference, low, high, seed=3):
    torch.manual_seed(seed)
    config = PriorConfig(
        num_latents=1, num_components=3, reference=reference, low=low, high=high, grid_low=low, grid_high=high
    )
    prior = build_prior(config)
    with torch.no_grad():
        prior.bank.coefficients.normal_(0.0, 0.7)
        prior.logits.normal_()
    return prior


def _cdf(prior):
    points = torch.linspace(prior.low, prior.high, 20_001)
    with torch.no_grad():
        density = prior.log_density(points[:, None]).exp()
    values = torch.cumulative_trapezoid(density, points)
    return lambda z: np.interp(z, points[1:].numpy(), values.numpy())


@pytest.mark.parametrize(("eta", "least_reflected"), [(0.02, 0.02), (0.3, 0.2)])
def test_adjusted_chains_sample_a_mixture_prior_with_its_normalisers_and_ends(eta, least_reflected):
    # The density is cut off at its ends where it is far from 0, so mistakes of the reflection show, and the
    # components' normalisers differ, so leaving them out shows. The larger step is half the domain.
    num = 4000
    prior = _prior("none", -1.2, 1.2)
    target = PowerPosterior(
        log_prior=prior.log_density,
        log_likelihood=lambda z: 0.0 * z.sum(1),
        temperatures=torch.zeros(num),
        low=prior.low,
        high=prior.high,
    )
    start = torch.empty(num, 1).uniform_(prior.low, prior.high, generator=_rng(4))
    run = run_chains(target, start, _rng(5), num_steps=150, step_size=torch.full((num,), eta), is_adjusted=True)
    assert float(run.reflected.mean()) > least_reflected
    assert scipy.stats.kstest(run.last.z[:, 0].numpy(), _cdf(prior)).pvalue > 1e-3
    assert scipy.stats.kstest(start[:, 0].numpy(), _cdf(prior)).pvalue < 1e-3


def test_reflection_folds_both_ends_and_clamps_what_is_far_out():
    z = torch.tensor([-1.5, 1.25, 0.3, -4.9, 1e9, -math.inf])
    folded = reflect(z, -1.0, 1.0)
    assert torch.allclose(folded[:4], torch.tensor([-0.5, 0.75, 0.3, -0.9]))
    assert bool(((folded >= -1.0) & (folded <= 1.0)).all())


def test_a_step_is_a_function_of_state_and_noise():
    model, images = linear_model(), observe(5)
    target = power_posterior(model, images, torch.ones(1))
    state = target.at(model.prior.sample(5, _rng()))
    noise = StepNoise.draw(state.z, _rng(1))
    step = torch.full((5,), 0.01)
    (left, _), (right, _) = (
        langevin_step(state, noise, target=target, step_size=step, is_adjusted=False) for _ in range(2)
    )
    assert torch.equal(left.z, right.z)
    silent = StepNoise(normal=torch.zeros_like(noise.normal), uniform=noise.uniform)
    moved, _ = langevin_step(state, silent, target=target, step_size=step, is_adjusted=False)
    assert torch.allclose(moved.z, state.z + 0.01 * target.score(state))


def test_the_step_size_finds_the_wanted_acceptance():
    config = PosteriorConfig(kind="langevin", kernel="mala")
    sizes = StepSizes(1e-4, config)
    model, images = linear_model(8), observe(400, 8)
    target = power_posterior(model, images, torch.ones(1))
    for update in range(30):
        run = run_chains(
            target,
            model.prior.sample(400, _rng(update)),
            _rng(100 + update),
            num_steps=10,
            step_size=sizes.per_chain(400),
            is_adjusted=True,
        )
        sizes.follow(run.acceptance.mean(0, keepdim=True))
    # 4,000 tests per update: the mean acceptance has a standard error below .01.
    assert float(run.acceptance.mean()) == pytest.approx(0.574, abs=0.05)
    unadjusted = StepSizes(0.1, PosteriorConfig(kind="langevin"))
    unadjusted.follow(torch.ones(1))
    assert float(unadjusted.per_chain(1)) == pytest.approx(0.1)
    unadjusted.follow(torch.zeros(1))
    assert float(unadjusted.per_chain(1)) == pytest.approx(0.1 * math.exp(-0.574))
    fixed = StepSizes(1e-4, PosteriorConfig(kind="langevin", adapt_step=False))
    fixed.follow(torch.ones(1))
    assert float(fixed.per_chain(1)) == pytest.approx(1e-4)
