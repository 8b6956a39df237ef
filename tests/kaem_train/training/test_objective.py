"""The criteria equal their closed forms; weights go through one softmax."""

import numpy as np
import pytest
import scipy.stats
import torch

from kaem_train.training import objective

pytestmark = pytest.mark.usefixtures("float64")


def test_the_likelihood_is_the_gaussian_one_with_its_constant():
    x, mean, sigma = torch.rand(3, 5), torch.rand(3, 5), torch.tensor(0.2)
    errors = (x - mean).square().sum(1)
    expected = scipy.stats.norm(mean.numpy(), 0.2).logpdf(x.numpy()).sum(1)
    assert np.allclose(objective.log_likelihood(errors, 5, sigma).numpy(), expected)


def test_pairwise_errors_are_squared_distances():
    images, means = torch.rand(4, 1, 3, 3), torch.rand(6, 1, 3, 3)
    expected = torch.cdist(images.flatten(1), means.flatten(1)) ** 2
    assert torch.allclose(objective.pairwise_squared_error(images, means), expected)


def test_entropy_and_divergence_equal_their_closed_forms():
    mean, log_std = torch.randn(4, 3), 0.3 * torch.randn(4, 3)
    q = torch.distributions.Normal(mean, log_std.exp())
    standard = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    divergence = torch.distributions.kl_divergence(q, standard).sum(1)
    assert torch.allclose(objective.gaussian_entropy(log_std), q.entropy().sum(1))
    assert torch.allclose(objective.standard_normal_divergence(mean, log_std), divergence)


def test_the_importance_gradient_is_that_of_the_log_mean_likelihood():
    torch.manual_seed(0)
    parameter = torch.randn(7, requires_grad=True)
    data = torch.randn(4, 1)

    def likelihoods():
        return -2.0 * (data - parameter) ** 2

    weights = objective.importance_weights(likelihoods())
    loss = objective.importance_loss(weights, likelihoods(), torch.zeros(7))
    (estimate,) = torch.autograd.grad(loss, parameter)
    (exact,) = torch.autograd.grad(-torch.logsumexp(likelihoods(), 1).mean(), parameter)
    assert torch.allclose(estimate, exact)


def test_effective_sample_size_counts_equal_and_single_weights():
    assert float(objective.effective_sample_size(torch.full((1, 50), 1 / 50))) == pytest.approx(50.0)
    assert float(objective.effective_sample_size(torch.eye(50)[:1])) == pytest.approx(1.0)
