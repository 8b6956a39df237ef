"""`kaem eval`: one table and one JSON, from a checkpoint or from what was exported of it."""

import json

import numpy as np
import pytest
import torch
import typer
from models import write_random_checkpoint
from PIL import Image
from typer.testing import CliRunner

from cli.evaluate import evaluate
from kaem.errors import ArtifactError, ConfigError, DataError, RequestError
from kaem_export.compile import export
from kaem_train.checkpoint import read_checkpoint, write_checkpoint
from kaem_train.config.settings import load_config
from kaem_train.data import load_dataset
from kaem_train.evaluation.evaluate import evaluate as measure
from kaem_train.evaluation.models import open_model
from kaem_train.evaluation.options import EvaluationOptions
from kaem_train.evaluation.reals import prepare_reals
from kaem_train.training.trainer import train

SAMPLE_BASED = {
    "frechet_infinity",
    "frechet",
    "kernel_infinity",
    "kernel",
    "precision",
    "recall",
    "frechet_real",
}
MODEL_BASED = {"log_likelihood", "reconstruction_error", "frechet_reconstruction", "active_coordinates"}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """One cache for all: the classifier is trained once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAEM_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A digits model of a few updates, exported too."""
    folder = tmp_path_factory.mktemp("digits")
    config = load_config("digits", ["training.updates=150", "training.seed=1"])
    train(config, load_dataset(config.data), folder)
    export(folder / "ckpt.pt", folder / "model.onnx")
    return folder


def _run(*words):
    app = typer.Typer()
    app.command("eval")(evaluate)
    return CliRunner().invoke(app, [str(word) for word in words])


def _result(*words, to):
    done = _run(*words, "--json", to)
    assert done.exit_code == 0, done.exception
    return done, json.loads(to.read_text())


def test_a_checkpoint_and_its_export_have_the_same_sample_based_figures(folder, tmp_path):
    words = ("-n", 3000, "--sizes", "1000,1500,2000,3000")
    table, trained = _result(folder / "ckpt.pt", *words, to=tmp_path / "a.json")
    _, exported = _result(folder / "model.onnx", *words, to=tmp_path / "b.json")
    assert set(trained["figures"]) == SAMPLE_BASED | MODEL_BASED
    assert set(exported["figures"]) == SAMPLE_BASED
    assert set(exported["missing"]) == MODEL_BASED
    assert all("checkpoint" in reason for reason in exported["missing"].values())
    values = [{name: figure["value"] for name, figure in run["figures"].items()} for run in (trained, exported)]
    # Other noise, the same distribution: re-sampling moves a distance by a few per cent.
    assert values[0]["frechet"] == pytest.approx(values[1]["frechet"], rel=0.08)
    assert values[0]["frechet_infinity"] == pytest.approx(values[1]["frechet_infinity"], rel=0.08)
    assert values[0]["precision"] == pytest.approx(values[1]["precision"], abs=0.1)
    assert values[0]["frechet_real"] == values[1]["frechet_real"] < values[0]["frechet_reconstruction"]
    # What must stand beside a figure.
    assert trained["network"]["name"] == "classifier"
    assert trained["network"]["accuracy"] > 0.95
    assert (trained["real"], trained["num_real"], trained["num_generated"], trained["seed"]) == ("test", 297, 3000, 0)
    assert trained["model_fingerprint"].startswith("sha256:")
    assert trained["weights_fingerprint"] == exported["weights_fingerprint"]
    assert trained["sampling"] == exported["sampling"] == "kaem"
    assert trained["updates"] == exported["updates"] == 150
    assert trained["versions"]["torchmetrics"]
    assert trained["frechet_curve"]["sizes"] == [1000, 1500, 2000, 3000]
    for text in ("FD at infinity", "log-likelihood at least", "classifier sha256:", "297 of the test split of digits"):
        assert text in table.stdout


def test_figures_are_those_of_the_seed_and_of_the_python_function(folder, tmp_path):
    words = (folder / "ckpt.pt", "-n", 300, "--no-floors")
    _, first = _result(*words, to=tmp_path / "a.json")
    _, other = _result(*words, "--seed", 1, to=tmp_path / "b.json")
    options = EvaluationOptions(num=300, with_floors=False)
    model = open_model(folder / "ckpt.pt")
    report = measure(model, prepare_reals(model.data, options))
    for name, figure in first["figures"].items():
        assert report[name] == figure["value"]
    assert other["figures"]["frechet"]["value"] != report["frechet"]
    assert not {"frechet_real", "frechet_reconstruction"} & set(first["figures"])
    with pytest.raises(KeyError):
        report["frechet_reconstruction"]


def test_the_grid_shows_the_first_samples_that_were_measured_unselected_and_upright(folder, tmp_path):
    done = _run(folder / "model.onnx", "-n", 200, "--grid", tmp_path / "grid.png")
    assert done.exit_code == 0, done.exception
    model = open_model(folder / "model.onnx")
    with model.sampler:
        images = np.concatenate(list(model.draw(200, 0)))
    sheet = np.asarray(Image.open(tmp_path / "grid.png"))
    tile, scale = 8 * 5, 5
    for index in (0, 1, 8, 63):
        top, left = 4 + index // 8 * (tile + 4), 4 + index % 8 * (tile + 4)
        assert (sheet[top : top + tile : scale, left : left + tile : scale] == images[index, 0]).all()


