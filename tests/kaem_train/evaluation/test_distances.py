"""Distances agree with closed forms and independent implementations, in float64."""

import numpy as np
import pytest
import scipy.linalg

from kaem.errors import RequestError
from kaem_train.evaluation.distances import FrechetDistance, kernel_distance


def _gaussian(num, mean, factor, seed):
    """Samples of N(mean, factor factor^T)."""
    return np.random.default_rng(seed).standard_normal((num, len(mean))) @ factor.T + mean


def _frechet(mean, covariance, other_mean, other_covariance):
    root = scipy.linalg.sqrtm(covariance @ other_covariance).real
    return np.sum((mean - other_mean) ** 2) + np.trace(covariance + other_covariance - 2 * root)


def test_the_frechet_distance_of_samples_is_that_of_their_moments_by_scipy():
    factor = np.random.default_rng(0).standard_normal((6, 6))
    real = _gaussian(300, np.zeros(6), factor, 1).astype(np.float32)
    generated = _gaussian(200, np.arange(6.0), np.eye(6), 2).astype(np.float32)
    moments = [(x.mean(0), np.cov(x, rowvar=False)) for x in (real.astype(float), generated.astype(float))]
    assert FrechetDistance(real).to(generated) == pytest.approx(_frechet(*moments[0], *moments[1]), rel=1e-9)


def test_the_frechet_distance_of_many_samples_is_the_closed_form_of_their_gaussians():
    mean, stds = np.array([1.0, -2.0, 0.5]), np.array([0.5, 2.0, 1.0])
    real = _gaussian(400_000, np.zeros(3), np.eye(3), 1).astype(np.float32)
    generated = _gaussian(400_000, mean, np.diag(stds), 2).astype(np.float32)
    # Commuting covariances: |m|^2 + sum (s - 1)^2.
    assert FrechetDistance(real).to(generated) == pytest.approx(mean @ mean + np.sum((stds - 1) ** 2), rel=0.01)


def test_moments_are_taken_in_float64():
    # In float32 the variance of values about 4096 would drown in that of their mean.
    real = (4096.0 + np.random.default_rng(0).standard_normal((500, 2))).astype(np.float32)
    generated = (4096.0 + 2 * np.random.default_rng(1).standard_normal((500, 2))).astype(np.float32)
    moments = [(x.mean(0), np.cov(x, rowvar=False)) for x in (real.astype(float), generated.astype(float))]
    assert FrechetDistance(real).to(generated) == pytest.approx(_frechet(*moments[0], *moments[1]), rel=1e-6)


def test_real_moments_survive_from_one_set_to_the_next():
    real, first, second = (_gaussian(50, np.full(3, seed), np.eye(3), seed).astype(np.float32) for seed in range(3))
    distance = FrechetDistance(real)
    distance.to(first)
    assert distance.to(second) == FrechetDistance(real).to(second)


def test_the_kernel_distance_is_the_unbiased_mean_discrepancy_of_the_cubic_kernel():
    real = _gaussian(40, np.zeros(5), np.eye(5), 1)
    generated = _gaussian(40, np.ones(5), np.eye(5), 2)

    def kernel(a, b):
        return (a @ b.T / 5 + 1) ** 3

    pairs = 40 * 39
    expected = (
        (kernel(real, real).sum() - np.trace(kernel(real, real))) / pairs
        + (kernel(generated, generated).sum() - np.trace(kernel(generated, generated))) / pairs
        - 2 * kernel(real, generated).mean()
    )
    # Every subset is the whole set.
    found = kernel_distance(real, generated, num_subsets=2, seed=0)
    assert found.mean == pytest.approx(expected, rel=1e-9)
    assert found.deviation == pytest.approx(0.0, abs=1e-12)
    assert found.subset_size == 40


def test_the_kernel_distance_of_one_distribution_is_zero_within_its_noise():
    real, generated = (_gaussian(1500, np.zeros(4), np.eye(4), seed).astype(np.float32) for seed in (1, 2))
    found = kernel_distance(real, generated, num_subsets=8, seed=0)
    assert abs(found.mean) < 3 * found.deviation


def test_subsets_follow_the_seed_and_leave_the_global_generator_alone():
    import torch

    real, generated = (_gaussian(1500, np.full(4, seed), np.eye(4), seed).astype(np.float32) for seed in (0, 1))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second, other = (kernel_distance(real, generated, num_subsets=3, seed=seed).mean for seed in (5, 5, 6))
    assert first == second != other
    assert torch.equal(before, torch.get_rng_state())


def test_one_image_has_no_distance():
    with pytest.raises(RequestError, match="at least 2"):
        FrechetDistance(np.zeros((1, 3), np.float32))
