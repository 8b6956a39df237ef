"""A VAE has the prior N(0, I) from its first update to its artifact; everything else is the KAEM's."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Normal, kl_divergence

from kaem.engines.cpu import LocalSampler
from kaem.errors import ConfigError
from kaem.noise import uniforms
from kaem_export.certificate import verify
from kaem_export.compile import export
from kaem_train.checkpoint import load_model, read_checkpoint
from kaem_train.config.settings import load_config, preset_names
from kaem_train.data import load_dataset
from kaem_train.families.build import build_model
from kaem_train.training.trainer import train


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_becomes_a_vae_of_the_same_networks_and_updates(preset):
    kaem, vae = load_config(preset), load_config(preset, ["family=vae"])
    assert (vae.name, vae.family) == (f"{preset}-vae", "vae")
    # Noise of the generator is for posteriors without an encoder, and a standard normal has no weights to penalise.
    training = dataclasses.replace(kaem.training, generator_noise=0.0, weight_penalty=0.0)
    assert (vae.generator, vae.training, vae.data) == (kaem.generator, training, kaem.data)
    kind = kaem.posterior.kind if kaem.posterior.has_encoder else "amortized"
    assert vae.posterior == dataclasses.replace(kaem.posterior, prior_from=1.0, kind=kind)
    assert vae.prior.num_latents == kaem.prior.num_latents
    shapes = [
        {name: value.shape for name, value in build_model(config).state_dict().items() if not name.startswith("prior.")}
        for config in (kaem, vae)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    "overrides",
    [
        ["prior.variant=independent", "prior.num_components=3", "training.prior_gradient=contrastive"],
        ["prior.reference=uniform", "prior.low=0", "prior.high=1", "prior.grid_low=0", "prior.grid_high=1"],
        ["prior.base=silu", "prior.frame=none", "posterior.kind=langevin"],
    ],
)
def test_whatever_a_configuration_says_of_its_prior_a_vae_has_the_standard_normal(overrides):
    config = load_config("digits", [*overrides, "family=vae"])
    assert (config.prior, config.posterior) == (
        load_config("digits", ["family=vae"]).prior,
        load_config("digits", ["family=vae"]).posterior,
    )


def test_a_configuration_cannot_call_another_prior_a_vae():
    with pytest.raises(ConfigError, match="another prior than N"):
        dataclasses.replace(load_config("digits"), family="vae")
    with pytest.raises(ConfigError, match="another prior than N"):
        vae = load_config("digits", ["family=vae"])
        dataclasses.replace(vae, posterior=dataclasses.replace(vae.posterior, prior_from=0.5))


def test_a_baseline_keeps_its_prior_at_the_end_too():
    vae = load_config("digits", ["family=vae"])
    with pytest.raises(ConfigError, match="'experts' would replace the prior of family = 'vae'"):
        dataclasses.replace(vae, refit=load_config("digits").refit)


@pytest.mark.parametrize("family", ["vae", "latent_ebm", "ddpm"])
def test_a_penalty_of_mixture_weights_is_none_where_no_mixture_is_trained(family):
    assert load_config("digits", ["training.weight_penalty=0.1"]).training.weight_penalty == 0.1
    assert load_config("digits", ["training.weight_penalty=0.1", f"family={family}"]).training.weight_penalty == 0.0


def test_a_file_may_name_the_family_and_keep_a_name_that_says_so(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('preset = "digits"\nname = "mine-vae"\nfamily = "vae"\n')
    assert load_config(str(path)).name == "mine-vae"
    path.write_text('preset = "digits"\nname = "mine"\n')
    assert load_config(str(path), ["family=vae"]).name == "mine-vae"
    assert load_config(str(path), ["family=kaem"]).name == "mine"


def test_the_prior_is_scipys_normal_and_its_bound_the_closed_form_divergence(float64, tiny):
    prior = build_model(tiny("family=vae")).double().prior
    z = 2.0 * torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    assert float(z.abs().max()) < 8.0  # the end of the domain
    torch.testing.assert_close(prior.log_density(z), torch.from_numpy(stats.norm.logpdf(z).sum(1)), rtol=0, atol=1e-12)
    mean, std = torch.randn(50, 3), torch.rand(50, 3) + 0.1
    entropy = Normal(mean, std).entropy().sum(1)
    divergence = kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(-entropy - prior.expected_log_prob(mean, std), divergence, rtol=0, atol=1e-11)
    samples = prior.sample(20_000, torch.Generator().manual_seed(0))
    for column in samples.T:
        assert stats.kstest(column.numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("kind", ["amortized", "weighted_bound", "refined"])
def test_training_never_moves_the_prior_and_the_bound_is_finite(tmp_path, tiny, kind):
    config = tiny("family=vae", f"posterior.kind={kind}", "training.updates=8")
    outcome = train(config, load_dataset(config.data), tmp_path)
    assert np.isfinite(outcome.bound)
    state = read_checkpoint(outcome.checkpoint).model_state
    fresh = build_model(config).state_dict()
    for name, value in state.items():
        if name.startswith("prior."):
            assert torch.equal(value, fresh[name]), name
    assert not state["prior.bank.coefficients"].any()


def test_an_exported_vae_draws_standard_normal_latents_and_keeps_its_certificate(tmp_path, tiny):
    config = tiny("family=vae", "training.updates=4")
    checkpoint = train(config, load_dataset(config.data), tmp_path).checkpoint
    manifest = export(checkpoint, tmp_path / "model.onnx")
    assert (manifest.family, manifest.name, manifest.noise_dim) == ("vae", "digits-vae", 3)
    uniform = uniforms(5, 0, 5_000, 3)
    with LocalSampler(tmp_path / "model.onnx") as sampler:
        latents = sampler.latents(uniform)
    expected = stats.norm.ppf(np.mod(uniform.astype(np.float64), 1.0))
    np.testing.assert_allclose(stats.norm.cdf(latents), stats.norm.cdf(expected), rtol=0, atol=1e-5)
    np.testing.assert_allclose(latents, expected, rtol=0, atol=2e-3)
    _, figures = verify(tmp_path / "model.onnx", checkpoint)
    assert all(figure.is_kept for figure in figures)
    assert load_model(checkpoint)[0].family == "vae"
