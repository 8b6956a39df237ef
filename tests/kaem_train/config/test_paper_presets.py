"""The presets `paper-*` hold the numbers of Tables 4 and 5 and of Appendix H of the paper; a page lists the others."""

import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from kaem_train.config.settings import Config, load_config, preset_names
from kaem_train.families.build import build_model

PAGE = Path(__file__).parents[3] / "docs" / "training.md"
LOST = object()
"""A value that the text of the paper has lost; nothing equals it, so the page must say what stands in its place."""

EVERYWHERE: dict[str, Any] = {
    "prior.num_latents": 81,
    "prior.num_components": 40,
    "prior.frame": "none",
    "training.learn_sigma": False,
    "training.grid_samples": 100,
    "training.adam_beta2": 0.999,
    "training.decay_from": 1.0,
    "training.warmup": 0,
    "training.ema_decay": 0.0,
    "refit.kind": "none",
}
TABLE_4 = EVERYWHERE | {
    "data.image_shape": (1, 28, 28),
    "data.num_train": 50_000,
    "prior.variant": "independent",
    "prior.basis": "rbf",
    "prior.base": "relu",
    "prior.grid_size": 20,
    "prior.u_sharing": "per_p",
    "prior.refit_interval": 100,
    "prior.refit_decay": 0.999,
    "prior.grid_update_ratio": 0.05,
    "generator.kind": "kan",
    "generator.hidden": (162,),
    "generator.basis": "rbf",
    "generator.base": "relu",
    "generator.grid_size": 20,
    "generator.layer_norm": False,
    "generator.refit_interval": 100,
    "generator.refit_decay": 0.999,
    "posterior.kind": "importance",
    "posterior.num_proposals": 100,
    "posterior.resample_below": 0.5,
    "posterior.resampling": "residual",
    "training.updates": 10 * 50_000 // 100,
    "training.batch_size": 100,
    "training.learning_rate": 1e-3,
    "training.prior_learning_rate": 1e-3,
    "training.prior_gradient": "contrastive",
    "training.weight_penalty": 0.0,  # there are no weights
    "training.generator_noise": 0.1,
    "training.sigma": 0.1,
}
REFERENCES: dict[str, dict[str, Any]] = {
    "": {"prior.reference": "uniform", "prior.low": 0.0, "prior.high": 1.0},
    "-gaussian": {"prior.reference": "gaussian", "prior.low": -1.2, "prior.high": 1.2},
    "-none": {"prior.reference": "none", "prior.low": -1.2, "prior.high": 1.2},
}
TABLE_5 = EVERYWHERE | {
    "data.num_train": 20_000,
    "prior.variant": "mixture",
    "prior.basis": "morlet",
    "prior.base": "none",
    "prior.grid_size": 1,  # "N/A": one wavelet per edge
    "prior.reference": "gaussian",
    "prior.low": LOST,
    "prior.high": LOST,
    "prior.refit_interval": 0,
    "generator.kind": "cnn",
    "generator.channels": LOST,
    "posterior.kind": "langevin",
    "posterior.kernel": "ula",
    "posterior.num_steps": 40,
    "posterior.step_size": 0.005,
    "posterior.adapt_step": False,
    "training.updates": 200 * 20_000 // 100,
    "training.batch_size": 100,
    "training.learning_rate": 2e-4,
    "training.prior_learning_rate": 2e-4,
    "training.prior_gradient": "quadrature",
    "training.weight_penalty": LOST,
    "training.generator_noise": 0.25,
    "training.sigma": 0.25,
}
APPENDIX_H = TABLE_5 | {
    "prior.basis": "rbf",
    "prior.base": "relu",
    "prior.grid_size": 20,
    "prior.refit_interval": 100,
    "prior.refit_decay": 0.999,
    "prior.grid_update_ratio": 0.05,
    "posterior.step_size": LOST,
    "training.updates": 40 * 20_000 // 50,
    "training.batch_size": 50,
    "training.generator_noise": LOST,
    "training.sigma": LOST,
}
THERMO = {
    "posterior.kind": "tempering",
    "posterior.num_temperatures": 5,
    "posterior.power_start": 2.0,
    "posterior.power_end": 0.5,
    "posterior.power_cycles": 0,
    "posterior.thermodynamic": "steppingstone",
}
IMAGES: dict[str, dict[str, Any]] = {
    "svhn": {"data.image_shape": (3, 32, 32)},
    "celeba": {"data.image_shape": (3, 64, 64), "data.crop": 0, "data.resize": "linear interpolation"},
}
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"paper-{name}{suffix}": (f"4{',' * bool(suffix)} {suffix.strip('-')}".strip(), TABLE_4 | values)
        for name, (suffix, values) in product(("mnist", "fashion-mnist"), REFERENCES.items())
    },
    **{
        f"paper-{name}{basis}{thermo}": (
            f"{table}{', CelebA' if name == 'celeba' else ''}",
            values | IMAGES[name] | (THERMO if thermo else {}),
        )
        for name, (basis, table, values), thermo in product(
            IMAGES, [("", "5", TABLE_5), ("-rbf", "H", APPENDIX_H)], ["", "-thermo"]
        )
    },
}
WIDTHS = {"svhn": (256, 128, 64), "celeba": (512, 256, 128, 64)}
WEIGHTS = {"svhn": 0.99e6, "celeba": 3.42e6}
WITHOUT_A_SETTING = {
    "noise of the generator, place",
    "negative slope of LeakyReLU",
    "quadrature nodes",
    "ridge of grid updates",
    "start of the prior's functions",
    "clipping of gradients",
    "images for FID and KID",
}


