"""Multiplicities are whole, sum to N, and follow the weights in expectation, whatever the scheme."""

import math

import pytest
import torch

from kaem_train.posterior.importance import resample

pytestmark = pytest.mark.usefixtures("float64")
SCHEMES = ("residual", "systematic", "stratified")


def _rng():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_weight_is_kept_in_expectation(scheme):
    rng = _rng()
    weights = torch.softmax(2.0 * torch.randn(1, 12, generator=rng), -1)
    counts = resample(weights.expand(20_000, -1), scheme, rng)
    assert torch.equal(counts.sum(1), torch.full((20_000,), 12.0))
    # 12 comparisons at 4.5 standard errors: a right scheme fails with probability 1e-4.
    error = counts.std(0) / math.sqrt(20_000)
    assert bool(((counts.mean(0) - 12.0 * weights[0]).abs() <= 4.5 * error + 1e-12).all())
    if scheme != "stratified":
        assert bool((counts >= torch.floor(12.0 * weights)).all())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_dead_proposal_is_not_revived(scheme):
    weights = torch.full((500, 10), 1e-12)
    weights[:, 3] = 1.0 - 9e-12
    assert float(resample(weights, scheme, _rng())[:, 3].mean()) == 10.0


@pytest.mark.parametrize("num", [7, 50, 100, 200, 1000])
def test_equal_weights_keep_every_proposal_once_even_in_single_precision(num):
    weights = torch.softmax(torch.zeros(3, num, dtype=torch.float32), -1)
    assert torch.equal(resample(weights, "residual", _rng()), torch.ones(3, num, dtype=torch.float32))


def test_systematic_resampling_varies_least():
    weights = torch.softmax(torch.randn(1, 12, generator=_rng()), -1).expand(4000, -1)
    spread = {scheme: float(resample(weights, scheme, _rng()).var(0).sum()) for scheme in SCHEMES}
    assert spread["systematic"] < spread["stratified"]
    assert spread["systematic"] < spread["residual"]
