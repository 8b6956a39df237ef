"""The presets `paper-*` hold the numbers of Tables 4 and 5 and of Appendix H of the paper."""

from itertools import product
from typing import Any

import pytest

from kaem_train.build import build_model
from kaem_train.settings import Config, load_config, preset_names

GREY = {
    "prior": {"variant": "independent", "basis": "rbf", "base": "relu", "grid_size": 20, "frame": "none"},
    "prior widths": {"num_latents": 81, "num_components": 40},
    "prior grid": {"refit_interval": 100, "refit_decay": 0.999, "grid_update_ratio": 0.05},
    "generator": {"kind": "kan", "hidden": (162,), "basis": "rbf", "grid_size": 20},
    "generator grid": {"refit_interval": 100, "refit_decay": 0.999},
    "posterior": {"kind": "importance", "num_proposals": 100, "resample_below": 0.5, "resampling": "residual"},
    "training": {"updates": 5000, "batch_size": 100, "learning_rate": 1e-3, "sigma": 0.1, "learn_sigma": False},
    "data": {"image_shape": (1, 28, 28), "num_train": 50_000},
}
REFERENCES: dict[str, dict[str, Any]] = {
    "": {"reference": "uniform", "low": 0.0, "high": 1.0},
    "-gaussian": {"reference": "gaussian", "low": -5.0, "high": 5.0, "grid_low": -1.2, "grid_high": 1.2},
    "-none": {"reference": "none", "low": -1.2, "high": 1.2},
}
COLOUR = {
    "prior": {"variant": "mixture", "basis": "morlet", "grid_size": 1, "base": "none", "frame": "none"},
    "prior widths": {"num_latents": 81, "num_components": 40},
    "prior reference": {"reference": "gaussian", "low": -5.0, "high": 5.0},
    "prior grid": {"refit_interval": 0},
    "posterior": {"kind": "langevin", "kernel": "ula", "num_steps": 40, "step_size": 0.005, "adapt_step": False},
    "training": {"updates": 40_000, "batch_size": 100, "learning_rate": 2e-4, "sigma": 0.25, "learn_sigma": False},
}
RADIAL: dict[str, dict[str, Any]] = COLOUR | {
    "prior": {"variant": "mixture", "basis": "rbf", "grid_size": 20, "base": "relu", "frame": "none"},
    "prior grid": {"refit_interval": 100, "refit_decay": 0.999, "grid_update_ratio": 0.05},
    "posterior": COLOUR["posterior"] | {"step_size": 0.01},
    "training": COLOUR["training"] | {"updates": 16_000, "batch_size": 50, "sigma": 0.15},
}
LADDER = {
    "kind": "tempering",
    "num_temperatures": 5,
    "power_start": 2.0,
    "power_end": 0.5,
    "power_cycles": 0,
    "thermodynamic": "steppingstone",
}
WIDTHS = {"svhn": (256, 128, 64), "celeba": (512, 256, 128, 64)}
WEIGHTS = {"svhn": 0.99e6, "celeba": 3.42e6}


def expect(config: Config, table: dict[str, dict[str, Any]]) -> None:
    """Compare what a table names; a key is a section, and perhaps what of it."""
    for words, values in table.items():
        section = getattr(config, words.split()[0])
        assert {name: getattr(section, name) for name in values} == values
    # One constant rate for everything, and nothing that the paper has not.
    training = config.training
    assert training.prior_learning_rate == training.learning_rate
    assert training.adam_beta2 == 0.999
    assert (training.decay_from, training.warmup, training.ema_decay) == (1.0, 0, 0.0)
    assert config.refit.kind == "none"


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("reference", REFERENCES)
def test_grey_presets_are_table_4(name, reference):
    expect(load_config(f"paper-{name}{reference}"), GREY | {"prior reference": REFERENCES[reference]})


@pytest.mark.parametrize("name", WIDTHS)
@pytest.mark.parametrize(("suffix", "numbers"), [("", COLOUR), ("-rbf", RADIAL)])
def test_colour_presets_are_table_5_and_appendix_h(name, suffix, numbers):
    config = load_config(f"paper-{name}{suffix}")
    expect(config, numbers | {"generator": {"kind": "cnn", "channels": WIDTHS[name], "dense": 0, "kernels": ()}})
    generator = build_model(config).generator
    assert sum(weight.numel() for weight in generator.parameters()) == pytest.approx(WEIGHTS[name], rel=0.01)
    thermo = load_config(f"paper-{name}{suffix}-thermo")
    expect(thermo, numbers | {"posterior": numbers["posterior"] | LADDER})
    assert (thermo.data, thermo.prior, thermo.generator) == (config.data, config.prior, config.generator)


def test_every_preset_of_the_paper_is_one_of_these():
    grey = {f"paper-{name}{suffix}" for name, suffix in product(("mnist", "fashion-mnist"), REFERENCES)}
    colour = {f"paper-{name}{a}{b}" for name, a, b in product(WIDTHS, ("", "-rbf"), ("", "-thermo"))}
    assert grey | colour | {"paper-cifar10"} == {name for name in preset_names() if name.startswith("paper-")}
