"""An exported latent EBM: its chains are those of theory and of torch, whatever batch a row is in."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from baselines import random_baseline, write_baseline_checkpoint
from heads import run_written
from onnx import helper, numpy_helper
from scipy.special import ndtri

import kaem
from kaem.artifact import MANIFEST_KEY, seal
from kaem.errors import ConfigError, RequestError, VerificationError
from kaem.noise import uniforms
from kaem_export.certificate import verify
from kaem_export.compile import export
from kaem_export.families.family import Sampling
from kaem_export.families.latent_ebm import write_chains
from kaem_export.graph import graph_fingerprint
from kaem_train.config import LatentEbmConfig
from kaem_train.families.latent_ebm import EnergyPrior


def _ends(prior, uniform, num_steps, step_size):
    chain = LatentEbmConfig(prior_steps=num_steps, prior_step_size=step_size)
    written = run_written(lambda op, source: [write_chains(op, source, prior, chain).latent], {"uniform": uniform})
    return written[0].astype(np.float64)


def _linear_tilt(tilt):
    """An energy prior with f(z) = tilt . z, made of kinks: leaky(x) - leaky(-x) = 1.2 x, twice."""
    prior = EnergyPrior(len(tilt), LatentEbmConfig(hidden=2)).requires_grad_(False)
    signs = torch.tensor([1.0, -1.0])
    prior.layers[0].weight.copy_(signs[:, None] * torch.tensor(tilt)[None, :])
    prior.layers[2].weight.copy_(signs[:, None] * signs[None, :] / 1.2)
    prior.layers[4].weight.copy_(signs[None, :] / 1.2)
    for layer in (0, 2, 4):
        prior.layers[layer].bias.zero_()
    return prior


@pytest.mark.parametrize(("num_steps", "step_size"), [(1, 0.4), (25, 0.4), (8, 1.0)])
def test_chains_of_a_quadratic_energy_have_the_mean_and_variance_of_their_closed_form(num_steps, step_size):
    """log p = tilt . z - |z|^2 / 2: a step contracts by 1 - s^2/2 towards the tilt and adds the variance s^2."""
    tilt, rate, num = np.array([1.0, -2.0, 0.0]), 0.5 * step_size**2, 40_000
    z = _ends(_linear_tilt([1.0, -2.0, 0.0]), uniforms(4, 0, num, 3 * (1 + num_steps)), num_steps, step_size)
    left = (1.0 - rate) ** num_steps
    limit = 1.0 / (1.0 - rate / 2.0)
    variance = limit + left**2 * (1.0 - limit)
    assert np.abs(z.mean(0) - (1.0 - left) * tilt).max() < 4.5 * np.sqrt(variance / num)
    assert np.abs(z.var(0) / variance - 1.0).max() < 4.5 * np.sqrt(2.0 / num)
    assert np.abs(np.corrcoef(z.T) - np.eye(3)).max() < 4.5 / np.sqrt(num)


def test_every_step_has_the_normals_of_its_own_uniforms_in_order():
    steps, rate = 5, 0.08
    uniform = uniforms(5, 0, 200, 2 * (1 + steps))
    xi = ndtri(np.mod(uniform.astype(np.float64), 1.0)).reshape(200, 1 + steps, 2)
    expected = xi[:, 0]
    for step in range(steps):
        expected = expected + rate * (np.array([0.5, 0.25]) - expected) + 0.4 * xi[:, 1 + step]
    assert np.abs(_ends(_linear_tilt([0.5, 0.25]), uniform, steps, 0.4) - expected).max() < 1e-3


def test_chains_end_where_those_of_torch_do():
    _, model = random_baseline("latent_ebm")
    uniform = uniforms(6, 0, 100, 3 * 31)
    xi = torch.from_numpy(ndtri(np.mod(uniform.astype(np.float64), 1.0))).reshape(100, 31, 3)
    prior = model.prior.double()
    z = xi[:, 0]
    tilted = z
    for step in range(30):
        at = z.clone().requires_grad_(True)
        (score,) = torch.autograd.grad(prior.log_density(at).sum(), at)
        z = z + 0.08 * score + 0.4 * xi[:, 1 + step]
        tilted = tilted - 0.08 * tilted + 0.4 * xi[:, 1 + step]
    assert float((z - tilted).abs().mean()) > 0.1  # the energy matters
    errors = np.abs(_ends(prior, uniform, 30, 0.4) - z.numpy()).max(1)
    assert np.quantile(errors, 0.8) < 1e-3  # the tables' error; the rest may have passed a kink on its other side


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latent-ebm")
    checkpoint = write_baseline_checkpoint(folder / "ckpt.pt", "latent_ebm")
    manifest = export(checkpoint, folder / "model.onnx", image_type="uint8")
    return checkpoint, folder / "model.onnx", manifest


def test_the_manifest_tells_the_family_the_steps_and_a_kept_certificate(exported):
    checkpoint, artifact, manifest = exported
    assert (manifest.family, manifest.noise_dim, manifest.latent_dim) == ("latent_ebm", 3 * 61, 3)
    assert manifest.prior["steps"] == 60
    figures = {figure.name: figure for figure in manifest.certificate}
    assert {"u_error", "score", "tail_error", "chain_parity", "image_parity", "row_difference"} < set(figures)
    assert all(figure.is_kept for figure in figures.values())
    assert verify(artifact, checkpoint) == (manifest, manifest.certificate)


def test_images_and_latents_are_those_of_the_index_alone(exported):
    with kaem.load(exported[1], workers=2) as sampler:
        whole = sampler.sample(40, seed=3)
        assert whole.std() > 1
        for start, num in ((0, 1), (7, 1), (5, 13), (39, 1)):
            assert np.array_equal(sampler.sample(num, seed=3, start=start), whole[start : start + num])


def test_steps_are_those_asked_for(exported, tmp_path):
    manifest = export(exported[0], tmp_path / "short.onnx", sampling=Sampling(steps=7))
    assert (manifest.noise_dim, manifest.prior["steps"]) == (3 * 8, 7)
    assert verify(tmp_path / "short.onnx", exported[0])[1] == manifest.certificate


def _altered(artifact, target, *, graph=lambda model: None, manifest=lambda content: None):
    model = onnx.load(artifact)
    graph(model)
    content = json.loads(model.metadata_props[0].value)
    manifest(content)
    content["graph_fingerprint"] = graph_fingerprint(model)
    helper.set_model_props(model, {MANIFEST_KEY: seal(content)})
    target.write_bytes(model.SerializeToString())
    return target


@pytest.mark.parametrize(("name", "factor"), [("back_2", 1.01), ("const_0.4_f32", 1.001), ("weight_1", 1.01)])
def test_a_changed_chain_breaks_its_parity(exported, tmp_path, name, factor):
    def bend(model):
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(numpy_helper.to_array(tensor) * np.float32(factor)), name))

    _, figures = verify(_altered(exported[1], tmp_path / "bent.onnx", graph=bend), exported[0])
    assert [figure.name for figure in figures if not figure.is_kept] == ["chain_parity"]


@pytest.mark.parametrize(
    ("key", "value", "said"), [("steps", 30, "noise_dim"), ("steps", "many", "steps is 'many'"), ("hidden", 5, "prior")]
)
def test_a_manifest_that_lies_of_its_chains_is_caught(exported, tmp_path, key, value, said):
    liar = _altered(exported[1], tmp_path / "liar.onnx", manifest=lambda content: content["prior"].update({key: value}))
    with pytest.raises(VerificationError, match=said):
        verify(liar, exported[0])


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"sampler": "ddim"}, RequestError, "--sampler ddim"),
        ({"steps": 0}, RequestError, "steps is 0"),
        ({"steps": 1_000_000}, ConfigError, "3,000,003 uniforms"),
    ],
)
def test_options_that_do_not_fit_are_refused_and_leave_no_file(exported, tmp_path, options, error, said):
    with pytest.raises(error, match=said):
        export(exported[0], tmp_path / "model.onnx", sampling=Sampling(**options))
    assert list(tmp_path.iterdir()) == []
