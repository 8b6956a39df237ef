"""The configuration is strict, every refusal says what to do, and later sources win."""

import re
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from itertools import product

import pytest

from kaem.config import from_mapping, to_mapping
from kaem.errors import ConfigError
from kaem_train.config.settings import Config, load_config, preset_names


def test_the_presets_are_packaged_and_valid():
    assert {"celeba", "digits", "fashion-mnist", "mnist", "svhn"} <= set(preset_names())
    for name in preset_names():
        config = load_config(name)
        assert config.name == name
        assert from_mapping(Config, to_mapping(config)) == config


def test_a_file_wins_over_its_preset_and_an_override_over_both(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('preset = "digits"\nname = "mine"\n[training]\nseed = 5\nbatch_size = 7\n')
    config = load_config(str(path), ["training.seed=6"])
    assert (config.name, config.training.seed, config.training.batch_size) == ("mine", 6, 7)
    assert config.prior == load_config("digits").prior


@pytest.mark.parametrize("name", ["celeba", "digits", "fashion-mnist", "mnist", "svhn"])
def test_a_strict_preset_has_one_energy_per_latent_and_is_otherwise_its_parent(name):
    strict, parent = load_config(f"{name}-strict"), load_config(name)
    assert (strict.prior.variant, strict.prior.num_components, strict.prior.frame) == ("mixture", 1, "global")
    assert strict.refit.kind == "none"
    assert strict.posterior == replace(parent.posterior, kind="amortized")
    same = {name: getattr(parent, name) for name in ("name", "prior", "refit", "posterior")}
    assert replace(strict, **same) == parent


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.learning_rte=1", "did you mean training.learning_rate"),
        ("trainin.seed=1", "did you mean training"),
        ("training.seed=-1", "seed = -1"),
        ("training.seed=1.5", "whole number"),
        ("training.updates=0", "updates = 0"),
        ("training.learning_rate=0", "learning_rate = 0"),
        ("training.sigma=nan", "sigma = nan"),
        ("training.sigma=1e-30", "sigma = 1e-30 is below 1e-06"),
        ("training.sigma=1e30", "sigma = 1e+30 is above"),
        ("latent_ebm.prior_step_size=1e300", "prior_step_size = 1e+300 is above"),
        ("training.weight_penalty=1e300", "weight_penalty = 1e+300 is above"),
        ("training.decay_from=2", "decay_from = 2"),
        ("prior.variant=mixtur", "did you mean 'mixture'"),
        ("prior.reference=uniform", "prior.low=0"),
        ("prior.reference=none", "set prior.low and prior.high"),
        ("prior.reference=lognormal", "prior.low=0.001 prior.high=8"),
        ("prior.u_sharing=per_q", "one of: per_qp, per_p"),
        ("training.weight_penalty=-1", "weight_penalty = -1"),
        ("training.weight_penalty=nan", "weight_penalty = nan"),
        ("prior.low=-3.5", "reaches outside the domain"),
        ("prior.frame=local", "one of: none, global"),
        ("prior.grid_size=1", "grid_size = 1"),
        ("prior.basis=bsplin", "did you mean 'bspline'"),
        ("prior.refit_interval=-1", "refit_interval = -1"),
        ("prior.refit_decay=0", "refit_decay = 0"),
        ("prior.grid_update_ratio=2", "outside [0, 1]"),
        ("generator.basis=wavelet", "morlet"),
        ("generator.base=sin", "silu"),
        ("prior.num_latents=0", "num_latents = 0"),
        ("generator.channels=[8, 8]", r"need 1"),
        ("generator.channels=[0]", "below 1"),
        ("data.image_shape=[1, 30, 30]", "does not suit"),
        ("data.image_shape=[8, 8]", "channels, height, width"),
        ("data.path=x.npz", "data.source=files"),
        ("data.crop=-1", "crop = -1"),
        ("data.num_train=-1", "num_train = -1"),
        ("data.crop=6", "data.resize=lanczos"),
        ("data.resize=nearest", "lanczos"),
        ("posterior.resample_below=1.5", "outside"),
        ("posterior.encoder_channels=[]", "positive widths"),
        ("posterior.kind=mcmc", "importance"),
        ("posterior.step_size=0", "step_size = 0"),
        ("posterior.num_steps=0", "num_steps = 0"),
        ("posterior.num_temperatures=1", "num_temperatures = 1"),
        ("posterior.target_acceptance=1", "0.574"),
        ("posterior.power_cycles=-1", "power_cycles = -1"),
        ("name=a/b", "cannot name a folder"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_a_way_out(override, message):
    with pytest.raises(ConfigError) as caught:
        load_config("digits", [override])
    assert message in str(caught.value)


_ODD_VALUES = (
    *("nan", "-inf", "-1", "0", "1e-300", "1e300", "true", "abc", "{a = 1}", "[nan]", "[1e9]", "2020-01-01"),
    *("1" + 400 * "0", 5000 * "1", "0x" + 4000 * "f", "[" * 2000),
)


@pytest.mark.parametrize("section", [field.name for field in fields(Config)])
def test_every_setting_takes_any_value_or_refuses_it_as_a_setting(section):
    value = getattr(load_config("digits"), section)
    names = [f"{section}.{field.name}" for field in fields(value)] if is_dataclass(value) else [section]
    for name, text in product(names, _ODD_VALUES):
        with suppress(ConfigError):
            load_config("digits", [f"{name}={text}"])


def test_a_file_with_a_number_of_thousands_of_digits_is_refused(tmp_path):
    path = tmp_path / "long.toml"
    path.write_text(f'preset = "digits"\n[training]\nseed = {5000 * "1"}\n')
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(str(path))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("refit.correction_steps=10000000000", "above 1000000"),
        ("latent_ebm.hidden=100000000", "above 65536"),
        ("latent_ebm.prior_steps=100000000", "above 1000000"),
        ("diffusion.channels=[80000000]", "above 65536"),
        ("diffusion.noise_steps=100000000", "above 1000000"),
        ("diffusion.layers_per_block=1000", "above 64"),
    ],
)
def test_sizes_far_beyond_use_are_refused_before_they_meet_the_memory(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config("digits", [override])


def test_an_encoder_without_bounds_needs_a_reference_without_bounds():
    bounded = ["prior.variant=mixture", "prior.frame=none", "prior.reference=uniform"]
    bounded += [f"prior.{name}" for name in ("low=0", "high=1", "grid_low=0", "grid_high=1")]
    with pytest.raises(ConfigError, match=r"posterior\.kind=importance"):
        load_config("digits", bounded)
    assert load_config("digits", [*bounded, "posterior.kind=importance"]).prior.high == 1.0


def test_the_encoder_takes_a_learnable_gaussian_and_refuses_a_lognormal():
    settings = ["prior.variant=mixture", "prior.frame=none"]
    config = load_config("digits", [*settings, "prior.reference=learnable_gaussian"])
    assert (config.posterior.kind, config.prior.reference) == ("amortized", "learnable_gaussian")
    settings += ["prior.reference=lognormal", "prior.low=0.001", "prior.high=8"]
    settings += ["prior.grid_low=0.001", "prior.grid_high=8"]
    with pytest.raises(ConfigError, match=r"posterior\.kind=importance"):
        load_config("digits", settings)
    assert load_config("digits", [*settings, "posterior.kind=langevin"]).prior.reference == "lognormal"


@pytest.mark.parametrize(
    ("overrides", "hint"),
    [
        (["prior.variant=experts", "prior.base=silu"], "set prior.base=none"),
        (
            ["prior.variant=experts", "prior.frame=own", "prior.refit_interval=9"],
            "prior.frame=global",
        ),
        (
            ["prior.reference=uniform", "prior.basis=fourier", "prior.refit_interval=9", "posterior.kind=importance"]
            + [f"prior.{name}" for name in ("low=0", "high=1", "grid_low=0", "grid_high=1")],
            "prior.refit_interval=0",
        ),
        (["prior.variant=independent", "prior.frame=global"], "prior.num_components=1"),
        (["prior.frame=global", "posterior.kind=importance"], "posterior.kind=amortized"),
        (["prior.reference=learnable_gaussian", "prior.low=-1", "prior.grid_low=-1"], "prior.low=-6 and prior.high=6"),
        (["prior.variant=independent", "prior.train_proportions=false"], "prior.variant=mixture"),
        (["prior.variant=independent", "training.weight_penalty=1e-4"], "training.weight_penalty=0"),
        (["prior.train_proportions=false", "training.weight_penalty=1e-4"], "prior.train_proportions=true"),
        (["generator.kind=kan", "generator.channels=[]", "generator.latent_concat=true"], "generator.kind=cnn"),
        (
            ["prior.variant=experts", "prior.reference=none", "posterior.kind=importance"]
            + [f"prior.{name}" for name in ("low=-1", "high=1", "grid_low=-1", "grid_high=1")],
            "prior.reference=gaussian",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused_with_a_way_out(overrides, hint):
    with pytest.raises(ConfigError, match=re.escape(hint)):
        load_config("digits", ["prior.frame=none", "prior.variant=mixture", *overrides])


def test_an_unknown_preset_lists_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match=r"celeba, celeba-strict, digits, .*, svhn, svhn-strict"):
        load_config("digit")
    path = tmp_path / "mine.toml"
    path.write_text('preset = "digit"')
    with pytest.raises(ConfigError, match=r"celeba, celeba-strict, digits, .*, svhn, svhn-strict"):
        load_config(str(path))
