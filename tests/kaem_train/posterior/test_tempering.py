"""A population keeps every power posterior as it is, and exchanges states where theory says it may."""

import math

import pytest
import scipy.optimize
import torch
from linear_gaussian import (
    assert_standard_normal,
    double,
    exact_latents,
    exact_mean_log_likelihood,
    linear_model,
    observe,
    precision,
    standardise,
)

from kaem_train.config import PosteriorConfig
from kaem_train.posterior.power import power_posterior
from kaem_train.posterior.tempering import (
    criterion_weights,
    power_at,
    run_population,
    swap_adjacent,
    temperature_ladder,
)

pytestmark = pytest.mark.usefixtures("float64")
LADDER = (0.0, 0.04, 0.16, 0.36, 0.64, 1.0)  # N_t = 5, p = 2


def _rng(seed=0):
    return torch.Generator().manual_seed(seed)


def _exact_state(images, temperatures):
    latents = [exact_latents(images, t, 200 + k) for k, t in enumerate(temperatures)]
    target = power_posterior(linear_model(images.shape[-1]), images, torch.tensor(temperatures))
    return target.at(torch.cat(latents))


def test_the_ladder_and_its_schedule_are_those_of_the_paper():
    assert temperature_ladder(5, 2.0).tolist() == pytest.approx(LADDER)
    half = PosteriorConfig(kind="tempering")
    assert [power_at(half, step, 100) for step in (0, 50, 100)] == pytest.approx([2.0, 1.25, 0.5])
    cycles = PosteriorConfig(kind="tempering", power_cycles=1)
    assert [power_at(cycles, step, 99) for step in (0, 33, 66, 99)] == pytest.approx([2.0, 0.5, 2.0, 0.5])


def test_a_swap_exchanges_two_states_of_an_image_or_nothing():
    images = observe(50)
    state = _exact_state(images, LADDER[1:])
    after, acceptance = swap_adjacent(state, torch.tensor(LADDER[1:]), 1, torch.rand(50, generator=_rng(9)))
    before_z, after_z = (value.z.reshape(5, 50, 2) for value in (state, after))
    assert torch.equal(after_z[[0, 3, 4]], before_z[[0, 3, 4]])
    is_swapped = (after_z[1] == before_z[2]).all(1)
    assert torch.equal(after_z[2], torch.where(is_swapped[:, None], before_z[1], before_z[2]))
    assert torch.equal(after_z[1], torch.where(is_swapped[:, None], before_z[2], before_z[1]))
    assert 0 < int(is_swapped.sum()) < 50
    assert bool(((acceptance > 0.0) & (acceptance <= 1.0)).all())
    # Everything a chain knows travels with it.
    again = power_posterior(linear_model(), images, torch.tensor(LADDER[1:])).at(after.z)
    assert torch.allclose(again.likelihood_score, after.likelihood_score)
    assert torch.allclose(again.log_prior, after.log_prior)


@pytest.mark.parametrize("pair", range(4))
def test_a_swap_leaves_every_marginal_as_it_was(pair):
    images = observe(20_000)
    state = _exact_state(images, LADDER[1:])
    after, _ = swap_adjacent(state, torch.tensor(LADDER[1:]), pair, torch.rand(20_000, generator=_rng(100 + pair)))
    for t, z in zip(LADDER[1:], after.z.reshape(5, -1, 2), strict=True):
        assert_standard_normal(standardise(z, images, t))


def test_images_swap_on_their_own_where_a_joint_decision_never_would():
    images = observe(200, 16)
    state = _exact_state(images, LADDER[1:])
    likelihoods = state.log_likelihood.reshape(5, 200)
    for pair in (1, 2, 3):
        _, acceptance = swap_adjacent(state, torch.tensor(LADDER[1:]), pair, torch.zeros(200))
        gap = LADDER[pair + 2] - LADDER[pair + 1]
        joint = gap * float((likelihoods[pair] - likelihoods[pair + 1]).sum())
        assert float(acceptance.mean()) > 0.05
        assert joint < -50.0


@pytest.fixture(scope="module")
def population():
    with double():
        model, images = linear_model(), observe(6000)
        temperatures = torch.tensor(LADDER)
        steps = torch.tensor([0.5 / precision(t) for t in LADDER[1:]]).repeat_interleave(len(images))
        drawn = run_population(model, images, temperatures, _rng(3), num_steps=40, step_size=steps, is_adjusted=True)
        return images, drawn


def test_every_temperature_samples_its_own_posterior(population):
    images, drawn = population
    for t, z in zip(LADDER[1:], drawn.last.z.reshape(5, -1, 2), strict=True):
        assert_standard_normal(standardise(z, images, t))
    assert_standard_normal(drawn.prior_z)
    assert bool((drawn.swap_acceptance > 0.05).all())


def test_the_mean_likelihood_of_every_temperature_is_the_exact_one_and_rises(population):
    images, drawn = population
    means = [float(level.mean()) for level in drawn.levels]
    assert means == sorted(means)
    exact = [float(exact_mean_log_likelihood(images, t).mean()) for t in LADDER]
    for level, expected in zip(drawn.levels, exact, strict=True):
        # States of one image along a chain are dependent: its error counts images only.
        difference = level.mean(0) - exact_mean_log_likelihood(images, LADDER[exact.index(expected)])
        assert abs(float(difference.mean())) < 4.5 * float(difference.std()) / math.sqrt(len(images))


def test_a_population_freezes_the_model_only_while_it_runs():
    model, images = linear_model(), observe(4)
    run_population(
        model, images, torch.tensor(LADDER), _rng(), num_steps=2, step_size=torch.full((20,), 0.01), is_adjusted=False
    )
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("criterion", ["telescoped", "steppingstone", "right_sum"])
@pytest.mark.parametrize("power", [2.0, 0.5])
def test_the_weights_of_a_criterion_sum_to_one(criterion, power):
    weights = criterion_weights(temperature_ladder(5, power), criterion)
    assert weights.shape == (6,)
    assert float(weights.sum()) == pytest.approx(1.0)


def test_only_the_telescoped_criterion_recovers_the_generator():
    # x = z + sigma e, so phi = 1. Latents are exact power posterior draws at a trial phi; the fixed point is where
    # the criterion's gradient vanishes. Known: telescoped 1; sigma .3: steppingstone .708, right sum .861.
    sigma, num = 0.3, 200_000
    x = math.sqrt(1.0 + sigma**2) * torch.randn(num, generator=_rng(1))
    x = x * math.sqrt(1.0 + sigma**2) / x.square().mean().sqrt()
    temperatures = torch.tensor(LADDER)
    noise = torch.randn(6, num, generator=_rng(2))

    def gradient(value, weights):
        strength = temperatures[:, None] * value / sigma**2
        lam = 1.0 + strength * value
        z = strength * x / lam + noise / lam.sqrt()
        phi = torch.tensor(value, requires_grad=True)
        likelihoods = -((x - phi * z) ** 2).mean(1) / (2 * sigma**2)
        (slope,) = torch.autograd.grad((weights * likelihoods).sum(), phi)
        return float(slope)

    found = {
        name: scipy.optimize.brentq(gradient, 0.3, 2.0, args=(criterion_weights(temperatures, name),), xtol=1e-4)
        for name in ("telescoped", "steppingstone", "right_sum")
    }
    # The data's second moment is exact; what is left is the draws' noise, below 1 % at 200,000 images.
    assert found["telescoped"] == pytest.approx(1.0, rel=0.02)
    assert found["steppingstone"] == pytest.approx(0.708, rel=0.02)
    assert found["right_sum"] == pytest.approx(0.861, rel=0.02)
