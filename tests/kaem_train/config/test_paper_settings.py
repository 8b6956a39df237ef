"""Settings that only the paper's presets use: noise of the generator, samples of grid updates, layer normalisation."""

import numpy as np
import pytest
import scipy.special
import torch
from models import write_random_checkpoint

from kaem.errors import ConfigError
from kaem_export.compile import export
from kaem_train.checkpoint import read_checkpoint
from kaem_train.config import GeneratorConfig
from kaem_train.config.settings import load_config
from kaem_train.data import Images
from kaem_train.families.build import build_model, build_objective
from kaem_train.families.kaem import Kaem
from kaem_train.model.generators.generator import KanGenerator
from kaem_train.training.grid_refits import GridRefits

SMALL = (
    *("prior.variant=mixture", "prior.frame=none", "prior.num_latents=3", "prior.num_components=2", "refit.kind=none"),
    *("generator.dense=0", "generator.channels=[4]", "posterior.num_proposals=8", "posterior.num_steps=2"),
)
MODULE = ("generator.kind=module", "generator.module=a:B")


def _rng():
    return torch.Generator().manual_seed(0)


def _config(kind, *assignments):
    return load_config("digits", [*SMALL, f"posterior.kind={kind}", *assignments])


def _model(config):
    torch.manual_seed(1)
    return build_model(config)


def _images(num):
    return torch.rand(num, 1, 8, 8, generator=_rng())


def test_noise_goes_before_the_sigmoid_and_has_the_deviation_that_is_set():
    model = _model(_config("importance", "training.generator_noise=1.5"))
    z = model.prior.sample(1, _rng())
    noise = model.draw_noise(20_000, _rng())
    found = model.decode(z.expand(20_000, -1), noise).double().mean(0).detach().numpy()
    logits = scipy.special.logit(model.decode(z).double().detach().numpy()[0])
    points, weights = np.polynomial.hermite_e.hermegauss(64)
    expected = (scipy.special.expit(logits[..., None] + 1.5 * points) * weights).sum(-1) / weights.sum()
    assert np.abs(found - expected).max() < 5.0 * 0.25 / np.sqrt(20_000) * 4.0
    assert np.abs(expected - scipy.special.expit(logits)).max() < 0.5


@pytest.mark.parametrize("kind", ["importance", "langevin", "tempering"])
def test_noise_changes_what_the_generator_learns_from_and_not_how_latents_are_found(kind):
    losses, levels, images = {}, {}, _images(16)
    for noise in (0.0, 0.8):
        config = _config(kind, f"training.generator_noise={noise}")
        model = _model(config)
        terms = build_objective(config, model).terms(model, images, 0, _rng())
        losses[noise] = float(terms.loss.detach())
        name = "ess" if kind == "importance" else "last_log_likelihood"
        levels[noise] = float(terms.metrics[name])
        assert torch.equal(model.sample(2, _rng()), model.decode(model.prior.sample(2, _rng())))
    assert losses[0.8] != losses[0.0]
    assert levels[0.8] == levels[0.0]


def test_without_noise_nothing_is_drawn():
    model, rng = _model(_config("importance")), _rng()
    assert model.draw_noise(4, rng) is None
    assert torch.equal(rng.get_state(), _rng().get_state())


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["training.generator_noise=-0.1"], "generator_noise = -0.1"),
        (["training.generator_noise=nan"], "generator_noise = nan"),
        (["training.generator_noise=0.1"], "for posteriors without an encoder"),
        (
            [*SMALL, *MODULE, "posterior.kind=importance", "training.generator_noise=0.1"],
            "before a sigmoid",
        ),
        (["training.grid_samples=-1"], "grid_samples = -1"),
        (["generator.layer_norm=true"], "layer_norm = True does not suit kind = 'cnn'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(assignments, message):
    with pytest.raises(ConfigError, match=message):
        load_config("digits", assignments)


class _AtMost64:
    """Gives latents of at most 64 images at a time, as populations of chains do."""

    def __init__(self):
        self.asked = []

    def latents(self, model, images, rng):
        self.asked.append(len(images))
        return model.prior.sample(min(len(images), 64), rng)


@pytest.mark.parametrize(
    ("samples", "asked"), [(0, [300]), (50, [50]), (100, [100, 36]), (10_000, [300, 236, 172, 108, 44])]
)
def test_grids_follow_as_many_latents_as_are_asked_for(samples, asked):
    config = _config("tempering", "prior.refit_interval=5", f"training.grid_samples={samples}")
    posterior, model = _AtMost64(), _model(config)
    changed = GridRefits(config).move_due(model, posterior, Images.whole(_images(300).numpy()), 0, _rng())
    assert posterior.asked == asked
    assert [id(value) for value in changed] == [id(model.prior.bank.coefficients)]


def test_one_hundred_prior_samples_move_the_grid_of_importance_sampling():
    config = _config("importance", "prior.refit_interval=5", "training.grid_samples=100")
    model, images = _model(config), Images.whole(_images(300).numpy())
    before = model.prior.bank.grid.clone()
    assert GridRefits(config).move_due(model, build_objective(config, model), images, 0, _rng())
    assert not torch.equal(model.prior.bank.grid, before)


def _kan(**settings):
    torch.manual_seed(2)
    return KanGenerator(5, (1, 4, 4), GeneratorConfig(kind="kan", hidden=(10, 6), **settings)).double().eval()


def test_layer_normalisation_is_between_layers_and_a_row_by_itself():
    generator = _kan(layer_norm=True)
    with torch.no_grad():
        for norm in generator.norms:
            norm.weight.uniform_(0.5, 2.0)
            norm.bias.normal_()
    x = torch.randn(7, 5, dtype=torch.float64)
    value = generator.layers[0](x)
    for norm, layer in zip(generator.norms, list(generator.layers)[1:], strict=True):
        rows = value.detach().numpy()
        scaled = (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + 1e-5)
        value = layer(torch.from_numpy(scaled) * norm.weight + norm.bias)
    assert torch.allclose(generator.logits(x).flatten(1), value, atol=1e-12)
    assert torch.allclose(generator(x)[3:4], generator(x[3:4]), atol=1e-12)


def test_grids_of_normalised_layers_follow_their_inputs_and_keep_their_functions():
    generator, x = _kan(layer_norm=True), 3.0 * torch.randn(400, 5, dtype=torch.float64)
    before = generator(x).detach()
    changed = generator.refit_grids(x)
    assert len(changed) == 3
    assert float((generator(x).detach() - before).abs().max()) < 0.02
    assert len(dict(_kan().named_parameters())) == len(dict(generator.named_parameters())) - 4


def test_a_normalised_generator_is_exported_and_keeps_its_certificate(tmp_path):
    path = write_random_checkpoint(
        tmp_path / "ckpt.pt", "generator.kind=kan", "generator.hidden=[6]", "generator.layer_norm=true"
    )
    manifest = export(path, tmp_path / "model.onnx")
    assert all(figure.is_kept for figure in manifest.certificate)


def test_checkpoints_from_before_these_settings_are_read_with_what_was_then(tmp_path):
    path = write_random_checkpoint(tmp_path / "ckpt.pt")
    content = torch.load(path, weights_only=True)
    for section, name in (("training", "generator_noise"), ("training", "grid_samples"), ("generator", "layer_norm")):
        del content["config"][section][name]
    torch.save(content, path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.config.training.generator_noise == 0.0
    assert checkpoint.config.training.grid_samples == 0
    assert checkpoint.config.generator.layer_norm is False
    Kaem(checkpoint.config).load_state_dict(checkpoint.model_state)