def test_a_model_without_encoder_says_which_figures_it_lacks(tmp_path):
    write_random_checkpoint(tmp_path / "ckpt.pt", "posterior.kind=importance")
    _, result = _result(tmp_path / "ckpt.pt", "-n", 100, "--real", "train", "--num-real", 90, to=tmp_path / "a.json")
    assert set(result["missing"]) == MODEL_BASED - {"log_likelihood"}
    assert "the prior" in result["figures"]["log_likelihood"]["detail"]
    assert (result["real"], result["num_real"]) == ("train", 90)
    assert any("90 real images do not determine" in note for note in result["notes"])


def test_a_prior_fitted_without_an_encoder_has_no_likelihood(tmp_path):
    write_random_checkpoint(tmp_path / "ckpt.pt")
    _, result = _result(tmp_path / "ckpt.pt", "-n", 60, "--no-floors", to=tmp_path / "a.json")
    assert set(result["missing"]) == MODEL_BASED
    assert "without an encoder" in result["missing"]["log_likelihood"]


def test_an_outlier_lowers_the_bound_and_leaves_it_a_number(folder, tmp_path):
    checkpoint = read_checkpoint(folder / "ckpt.pt")
    _, usual = _result(folder / "ckpt.pt", "-n", 60, "--no-floors", to=tmp_path / "a.json")
    checkpoint.posterior_state["layers.5.bias"][:8] += 100.0  # the encoder's means, outside the domain [-8, 8]
    write_checkpoint(tmp_path / "ckpt.pt", checkpoint)
    _, result = _result(tmp_path / "ckpt.pt", "-n", 60, "--no-floors", to=tmp_path / "b.json")
    value, before = (report["figures"]["log_likelihood"]["value"] for report in (result, usual))
    assert -1e6 < value < before - 1000.0


def test_mistakes_are_named_before_any_work_is_done(folder, tmp_path):
    ckpt = folder / "ckpt.pt"
    np.savez(tmp_path / "rgb.npz", images_train=np.zeros((20, 32, 32, 3), np.uint8))
    cases = [
        ((tmp_path / "none.pt",), ArtifactError, "no checkpoint"),
        ((ckpt, "--data", tmp_path / "rgb.npz"), DataError, "(32, 32, 3)"),
        ((ckpt, "--data", tmp_path / "nothing.npz"), DataError, "no file"),
        ((ckpt, "-n", "5"), RequestError, "--num is 5"),
        ((ckpt, "--num-real", "1"), RequestError, "--num-real is 1"),
        ((ckpt, "--sizes", "100,abc,300"), RequestError, "no list of numbers"),
        ((ckpt, "--sizes", "100,200"), RequestError, "line in 1/n"),
        ((ckpt, "-n", "200", "--sizes", "100,200,300"), RequestError, "300"),
        ((ckpt, "--json", tmp_path / "no" / "a.json"), RequestError, "cannot write"),
        ((ckpt, "--grid", tmp_path / "a.jpg"), RequestError, "suffix"),
        ((ckpt, "--seed", "-1"), RequestError, "seed -1"),
    ]
    for words, kind, text in cases:
        error = _run(*words).exception
        assert isinstance(error, kind), (words, error)
        assert text in error.message
        assert "evaluation" not in error.message


def test_a_set_of_another_shape_is_refused_by_the_function_too(folder, tmp_path):
    from kaem_train.config import DataConfig

    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "small.npz",
        images_train=rng.integers(0, 256, (60, 6, 6), dtype=np.uint8),
        images_test=rng.integers(0, 256, (30, 6, 6), dtype=np.uint8),
        labels_train=np.arange(60) % 2,
        labels_test=np.arange(30) % 2,
    )
    config = DataConfig(source="files", path=str(tmp_path / "small.npz"), image_shape=(1, 6, 6))
    reals = prepare_reals(config, EvaluationOptions(num=50))
    with pytest.raises(DataError, match="draws images of shape"):
        measure(open_model(folder / "ckpt.pt"), reals)


def test_an_artifact_that_names_no_data_asks_for_some(artifact_path, tmp_path):
    assert isinstance(_run(artifact_path).exception, ConfigError)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (150, 8, 8), dtype=np.uint8)
    labels = rng.integers(0, 3, 150)
    np.savez(
        tmp_path / "a.npz",
        images_train=images[:100],
        images_test=images[100:],
        labels_train=labels[:100],
        labels_test=labels[100:],
    )
    done, result = _result(artifact_path, "--data", tmp_path / "a.npz", "-n", 60, to=tmp_path / "a.json")
    assert result["data"] == str(tmp_path / "a.npz")
    assert "not measured: log likelihood" in done.stdout


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [
        ("ckpt.pt", "gpu", "'gpu' is no device"),
        ("ckpt.pt", "cuda", "torch sees no NVIDIA GPU"),
        ("model.onnx", "cuda:1", "an exported file is evaluated on the first GPU"),
    ],
)
def test_a_device_that_cannot_be_had_is_refused(folder, name, device, message):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    refused = _run(folder / name, "--device", device).exception
    assert isinstance(refused, ConfigError)
    assert message in refused.message
    assert refused.hint
