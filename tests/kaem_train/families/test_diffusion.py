"""The diffusion model: the library's noise and samplers, fed as the papers say, recover what is known exactly."""

import math
import sys

import numpy as np
import pytest
import torch
from torch import nn

from kaem.errors import ArtifactError, ConfigError
from kaem_train.checkpoint import load_kaem, load_model
from kaem_train.config import DiffusionConfig
from kaem_train.config.settings import load_config, preset_names
from kaem_train.data import load_dataset
from kaem_train.families.diffusion import DenoisingObjective, Diffusion, noise_schedule
from kaem_train.training.requirements import check_trainable
from kaem_train.training.trainer import Trainer, train

SMALL = ("diffusion.channels=[8, 8]", "diffusion.sampling_steps=4")


def _rng(seed=0):
    return torch.Generator().manual_seed(seed)


def _alpha_bar(betas):
    """abar_t of the papers: Ho et al. section 4, Nichol & Dhariwal eq. 17."""
    if betas == "linear":
        return np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))

    def f(t):
        return np.cos((t / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2

    t = np.arange(1000)
    return np.cumprod(1.0 - np.minimum(1.0 - f(t + 1) / f(t), 0.999))


class _ExactDenoiser(nn.Module):
    """E[eps | x_t] where the pixels of x_0 are N(mean, std^2), in [-1, 1]."""

    def __init__(self, mean, std, alpha_bar):
        super().__init__()
        self.mean, self.std = mean, std
        self.alpha_bar = torch.from_numpy(alpha_bar).float()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, noisy, timesteps, *, return_dict):
        assert not return_dict
        kept = self.alpha_bar[timesteps].reshape(-1, 1, 1, 1)
        variance = kept * self.std**2 + 1.0 - kept
        return ((1.0 - kept).sqrt() * (noisy - kept.sqrt() * self.mean) / variance,)


def _exact(config, mean, std, image_shape=(1, 8, 8)):
    model = Diffusion(image_shape, config)
    model.generator = _ExactDenoiser(mean, std, _alpha_bar(config.betas))
    return model


@pytest.mark.parametrize("betas", ["linear", "cosine"])
def test_the_forward_process_is_that_of_the_papers(betas):
    schedule = noise_schedule(DiffusionConfig(betas=betas))
    kept = _alpha_bar(betas)
    np.testing.assert_allclose(schedule.alphas_cumprod.numpy(), kept, rtol=2e-3, atol=1e-6)
    images, noise = torch.rand(6, 1, 4, 4) * 2 - 1, torch.randn(6, 1, 4, 4)
    timesteps = torch.tensor([0, 10, 300, 500, 800, 999])
    expected = [
        math.sqrt(kept[t]) * x.numpy() + math.sqrt(1 - kept[t]) * e.numpy()
        for x, e, t in zip(images, noise, timesteps, strict=True)
    ]
    np.testing.assert_allclose(schedule.add_noise(images, noise, timesteps).numpy(), expected, rtol=0, atol=1e-4)


def test_the_loss_is_zero_for_who_knows_the_noise_and_one_for_who_says_nothing():
    config = DiffusionConfig(channels=(8,))
    objective, images = DenoisingObjective(config), torch.full((256, 1, 8, 8), 0.75)
    knowing = _exact(config, mean=0.5, std=0.0)  # 0.75 of [0, 1] is 0.5 of [-1, 1]
    assert float(objective.terms(knowing, images, 0, _rng()).loss) == pytest.approx(0.0, abs=1e-6)
    saying_nothing = _exact(config, mean=0.5, std=0.0)
    saying_nothing.predict_noise = lambda noisy, _: torch.zeros_like(noisy)
    loss = float(objective.terms(saying_nothing, images, 0, _rng()).loss)
    assert loss == pytest.approx(1.0, abs=4 * math.sqrt(2 / images.numel()))


@pytest.mark.parametrize("betas", ["linear", "cosine"])
@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.0), ("ddim", 1.0), ("ddpm", 0.0)])
def test_samplers_given_the_exact_denoiser_of_gaussian_pixels_recover_their_moments(sampler, eta, betas):
    config = DiffusionConfig(channels=(8,), sampler=sampler, sampling_steps=1000, eta=eta, betas=betas)
    images = _exact(config, 0.3, 0.2).sample(300, _rng())  # of [-1, 1]
    assert float(images.mean()) == pytest.approx(0.65, abs=0.004)
    assert float(images.std()) == pytest.approx(0.1, rel=0.02)


