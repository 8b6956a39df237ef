"""An exported VAE: standard normal latents from one small table, and the decoder of its checkpoint."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import scipy.stats
from baselines import write_baseline_checkpoint

import kaem
from kaem.errors import RequestError
from kaem.noise import uniforms
from kaem_export.certificate import verify
from kaem_export.compile import export
from kaem_export.families.family import Sampling
from kaem_export.options import Options


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    checkpoint = write_baseline_checkpoint(folder / "ckpt.pt", "vae")
    return checkpoint, folder / "model.onnx", export(checkpoint, folder / "model.onnx")


def test_the_certificate_is_kept_and_measured_again(exported):
    checkpoint, artifact, manifest = exported
    assert (manifest.family, manifest.noise_dim, manifest.latent_dim) == ("vae", 3, 3)
    assert all(figure.is_kept for figure in manifest.certificate)
    assert verify(artifact, checkpoint) == (manifest, manifest.certificate)


def test_latents_are_independent_standard_normals(exported):
    with kaem.load(exported[1]) as sampler:
        latents = sampler.latents(uniforms(2, 0, 200_000, 3)).astype(np.float64)
    for latent in latents.T:
        assert scipy.stats.kstest(latent, "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(latents.T) - np.eye(3)).max() < 4.5 / np.sqrt(len(latents))


def test_all_latents_share_one_table(exported):
    leaves = [list(t.dims) for t in onnx.load(exported[1]).graph.initializer if t.name == "leaves"]
    assert leaves == [[35, 9]]


@pytest.mark.parametrize("batch", [(8,), (1, 8)])
def test_an_artifact_for_certain_batch_sizes_keeps_its_certificate_and_has_the_same_images(exported, tmp_path, batch):
    checkpoint, artifact, _ = exported
    manifest = export(checkpoint, tmp_path / "model.onnx", options=Options(batch=batch))
    assert verify(tmp_path / "model.onnx", checkpoint) == (manifest, manifest.certificate)
    with kaem.load(artifact) as free, kaem.load(tmp_path / "model.onnx") as fixed:
        np.testing.assert_array_equal(fixed.sample(19, seed=4), free.sample(19, seed=4))


@pytest.mark.parametrize("options", [{"steps": 5}, {"sampler": "ddim"}])
def test_a_model_of_one_pass_takes_no_steps(exported, tmp_path, options):
    with pytest.raises(RequestError, match="family vae samples in one pass"):
        export(exported[0], tmp_path / "model.onnx", sampling=Sampling(**options))
    assert list(tmp_path.iterdir()) == []
