"""A dry run counts what a run would train, writes nothing, and prints a file that trains the same run."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cli.main import app
from kaem.config import from_mapping, to_toml
from kaem.errors import ConfigError
from kaem_train.config import DataConfig
from kaem_train.config.settings import Config, load_config, preset_names
from kaem_train.data import load_dataset
from kaem_train.training.dry_run import plan_run
from tests.kaem_train.conftest import TINY


def test_a_plan_counts_every_trained_number_and_adds_up(tiny):
    config = tiny("prior.variant=experts", "prior.frame=global", "posterior.prior_from=0.6", "training.updates=100")
    plan = plan_run(config, load_dataset(config.data))
    # Q = 3, K = 2, G + 1 = 21: coefficients, w_s, tau, logits, m and s, frame.
    assert plan.num_parameters["prior"] == 3 * 2 * 21 + 3 * 2 + 1 + 2 + 2 * 3 * 2 + 3 + 9
    # 3 -> 8 (1 x 1), 8 -> 4 (4 x 4), 4 -> 1 (4 x 4), with biases.
    assert plan.num_parameters["generator"] == 3 * 8 + 8 + 8 * 4 * 16 + 4 + 4 * 16 + 1
    # 1 -> 4 (3 x 3), 64 -> 8, 8 -> 6, with biases.
    assert plan.num_parameters["encoder"] == 4 * 9 + 4 + 64 * 8 + 8 + 8 * 6 + 6
    assert (len(plan.division.dataset.train), plan.division.num_judges) == (1500, 0)
    first, second = plan.update_seconds
    assert plan.total_seconds == pytest.approx(60 * first + 40 * second + plan.start_seconds)


@pytest.mark.parametrize(
    ("prior_from", "bound_from", "parts"), [(0.5, 0.8, (50, 30, 20)), (0.8, 0.5, (50, 30, 20)), (0.5, 0.5, (50, 50))]
)
def test_a_plan_knows_when_a_weighted_bound_begins(tiny, prior_from, bound_from, parts):
    bound = (
        "posterior.kind=weighted_bound",
        f"posterior.prior_from={prior_from}",
        f"posterior.bound_from={bound_from}",
    )
    config = tiny("training.updates=100", *bound)
    plan = plan_run(config, load_dataset(config.data))
    updates = sum(length * seconds for length, seconds in zip(parts, plan.update_seconds, strict=True))
    assert plan.total_seconds == pytest.approx(updates + plan.start_seconds)


def test_a_dry_run_prints_the_configuration_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["train", "digits", "--dry-run", "--seed", "7", *(word for item in TINY for word in ("--set", item))]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "1,500 images to train on, 297 held out" in result.stdout
    assert "final refit" not in result.stdout
    assert from_mapping(Config, tomllib.loads(result.stdout)) == load_config("digits", (*TINY, "training.seed=7"))
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_that_its_time_leaves_out_the_final_refit():
    assignments = (*TINY, "refit.kind=experts")
    words = ["train", "digits", "--dry-run", *(word for item in assignments for word in ("--set", item))]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "1,425 images to train on, 75 set aside to judge the final refit, 297 held out" in result.stdout
    assert "# the final refit of the prior comes on top, not estimated\n" in result.stdout
    assert tomllib.loads(result.stdout)["refit"]["kind"] == "experts"


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_survives_the_way_through_toml(name):
    assert from_mapping(Config, tomllib.loads(to_toml(load_config(name)))) == load_config(name)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_path_survives_the_way_through_toml(path):
    config = DataConfig(source="files", path=path, image_shape=(1, 8, 8))
    assert from_mapping(DataConfig, tomllib.loads(to_toml(config))) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("prior.num_latents=100000000000", "num_latents = 100000000000 is above"),
        ("prior.num_components=100000", "num_components = 100000 is above"),
        ("prior.grid_size=1000000", "grid_size = 1000000 is above"),
        ("prior.high=1000000.0", r"domain \[-8.0, 1000000.0\] is .* times as wide"),
        ("data.image_shape=[1, 1000000, 1000000]", "height = 1000000 is above"),
        ("generator.dense=1000000000", "dense = 1000000000 is above"),
        ("generator.channels=[10000000]", "holds a width above"),
        ("posterior.encoder_channels=[10000000]", "holds a width above"),
        ("posterior.num_proposals=10000000000", "num_proposals = 10000000000 is above"),
        ("training.batch_size=100000000000", "batch_size = 100000000000 is above"),
        ("training.warmup=13", "warmup = 13 is outside"),
        ("training.ema_decay=1.0", "ema_decay = 1.0 is outside"),
        ("training.adam_beta2=1.0", "adam_beta2 = 1.0 is outside"),
    ],
)
def test_sizes_that_no_machine_holds_are_refused_in_one_line(tiny, override, message):
    with pytest.raises(ConfigError, match=message):
        tiny(override)


def test_products_of_sizes_that_no_machine_holds_are_refused(tiny):
    with pytest.raises(ConfigError, match="num_latents x num_components x grid_size"):
        tiny("prior.num_latents=8000", "prior.num_components=8000")
    own = ("prior.variant=experts", "prior.frame=own", "prior.num_latents=4096")
    assert tiny(*own, "prior.num_components=16").prior.num_components == 16
    with pytest.raises(ConfigError, match=r"num_components x num_latents\^2 \(frame = 'own'\) = 285212672 is above"):
        tiny(*own, "prior.num_components=17")
    with pytest.raises(ConfigError, match=r"the frames of the final refit would hold 2\.9e\+08 weights"):
        tiny("prior.num_latents=4096", "refit.kind=experts", "refit.num_experts=[8, 17]")
    with pytest.raises(ConfigError, match="a layer of the generator would hold"):
        tiny("generator.kind=kan", "generator.hidden=[60000, 60000]")
    with pytest.raises(ConfigError, match="one update would decode"):
        tiny("training.batch_size=1000000", "generator.kind=kan", "data.image_shape=[3, 64, 64]")
