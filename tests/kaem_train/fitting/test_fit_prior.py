"""Fitted priors reach the entropies that scipy and closed forms give, wherever the latents lie and at any scale."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from kaem.errors import ConfigError, DataError
from kaem_train.fitting.fit_prior import choose_prior_configs, fit_prior
from kaem_train.fitting.latents import Latents


def _latents(array, scored=1000):
    z = torch.from_numpy(np.asarray(array, np.float32))
    parts = torch.split(z, [len(z) - 2 * scored, scored, scored])
    return Latents(fitted=parts[0], choosing=parts[1], scored=parts[2], num_rows=len(z), fingerprint="sha256:0")


def _fit(array, name, *assignments, steps=100):
    latents = _latents(array)
    configs = choose_prior_configs(name, array.shape[1], len(latents.fitted), assignments)
    return fit_prior(latents, configs, seed=3, steps=steps)


@pytest.mark.parametrize("name", ["own-frames", "strict", "independent"])
def test_standard_normal_latents_keep_their_likelihood(name):
    z = np.random.default_rng(0).normal(size=(5000, 4))
    scores = _fit(z, name).scores
    # -(Q / 2) (1 + log 2 pi); the mean of 1000 log densities has deviation sqrt(Q / 2 / 1000) = 0.045.
    assert scores.standard_normal == pytest.approx(-2.0 * (1.0 + math.log(2.0 * math.pi)), abs=0.18)
    assert scores.prior == pytest.approx(scores.standard_normal, abs=0.03)


@pytest.mark.parametrize("name", ["own-frames", "experts", "mixture"])
def test_a_correlated_gaussian_far_from_0_and_1_reaches_the_entropy_of_scipy(name):
    random = np.random.default_rng(1)
    mean, factor = np.array([50.0, -0.03, 7.0]), np.diag([30.0, 0.01, 2.0]) @ random.normal(size=(3, 3))
    law = scipy.stats.multivariate_normal(mean, factor @ factor.T)
    z = law.rvs(6000, random_state=random)
    fit = _fit(z, name)
    best = law.logpdf(z[-1000:]).mean()  # the entropy's estimate on the latents that are scored
    assert best == pytest.approx(-law.entropy(), abs=0.15)
    assert fit.scores.full_gaussian == pytest.approx(best, abs=0.02)
    assert fit.scores.prior == pytest.approx(best, abs=0.1)
    assert fit.outside == 0.0


@pytest.mark.parametrize(("name", "share"), [("own-frames", 0.95), ("experts", 0.8)])
def test_experts_beat_one_gaussian_on_two_clusters_by_the_known_margin(name, share):
    random = np.random.default_rng(2)
    z = random.normal(size=(5000, 3))
    z[:, 0] += 6.0 * random.choice([-1.0, 1.0], 5000)
    fit = _fit(z, name)
    # One Gaussian pays log sqrt(1 + 6^2) for the distance, two pay log 2 for the choice.
    margin = 0.5 * math.log(37.0) - math.log(2.0)
    assert share * margin < fit.scores.prior - fit.scores.full_gaussian < 1.05 * margin
    if name == "own-frames":
        assert fit.config.num_components == 2


def test_energies_find_the_shape_of_flat_densities_along_turned_axes():
    random = np.random.default_rng(4)
    angle = 0.5
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    z = (random.uniform(-1.0, 1.0, (5000, 2)) * [1.0, 3.0]) @ turn.T
    fit = _fit(z, "strict", steps=300)
    # A Gaussian of the same deviation has entropy log sqrt(2 pi e / 12) above a uniform density's, per axis.
    margin = math.log(2.0 * math.pi * math.e / 12.0)
    assert 0.6 * margin < fit.scores.prior - fit.scores.full_gaussian < margin
    assert fit.scores.start == pytest.approx(fit.scores.full_gaussian, abs=0.05)


@pytest.mark.parametrize("name", ["own-frames", "experts", "strict"])
def test_samples_of_the_fitted_prior_lie_where_the_latents_do(name):
    random = np.random.default_rng(5)
    z = random.normal(size=(4000, 3)) @ random.normal(size=(3, 3)) * [100.0, 1.0, 0.01] + [300.0, 2.0, -0.1]
    fit = _fit(z, name, steps=20)
    samples = fit.prior.sample(20_000, torch.Generator().manual_seed(0)).double().numpy()
    assert np.abs((samples.mean(0) - z.mean(0)) / z.std(0)).max() < 0.1
    assert np.abs(np.corrcoef(samples.T) - np.corrcoef(z.T)).max() < 0.06
    assert np.abs(samples.std(0) / z.std(0) - 1.0).max() < 0.08


def test_the_scores_are_densities_of_the_latents_as_they_came():
    random = np.random.default_rng(6)
    z = random.normal(size=(3000, 2)) * [20.0, 0.05] + [3.0, 4.0]
    latents = _latents(z)
    fit = fit_prior(latents, choose_prior_configs("own-frames", 2, 1000, ["prior.num_components=2"]), steps=20)
    assert float(fit.prior.log_density(latents.scored).mean()) == pytest.approx(fit.scores.prior, abs=1e-3)


def test_the_same_seed_gives_the_same_prior():
    z = np.random.default_rng(7).normal(size=(3000, 3))
    first, second = (_fit(z, "own-frames", "prior.num_components=3", steps=20).prior.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_domain_grows_for_latents_that_lie_far_out():
    z = np.random.default_rng(9).standard_t(2.5, size=(3000, 2))
    fit = _fit(z, "strict", steps=20)
    rows = torch.from_numpy(z).float()
    assert 0.0 < fit.outside < 0.05
    assert not fit.prior.is_outside(rows).any()
    assert fit.prior.log_density(rows).isfinite().all()


@pytest.mark.parametrize("reference", ["uniform", "none"])
def test_latents_without_a_density_are_refused(reference):
    z = np.random.default_rng(8).uniform(0.0, 1.0, size=(3000, 2))
    z[7, 1] = 1.3
    unit = ("prior.low=0", "prior.high=1", "prior.grid_low=0", "prior.grid_high=1", f"prior.reference={reference}")
    with pytest.raises(DataError, match=f"0.00033 of the latents lie outside the domain .0, 1., where the {reference}"):
        _fit(z, "independent", *unit)


def test_latents_beyond_the_domain_of_a_prior_without_a_frame_are_refused():
    z = 30.0 * np.random.default_rng(8).normal(size=(3000, 2))
    with pytest.raises(DataError, match=r"outside the domain \[-8, 8\]") as caught:
        _fit(z, "independent")
    assert "--prior strict" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "assignments", "message"),
    [
        ("expert", (), "no prior named 'expert'"),
        ("experts", ("generator.dense=3",), "setting generator does not matter"),
        ("experts", ("prior.num_component=3",), "unknown setting prior.num_component"),
        ("experts", ("prior.num_components=0",), "num_components = 0 is below 1"),
        ("experts", ("prior.num_components=2000",), "1000 different latents cannot start"),
        ("experts", ("prior.low=-2", "prior.high=2", "prior.grid_low=-2", "prior.grid_high=2"), "leaves 0.046 of the"),
        ("experts", ("prior.num_latents=3",), "prior.num_latents = 3, but the latents have 2"),
        ("independent", ("prior.num_components=3",), "which an autoencoder does not tell apart"),
    ],
)
def test_wrong_priors_are_refused(name, assignments, message):
    with pytest.raises(ConfigError, match=message):
        choose_prior_configs(name, 2, 1000, assignments)


def test_few_latents_are_given_few_experts_to_choose_from():
    numbers = [config.num_components for config in choose_prior_configs("own-frames", 2, 70, ())]
    assert numbers == [1, 2, 4, 8, 16]
