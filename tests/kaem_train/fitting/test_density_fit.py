"""Fitting a prior to latents reaches the likelihood of their true law and never leaves the prior worse."""

import pytest
import scipy.stats
import torch

from kaem_train.config import PriorConfig
from kaem_train.fitting.density import fit_density, mean_log_density
from kaem_train.model.prior.factorised import build_prior

_MEANS = torch.tensor([[-2.0, 1.0], [2.0, -1.0]])


def _rng(seed=0):
    return torch.Generator().manual_seed(seed)


def _prior(**changes):
    torch.manual_seed(0)
    settings = {"variant": "experts", "num_latents": 2, "num_components": 2, "low": -8.0, "high": 8.0}
    return build_prior(PriorConfig(**{**settings, **changes}))


def _clusters(num, seed):
    rng = _rng(seed)
    return _MEANS[torch.randint(2, (num,), generator=rng)] + 0.5 * torch.randn(num, 2, generator=rng)


def _log_law(z):
    laws = [scipy.stats.multivariate_normal(mean.numpy(), 0.25) for mean in _MEANS]
    return torch.tensor(sum(0.5 * law.pdf(z.numpy()) for law in laws)).log()


@pytest.mark.parametrize("frame", ["none", "global"])
def test_two_clusters_are_learned_to_their_true_likelihood(frame):
    train, held_out = _clusters(4000, 1), _clusters(1000, 2)
    prior = _prior(frame=frame)
    told = []
    found = fit_density(
        prior, train, held_out, steps=150, rng=_rng(), progress=lambda step, score: told.append((step, score))
    )
    assert found.before < found.after == pytest.approx(float(_log_law(held_out).mean()), abs=0.03)
    assert mean_log_density(prior, held_out) == found.after == dict(told)[found.step]
    assert [step for step, _ in told] == [0, *range(15, 151, 15)]


def test_the_start_stays_where_no_step_is_better():
    train, held_out = _clusters(500, 1), torch.randn(200, 2, generator=_rng(3)) * 0.1
    prior = _prior()
    before = {name: value.clone() for name, value in prior.state_dict().items()}
    # What is to be learned and what is judged contradict each other; the first steps already lose.
    with torch.no_grad():
        prior.means.zero_()
        prior.log_stds.fill_(-2.0)
        before |= {"means": prior.means.clone(), "log_stds": prior.log_stds.clone()}
    found = fit_density(prior, train, held_out, steps=40, rng=_rng())
    assert (found.step, found.after) == (0, found.before)
    for name, value in prior.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_only_the_named_parameters_move_and_flags_are_given_back():
    prior = _prior(frame="global").requires_grad_(False)
    before = {name: value.clone() for name, value in prior.state_dict().items()}
    fit_density(prior, _clusters(500, 1), _clusters(200, 2), steps=20, rng=_rng(), parameters=[prior.means])
    moved = {name for name, value in prior.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"means"}
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in prior.parameters())


def test_the_same_seed_gives_the_same_fit():
    fits = []
    for _ in range(2):
        prior = _prior()
        fit_density(prior, _clusters(500, 1), _clusters(200, 2), steps=20, rng=_rng(7))
        fits.append(prior.state_dict())
    assert all(torch.equal(value, fits[1][name]) for name, value in fits[0].items())


def test_latents_outside_a_bounded_support_have_no_likelihood():
    prior = _prior(variant="mixture", reference="uniform", low=0.0, high=1.0, grid_low=0.0, grid_high=1.0)
    assert mean_log_density(prior, torch.rand(50, 2, generator=_rng())) > -1.0
    assert mean_log_density(prior, torch.tensor([[0.5, 0.5], [0.5, 1.5]])) == -torch.inf
