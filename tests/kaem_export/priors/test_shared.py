"""Exported components with shared uniforms: D = P, one table each, comonotone as in torch."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import scipy.stats
import torch
from models import VARIANTS, random_model, write_random_checkpoint
from onnx import helper, numpy_helper

import kaem
from kaem.artifact import MANIFEST_KEY, seal
from kaem.noise import uniforms
from kaem_export.certificate import verify
from kaem_export.compile import export
from kaem_export.graph import graph_fingerprint
from kaem_export.proof.oracle import LatentOracle
from kaem_train.checkpoint import load_model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    checkpoint = write_random_checkpoint(folder / "ckpt.pt", *VARIANTS["shared uniforms"])
    export(checkpoint, folder / "model.onnx")
    return checkpoint, folder / "model.onnx"


@pytest.fixture(scope="module")
def sampler(exported):
    with kaem.load(exported[1]) as loaded:
        yield loaded


def test_the_artifact_takes_one_uniform_per_component_and_says_that_it_is_not_collapsed(sampler):
    manifest = sampler.manifest
    assert (manifest.noise_dim, manifest.latent_dim) == (4, 3)
    assert manifest.head["kind"] == "summands"
    assert manifest.prior["u_sharing"] == "per_p"


def test_the_latents_are_the_sums_of_torchs_quantiles_at_the_same_uniforms(exported, sampler):
    _, model = load_model(exported[0])
    noise = uniforms(3, 0, 4000, 4)
    plain = torch.from_numpy(np.mod(noise.astype(np.float64), 1.0).T)  # (P, N)
    z = model.prior.double().cumulative().invert(plain.expand(3, -1, -1))
    # Both are off by less than 1e-3 of latents of deviation 2, each in its own way.
    assert np.abs(sampler.latents(noise) - z.sum(1).T.numpy()).max() < 2e-3


def test_the_latents_are_the_sums_of_the_oracles_quantiles_at_the_same_uniforms(exported, sampler):
    config, model = load_model(exported[0])
    oracle = LatentOracle(model.state_dict(), config.prior)
    noise = uniforms(4, 0, 1000, 4)
    u = np.mod(noise.astype(np.float64), 1.0)
    latents = sampler.latents(noise)
    for q in range(3):
        exact = sum(oracle.quantile(q * 4 + p, u[:, p]) for p in range(4))
        assert np.abs(latents[:, q] - exact).max() < 1e-3


@pytest.mark.parametrize("p", range(4))
def test_every_latent_ascends_in_every_uniform(sampler, p):
    noise = np.full((500, 4), 0.3, np.float32)
    noise[:, p] = np.linspace(0.001, 0.999, 500)
    gain = np.diff(sampler.latents(noise), axis=0)
    assert gain.min() > -1e-6  # what rounding the sum may take
    assert np.all(gain.sum(axis=0) > 0.5)


def test_every_latent_follows_the_law_that_it_has_without_sharing(exported, sampler):
    config, model = load_model(exported[0])
    alone = random_model(*VARIANTS["gaussian independent"])[0].prior
    assert (alone.u_sharing, config.prior.u_sharing) == ("per_qp", "per_p")
    sums = LatentOracle(model.state_dict(), alone)
    latents = sampler.latents(uniforms(5, 0, 20_000, 4)).astype(np.float64)
    for q in range(3):
        assert scipy.stats.kstest(latents[:, q], lambda z, q=q: sums.cdf(q, z)).pvalue > 1e-3


def test_latents_correlate_when_uniforms_are_shared_and_not_otherwise(sampler, tmp_path):
    checkpoint = write_random_checkpoint(tmp_path / "ckpt.pt", *VARIANTS["gaussian independent"])
    export(checkpoint, tmp_path / "model.onnx")
    num = 20_000
    with kaem.load(tmp_path / "model.onnx") as own:
        apart = np.corrcoef(own.latents(uniforms(6, 0, num, 3)).T) - np.eye(3)
    together = np.corrcoef(sampler.latents(uniforms(6, 0, num, 4)).T)
    assert np.abs(apart).max() < 4.5 / np.sqrt(num)
    assert together.min() > 0.3


def _exchange_components(table):
    """Give the first two components of the first latent each other's tables."""
    half = len(table) // 24  # about: the first two of twelve
    table[: 2 * half] = np.roll(table[: 2 * half], half, axis=0)


def _bend(table):
    table *= np.float32(1.01)


@pytest.mark.parametrize("change", [_bend, _exchange_components])
def test_changed_tables_break_the_u_error(exported, tmp_path, change):
    model = onnx.load(exported[1])
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "leaves")
    table = numpy_helper.to_array(tensor).copy()
    change(table)
    tensor.CopyFrom(numpy_helper.from_array(table, "leaves"))
    manifest = json.loads(model.metadata_props[0].value)
    manifest["graph_fingerprint"] = graph_fingerprint(model)
    helper.set_model_props(model, {MANIFEST_KEY: seal(manifest)})
    (tmp_path / "changed.onnx").write_bytes(model.SerializeToString())
    _, figures = verify(tmp_path / "changed.onnx", exported[0])
    assert not {figure.name: figure for figure in figures}["u_error"].is_kept


def test_verify_measures_what_the_manifest_says(exported):
    manifest, figures = verify(exported[1], exported[0])
    assert figures == manifest.certificate
