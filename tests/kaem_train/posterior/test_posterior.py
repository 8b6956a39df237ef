"""Posteriors estimate what they claim; models trained with them explain held-out digits."""

import math

import pytest
import scipy.stats
import torch

from kaem_train.config import PriorConfig
from kaem_train.config.settings import load_config
from kaem_train.data import load_dataset
from kaem_train.evaluation.likelihood import held_out_bound
from kaem_train.families.kaem import Kaem
from kaem_train.model.prior.factorised import build_prior
from kaem_train.posterior import build_posterior
from kaem_train.posterior.start import fit_gaussian_mixtures, start_marginals
from kaem_train.training.events import Progress
from kaem_train.training.trainer import train


def _rng(seed=0):
    return torch.Generator().manual_seed(seed)


def _likelihood(model, images):
    """log p(x) by simple Monte Carlo over many exact prior samples, shape (B,)."""
    z = model.prior.sample(200_000, _rng(9))
    with torch.no_grad():
        means = model.decode(z).flatten(1)
    distance = torch.cdist(images.flatten(1), means).square()
    sigma = float(model.sigma)
    constant = 0.5 * images[0].numel() * math.log(2 * math.pi * sigma**2)
    return torch.logsumexp(-0.5 * distance / sigma**2 - constant, 1) - math.log(len(z))


@pytest.mark.parametrize("kind", ["amortized", "importance", "langevin"])
def test_the_held_out_bound_is_a_bound_that_closes_with_more_samples(tiny, kind):
    config = tiny(f"posterior.kind={kind}", "training.sigma=0.4")
    torch.manual_seed(0)
    model = Kaem(config)
    posterior = build_posterior(config, model.prior.latent_shape)
    images = torch.rand(20, 1, 8, 8)
    exact = float(_likelihood(model, images).mean())
    few, many = (held_out_bound(model, posterior, images, _rng(1), num_samples=num) for num in (1, 4000))
    assert few < many + 0.05
    assert many == pytest.approx(exact, abs=0.1)


@pytest.mark.parametrize("variant", ["mixture", "independent"])
def test_the_prior_starts_at_the_distribution_of_the_latents(variant):
    config = PriorConfig(variant=variant, num_latents=3, num_components=4)
    torch.manual_seed(0)
    prior = build_prior(config)
    if variant == "mixture":
        latents = torch.where(torch.rand(4000, 3) < 0.3, -1.5, 1.0) + 0.35 * torch.randn(4000, 3)
    else:
        latents = 0.7 * torch.randn(4000, 3, 4) + torch.linspace(-1, 1, 12).reshape(3, 4)
    start_marginals(prior, latents)
    drawn = prior.sample(4000, _rng()).flatten(1)
    for sample, latent in zip(drawn.T.numpy(), latents.flatten(1).T.numpy(), strict=True):
        assert scipy.stats.ks_2samp(sample, latent).statistic < 0.05


def test_expectation_maximisation_recovers_a_mixture():
    truth = torch.where(torch.rand(20_000, generator=_rng(), dtype=torch.float64) < 0.25, -2.0, 1.0)
    columns = (truth + 0.5 * torch.randn(20_000, generator=_rng(1), dtype=torch.float64))[None]
    weights, means, stds = (value[0].tolist() for value in fit_gaussian_mixtures(columns, 2))
    assert weights == pytest.approx([0.25, 0.75], abs=0.02)
    assert means == pytest.approx([-2.0, 1.0], abs=0.05)
    assert stds == pytest.approx([0.5, 0.5], abs=0.05)


KINDS = {
    "amortized": (),
    "weighted bound": ("posterior.kind=weighted_bound",),
    "refined, ula": ("posterior.kind=refined",),
    "refined, mala": ("posterior.kind=refined", "posterior.kernel=mala"),
    "importance": (
        "prior.frame=none",
        "posterior.kind=importance",
        "posterior.resample_below=0.5",
        "posterior.resampling=systematic",
    ),
    "ula": ("prior.frame=none", "posterior.kind=langevin", "posterior.num_steps=3"),
    "mala": ("prior.frame=none", "posterior.kind=langevin", "posterior.num_steps=3", "posterior.kernel=mala"),
    "tempering": (
        "prior.frame=none",
        "posterior.kind=tempering",
        "posterior.num_steps=3",
        "posterior.num_temperatures=2",
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_posterior_trains_the_digits(tmp_path, name):
    config = load_config("digits", ["training.updates=30", "training.log_every=10", *KINDS[name]])
    seen = []
    train(config, load_dataset(config.data), tmp_path, listeners=[seen.append])
    metrics = [event.metrics for event in seen if isinstance(event, Progress)]
    assert all(math.isfinite(value) for report in metrics for value in report.values())
    assert metrics[-1]["loss"] < metrics[0]["loss"]


@pytest.mark.slow
def test_importance_sampling_learns_the_digits(tmp_path):
    # The toy experiment of the method: log-mean-exp over prior samples above 10 nats within 800 updates.
    config = load_config(
        "digits",
        [
            "prior.variant=independent",
            "prior.frame=none",
            "prior.num_latents=21",
            "prior.num_components=10",
            "prior.reference=none",
            *(f"prior.{name}={value}" for name, value in (("low", -1.2), ("high", 1.2))),
            *(f"prior.grid_{name}={value}" for name, value in (("low", -1.2), ("high", 1.2))),
            "generator.kind=kan",
            "generator.hidden=[42]",
            "posterior.kind=importance",
            "training.updates=800",
            "training.batch_size=100",
            "training.learning_rate=1e-3",
            "training.prior_learning_rate=1e-3",
            "training.decay_from=1.0",
            "training.sigma=0.1",
            "training.learn_sigma=false",
        ],
    )
    data = load_dataset(config.data)
    samples = []
    train(config, data, tmp_path, listeners=[lambda event: samples.append(getattr(event, "images", None))])
    from kaem_train.checkpoint import load_model

    _, model = load_model(tmp_path / "ckpt.pt")
    bound = held_out_bound(model, build_posterior(config, (21, 10)), data.holdout, _rng(), num_samples=20_000)
    assert bound > 10.0
    assert float(model.sample(1000, _rng()).var(0).sum()) > 1.0
