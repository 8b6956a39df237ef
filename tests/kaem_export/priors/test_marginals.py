"""The densities in a manifest are those of the graph's own output, and say of what they are."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import scipy.stats
import torch
from models import VARIANTS, random_model, write_random_checkpoint
from onnx import helper
from typer.testing import CliRunner

from cli.main import app
from kaem.artifact import MANIFEST_KEY, seal
from kaem.errors import VerificationError
from kaem_export.certificate import verify
from kaem_export.compile import export
from kaem_export.priors.layouts import choose_layout
from kaem_export.priors.manifest_entries import densities
from kaem_train.model.prior.energy_words import describe_energies


def _cdf(densities, q):
    low, high, density = (densities[name][q] for name in ("low", "high", "density"))
    return np.linspace(low, high, len(density) + 1), np.append(0.0, np.cumsum(density) * (high - low) / len(density))


@pytest.mark.parametrize("variant", ["experts in own frames", "one expert in its frame"])
def test_latents_of_gaussians_in_own_frames_are_the_mixture_in_closed_form(variant):
    _, model = random_model(*VARIANTS[variant], amplitude=0.0)
    prior, found = model.prior, densities(choose_layout(model.prior))
    assert found["of"] == "latent"
    mean = prior.frames.offset.double().detach().numpy()
    std = prior.frames.matrix.double().detach().square().sum(-1).sqrt().numpy()
    weights = prior.logits.double().softmax(-1).detach().numpy()
    for q in range(3):
        edges, cdf = _cdf(found, q)
        wanted = (weights * scipy.stats.norm.cdf(edges[:, None], mean[:, q], std[:, q])).sum(1)
        assert np.abs(cdf - wanted).max() < 3e-4


@pytest.mark.parametrize("variant", ["experts in own frames", "experts in a frame", "mixture in a frame", "experts"])
def test_latents_follow_the_priors_own_samples_whatever_the_frame(variant):
    _, model = random_model(*VARIANTS[variant])
    found = densities(choose_layout(model.prior))
    z = model.prior.sample(40_000, torch.Generator().manual_seed(1)).numpy()
    for q in range(3):
        edges, cdf = _cdf(found, q)
        drawn = np.searchsorted(np.sort(z[:, q]), edges, side="right") / len(z)
        assert np.abs(cdf - drawn).max() < 0.0125  # one in a million, by Dvoretzky, Kiefer and Wolfowitz


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("marginals")
    checkpoint = write_random_checkpoint(folder / "ckpt.pt", *VARIANTS["experts in own frames"], amplitude=0.0)
    return checkpoint, folder / "model.onnx", export(checkpoint, folder / "model.onnx")


def _with(exported, target, change):
    model = onnx.load(exported[1])
    manifest = json.loads(model.metadata_props[0].value)
    change(manifest)
    helper.set_model_props(model, {MANIFEST_KEY: seal(manifest)})
    target.write_bytes(model.SerializeToString())
    return target


def test_a_plot_of_another_variable_breaks_the_certificate(exported, tmp_path):
    figures = {figure.name: figure for figure in exported[2].certificate}
    assert figures["latent_distance"].is_kept
    standard = densities(choose_layout(random_model(amplitude=0.0)[1].prior))  # eight identical bells, one might say
    wrong = _with(exported, tmp_path / "wrong.onnx", lambda m: m.update(densities=standard))
    assert not {f.name: f for f in verify(wrong, exported[0])[1]}["latent_distance"].is_kept


def test_info_names_latents_and_says_that_no_energies_are_left(exported, tmp_path):
    runner = CliRunner()
    shown = runner.invoke(app, ["info", str(exported[1])])
    assert shown.exit_code == 0
    assert "latent  0" in shown.output
    assert "All univariate energies are 0" in shown.output

    def age(manifest):  # an artifact of before, whose densities were those in front of the frames
        manifest["densities"].pop("of")
        manifest["prior"].pop("energies")
        manifest["certificate"] = [f for f in manifest["certificate"] if f["name"] != "latent_distance"]

    old = _with(exported, tmp_path / "old.onnx", age)
    assert "frame coordinate  0" in runner.invoke(app, ["info", str(old)]).output


def test_info_shows_a_checkpoint(exported):
    runner = CliRunner()
    shown = runner.invoke(app, ["info", str(exported[0])])
    assert shown.exit_code == 0, shown.output
    assert "latent  2" in shown.output
    assert "a mixture of 4 Gaussians in frames of their own" in shown.output
    content = json.loads(runner.invoke(app, ["info", str(exported[0]), "--json"]).output)
    assert content["densities"] == exported[2].densities
    assert content["checkpoint"] == exported[2].checkpoint_fingerprint


def test_energies_are_called_what_they_are():
    assert "that were trained" in describe_energies(random_model()[1].prior)
    assert "one Gaussian" in describe_energies(
        random_model(*VARIANTS["one expert in its frame"], amplitude=0.0)[1].prior
    )
    assert "the reference, gaussian" in describe_energies(random_model(amplitude=0.0)[1].prior)


def test_energies_that_are_claimed_but_are_not_there_are_named(exported, tmp_path):
    liar = _with(exported, tmp_path / "liar.onnx", lambda m: m["prior"].update(energies="fitted"))
    with pytest.raises(VerificationError, match="says energies is 'fitted'"):
        verify(liar, exported[0])
    assert exported[2].prior["energies"] == "none"