def _resolved(config: Config, setting: str) -> Any:
    section, name = setting.split(".")
    return getattr(getattr(config, section), name)


def _listed() -> set[tuple[str, str]]:
    """Return (setting, table) of every deviation on the page, a table perhaps with one of its columns."""
    part = PAGE.read_text(encoding="utf-8").partition("## Presets of the paper\n")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ") and not line.startswith("| setting")]
    rows = [line.split(" | ") for line in lines]
    found = set()
    for names, tables, *others in rows:
        assert len(others) == 3
        assert all(others)
        column = re.sub(r"^[45H, ]*", "", tables)
        for table in re.findall(r"\b[45H]\b", tables):
            where = f"{table}, {column}" if column else table
            found |= {(name.strip("`| "), where) for name in re.split(r"(?<=`), (?=`)", names)}
    return found


@pytest.mark.parametrize("name", PRESETS)
def test_every_value_of_the_tables_is_resolved_or_listed_as_a_deviation(name):
    table, values = PRESETS[name]
    config = load_config(name)
    deviating = {setting for setting, value in values.items() if _resolved(config, setting) != value}
    places = {table, table.partition(",")[0]}
    assert deviating == {setting for setting, where in _listed() if where in places and "." in setting}


def test_the_page_lists_nothing_else():
    listed = {setting for setting, _ in _listed()}
    assert {setting for setting in listed if not re.fullmatch(r"[a-z_]+\.[a-z_]+", setting)} == WITHOUT_A_SETTING
    known = {where for table, _ in PRESETS.values() for where in (table, table.partition(",")[0])}
    assert {where for _, where in _listed()} <= known


@pytest.mark.parametrize(("name", "suffix"), [*product(WIDTHS, ("", "-rbf", "-thermo", "-rbf-thermo"))])
def test_what_the_paper_has_lost_is_what_the_page_says(name, suffix):
    config = load_config(f"paper-{name}{suffix}")
    assert (config.generator.channels, config.generator.dense, config.generator.kernels) == (WIDTHS[name], 0, ())
    assert (config.prior.low, config.prior.high, config.training.weight_penalty) == (-5.0, 5.0, 1e-4)
    if "-rbf" in suffix:
        training, step = config.training, config.posterior.step_size
        assert (training.sigma, training.generator_noise, step) == (0.15, 0.15, 0.01)


@pytest.mark.parametrize("name", WIDTHS)
def test_generators_have_the_number_of_weights_of_the_authors_code(name):
    generator = build_model(load_config(f"paper-{name}")).generator
    assert sum(weight.numel() for weight in generator.parameters()) == pytest.approx(WEIGHTS[name], rel=0.01)


def test_every_preset_of_the_paper_is_one_of_these():
    assert {*PRESETS, "paper-cifar10"} == {name for name in preset_names() if name.startswith("paper-")}
    cifar, table = load_config("paper-cifar10"), load_config("paper-svhn")
    assert (cifar.data, cifar.prior, cifar.posterior, cifar.training) == (
        table.data,
        table.prior,
        table.posterior,
        table.training,
    )
