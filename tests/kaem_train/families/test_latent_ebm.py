"""The latent EBM: short Langevin runs do what theory says of them, and the energy learns by their contrast."""

import math

import pytest
import torch

from kaem.errors import ArtifactError, ConfigError
from kaem_export.compile import export
from kaem_train.checkpoint import load_kaem, load_model
from kaem_train.config import LatentEbmConfig
from kaem_train.config.settings import load_config, preset_names
from kaem_train.data import load_dataset
from kaem_train.families.build import build_model
from kaem_train.families.latent_ebm import EnergyPrior, contrast, short_run
from kaem_train.training.trainer import Trainer, train


def _rng(seed=0):
    return torch.Generator().manual_seed(seed)


def _variance(step_size, num_steps):
    """Of an unadjusted chain on N(0, 1) from N(0, 1): v <- (1 - eta)^2 v + 2 eta, solved."""
    eta = 0.5 * step_size**2
    limit = 1.0 / (1.0 - eta / 2.0)
    return limit + (1.0 - eta) ** (2 * num_steps) * (1.0 - limit)


@pytest.mark.parametrize(("step_size", "num_steps"), [(0.4, 60), (1.0, 10)])
def test_without_an_energy_prior_runs_keep_the_standard_normal_within_their_known_bias(float64, step_size, num_steps):
    prior = EnergyPrior(4, LatentEbmConfig(hidden=4, prior_steps=num_steps, prior_step_size=step_size))
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.zero_()
    samples = prior.sample(20_000, _rng())
    expected, deviation = _variance(step_size, num_steps), math.sqrt(2.0 / 80_000)
    assert expected > 1.0 + 5 * deviation  # the bias is large enough to be seen
    assert float(samples.var()) == pytest.approx(expected, abs=4 * deviation * expected)
    assert float(samples.mean()) == pytest.approx(0.0, abs=4 * math.sqrt(expected / 80_000))


def test_a_linear_tilt_moves_the_mean_as_far_as_the_steps_reach(float64):
    tilt, step_size, num_steps = torch.tensor([1.0, -2.0]), 0.4, 15
    samples = short_run(
        lambda z: (z * tilt).sum(-1) - 0.5 * (z * z).sum(-1),
        torch.randn(40_000, 2, generator=_rng(1)),
        _rng(2),
        num_steps=num_steps,
        step_size=step_size,
    )
    reached = 1.0 - (1.0 - 0.5 * step_size**2) ** num_steps
    torch.testing.assert_close(samples.mean(0), reached * tilt, rtol=0, atol=0.025)


def test_the_contrast_has_the_gradient_of_the_exact_log_likelihood(float64):
    torch.manual_seed(0)
    prior = EnergyPrior(1, LatentEbmConfig(hidden=6))
    positive = torch.randn(500, 1) + 1.0
    nodes = torch.linspace(-8.0, 8.0, 4001)[:, None]
    log_density = prior.log_density(nodes)
    log_normaliser = torch.logsumexp(log_density, 0) + math.log(16.0 / 4000)
    exact = torch.autograd.grad(log_normaliser - prior.tilt(positive).mean(), prior.parameters())
    # Prior samples that are exact, by the distribution function on the nodes, and so many that they hardly vary.
    cumulative = log_density.detach().softmax(0).cumsum(0)
    negative = nodes[torch.searchsorted(cumulative, torch.linspace(0.0, 1.0, 200_001)[1:-1])]
    estimate, _ = contrast(prior, positive, negative)
    for value, wanted in zip(torch.autograd.grad(estimate, prior.parameters()), exact, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-3, atol=1e-3)


def test_contrast_teaches_an_energy_where_its_latents_lie():
    torch.manual_seed(0)
    prior = EnergyPrior(2, LatentEbmConfig(hidden=16, prior_steps=30, prior_step_size=0.5))
    optimiser = torch.optim.Adam(prior.parameters(), lr=2e-2)
    target = torch.tensor([1.5, -0.5])
    for step in range(60):
        loss, _ = contrast(prior, torch.randn(128, 2) + target, prior.sample(128, _rng(step)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    torch.testing.assert_close(prior.sample(4000, _rng()).mean(0), target, rtol=0, atol=0.35)


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_becomes_a_latent_ebm_with_the_same_generator(preset):
    config = load_config(preset, ["family=latent-ebm"])
    assert (config.name, config.family) == (f"{preset}-latent-ebm", "latent_ebm")
    kaem, model = build_model(load_config(preset)), build_model(config)
    shapes = [{name: value.shape for name, value in each.generator.state_dict().items()} for each in (kaem, model)]
    assert shapes[0] == shapes[1]
    assert config.learning_rates == (config.training.learning_rate, config.latent_ebm.learning_rate)


def test_an_update_moves_generator_and_energy_and_reports_the_chains(tiny):
    config = tiny("family=latent_ebm", "training.log_every=1")
    seen = []
    assert not config.training.learn_sigma
    trained = Trainer(config, load_dataset(config.data), listeners=(seen.append,))
    before = {name: value.clone() for name, value in trained.model.state_dict().items()}
    for _ in range(3):
        trained.update(None)
    for name, value in trained.model.state_dict().items():
        # A constant in f cancels in the contrast, and sigma is given.
        assert torch.equal(value, before[name]) == (name in {"prior.layers.4.bias", "sigma"}), name
    metrics = seen[-1].metrics
    assert metrics["last_log_likelihood"] > metrics["first_log_likelihood"]
    assert 0.0 < metrics["acceptance"] <= 1.0
    assert metrics["prior"] == pytest.approx(metrics["tilt_prior"] - metrics["tilt_posterior"])


def test_a_run_has_no_bound_and_gives_a_model_that_samples_and_is_exported(tmp_path, tiny):
    config = tiny("family=latent_ebm", "training.updates=2")
    outcome = train(config, load_dataset(config.data), tmp_path)
    assert (outcome.is_finished, outcome.bound) == (True, None)
    loaded, model = load_model(outcome.checkpoint)
    assert loaded == config
    images = model.sample(5, _rng())
    assert images.shape == (5, 1, 8, 8)
    assert torch.equal(images, model.sample(5, _rng()))
    assert export(outcome.checkpoint, tmp_path / "model.onnx").family == "latent_ebm"
    with pytest.raises(ArtifactError, match="latent_ebm, whose prior is no product"):
        load_kaem(outcome.checkpoint)


@pytest.mark.parametrize("override", ["hidden=0", "prior_step_size=0", "prior_steps=0"])
def test_settings_out_of_range_are_named(override):
    with pytest.raises(ConfigError, match=f"{override[:-2]} = 0"):
        load_config("digits", ["family=latent_ebm", f"latent_ebm.{override}"])