@pytest.mark.parametrize("steps", [10, 50])
def test_few_steps_of_ddim_make_exactly_the_error_that_its_equation_makes(steps):
    """Song et al. 2021, eq. 12, on Gaussian pixels: every step scales the deviation from the mean."""
    kept, std = _alpha_bar("linear"), 0.2
    timesteps = np.arange(1000, 0, -1000 // steps) - 1
    scale = 1.0
    for timestep, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        now, then = kept[timestep], 1.0 if following is None else kept[following]
        variance = now * std**2 + 1.0 - now
        scale *= (
            math.sqrt(then / now) * (1.0 - (1.0 - now) / variance) + math.sqrt((1.0 - then) * (1.0 - now)) / variance
        )
    assert abs(scale - std) > 0.02  # an error worth testing
    images = _exact(DiffusionConfig(channels=(8,), sampling_steps=steps), 0.3, std).sample(300, _rng())
    assert float(images.std()) == pytest.approx(scale / 2, rel=0.02)


@pytest.mark.parametrize("side", [8, 28, 32, 64])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_images_of_every_preset_size_lie_in_the_unit_interval(side, sampler):
    config = DiffusionConfig(channels=(8, 8, 8), attention=(7, 8), sampler=sampler, sampling_steps=2)
    shape = (3, side, side)
    torch.manual_seed(0)
    model = Diffusion(shape, config)
    images = model.sample(2, _rng())
    assert images.shape == (2, *shape)
    assert float(images.min()) >= 0.0
    assert float(images.max()) <= 1.0
    assert torch.equal(images, model.sample(2, _rng()))
    blocks = [type(block).__name__ for block in model.generator.down_blocks]
    sides = [side, side // 2, side // 4]
    assert blocks == ["AttnDownBlock2D" if each in (7, 8) else "DownBlock2D" for each in sides]


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_becomes_a_diffusion_model(preset):
    config = load_config(preset, ["family=ddpm"])
    assert (config.name, config.learning_rates) == (f"{preset}-ddpm", (5e-4, 5e-4))


def test_training_lowers_the_loss(tiny):
    config = tiny("family=ddpm", *SMALL, "training.log_every=1", "training.updates=60", "diffusion.learning_rate=1e-2")
    seen = []
    trained = Trainer(config, load_dataset(config.data), listeners=(seen.append,))
    for _ in range(40):
        trained.update(None)
    losses = [event.metrics["loss"] for event in seen]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])
    assert "sigma" not in seen[-1].metrics


def test_the_network_runs_in_half_precision_too_and_samples_in_full(tiny):
    config = tiny("family=ddpm", *SMALL, "training.precision=bfloat16", "training.updates=1")
    seen = []
    trainer = Trainer(config, load_dataset(config.data), listeners=(seen.append,))
    inside = []
    trainer.model.generator.conv_in.register_forward_hook(lambda *taken: inside.append(taken[-1].dtype))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.update(None)
    assert inside == [torch.bfloat16] + [torch.float32] * 4  # the update, then the sample grid
    changed = trainer.model.state_dict()
    assert all(value.dtype == torch.float32 and torch.isfinite(value).all() for value in changed.values())
    assert any(not torch.equal(value, before[name]) for name, value in changed.items())
    assert np.isfinite(seen[0].metrics["loss"])


def test_a_run_has_no_bound_and_gives_a_model_that_samples_but_has_no_univariate_densities(tmp_path, tiny):
    config = tiny("family=ddpm", *SMALL, "training.updates=2")
    outcome = train(config, load_dataset(config.data), tmp_path)
    assert (outcome.is_finished, outcome.bound) == (True, None)
    loaded, model = load_model(outcome.checkpoint)
    assert loaded == config
    assert model.sample(3, _rng()).shape == (3, 1, 8, 8)
    with pytest.raises(ArtifactError, match="ddpm, whose prior is no product"):
        load_kaem(outcome.checkpoint)


def test_without_the_library_nothing_is_started(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    config = tiny("family=ddpm")
    with pytest.raises(ModuleNotFoundError) as caught:
        check_trainable(config, load_dataset(config.data))
    assert caught.value.name == "diffusers"
    check_trainable(tiny("family=vae"), load_dataset(config.data))


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("diffusion.channels=[12]", "diffusion.channels=[32, 64, 64]"),
        ("diffusion.channels=[8, 8, 8, 8, 8]", "fewer widths"),
        ("diffusion.sampling_steps=7", "1000, 250"),
        ("diffusion.eta=2", "outside [0, 1]"),
        ("diffusion.layers_per_block=0", "layers_per_block = 0"),
        ("diffusion.betas=square", "linear, cosine"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_a_way_out(override, hint):
    with pytest.raises(ConfigError) as caught:
        load_config("digits", ["family=ddpm", override])
    assert hint in str(caught.value)
