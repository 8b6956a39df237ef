"""Promises of the engines that need torch: they compute what the exported graph computes."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from artifacts import write_changed, write_small_artifact
from baselines import write_baseline_checkpoint
from exported_graphs import with_batch
from models import VARIANTS, write_random_checkpoint
from onnx import helper

import kaem
from kaem import noise
from kaem.bench.scenarios.engines import EngineJob
from kaem.bench.scenarios.process import Contestant, Process
from kaem.errors import ArtifactError, ConfigError
from kaem_export.compile import export
from kaem_export.families.family import Sampling
from kaem_export.targets.torch_engine import open_engine
from kaem_export.targets.torch_twin import TorchTwin

JOB = EngineJob(engine="torch-eager", source="", threads=1)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_torch_runs_an_exported_graph_to_the_same_images(tmp_path):
    checkpoint = write_random_checkpoint(tmp_path / "ckpt.pt", *VARIANTS["experts in own frames"])
    export(checkpoint, tmp_path / "model.onnx", image_type="uint8")
    twin = TorchTwin(onnx.load(tmp_path / "model.onnx"))
    with kaem.load(tmp_path / "model.onnx", workers=1) as sampler, torch.inference_mode():
        uniform = noise.uniforms(5, 0, 50, sampler.manifest.noise_dim)
        expected, found = sampler.decode(uniform), twin(torch.from_numpy(uniform))[0].numpy()
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found.astype(float), expected.astype(float), atol=1)


def test_a_graph_that_torch_cannot_run_is_refused_with_the_reason(artifact_path, tmp_path, one_thread):
    model = onnx.load(artifact_path)
    model.graph.node.append(helper.make_node("Erf", ["latent"], ["unused"]))
    write_changed(tmp_path / "erf.onnx", model)
    (tmp_path / "rubbish.onnx").write_bytes(b"rubbish")
    for name, said in (("erf.onnx", "Erf"), ("rubbish.onnx", "not a usable ONNX model")):
        with pytest.raises(ArtifactError, match=said):
            open_engine(dataclasses.replace(JOB, source=str(tmp_path / name)))


def test_torch_eager_makes_the_images_of_the_sampler_for_any_number_of_rows(artifact_path, one_thread):
    engine = open_engine(dataclasses.replace(JOB, source=str(artifact_path)))
    with kaem.load(artifact_path, workers=1) as sampler:
        for num in (1, 300):  # one call, and two
            np.testing.assert_allclose(engine.sample(num, 3, 11), sampler.sample(num, 3, 11), atol=1e-6)


def test_a_graph_of_a_fixed_batch_is_filled_up_and_cut_off(artifact_path, tmp_path, one_thread):
    """Batches that divide neither the rows asked for nor those of one chunk."""
    path = tmp_path / "fixed.onnx"
    write_changed(path, with_batch(onnx.load(artifact_path), 100))
    engine = open_engine(dataclasses.replace(JOB, source=str(path)))
    with kaem.load(artifact_path, workers=1) as sampler:
        for num in (1, 100, 530):
            np.testing.assert_allclose(engine.sample(num, 3, 11), sampler.sample(num, 3, 11), atol=1e-6)


def test_a_checkpoint_is_sampled_as_torch_users_would(tmp_path, one_thread):
    path = write_random_checkpoint(tmp_path / "ckpt.pt")
    engine = open_engine(dataclasses.replace(JOB, source=str(path)))
    images = engine.sample(6, 1)
    assert images.shape == (6, 1, 8, 8)
    assert np.isfinite(images).all()
    np.testing.assert_array_equal(images, engine.sample(6, 1))
    assert engine.settings["noise"] == "torch's own"


@pytest.mark.slow
def test_torch_compiled_in_its_own_process_makes_the_same_images(tmp_path):
    path = write_small_artifact(tmp_path / "model.onnx", image_shape=(1, 2, 2))
    job = dataclasses.replace(JOB, engine="torch-compile", source=str(path))
    with Process(Contestant(job=job, module="kaem_export.targets.torch_engine")) as process:
        assert process.settings["compiled"] == "yes"
        with kaem.load(path, workers=1) as sampler:
            np.testing.assert_allclose(process.images(1, 7), sampler.sample(1, 7), atol=1e-6)


@pytest.fixture(scope="module")
def ddim_path(tmp_path_factory):
    """DDIM in 2 steps of a checkpoint that says 20 of DDPM, which lies beside it."""
    folder = tmp_path_factory.mktemp("ddim")
    write_baseline_checkpoint(folder / "ckpt.pt", "ddpm")
    export(folder / "ckpt.pt", folder / "ddim.onnx", sampling=Sampling(sampler="ddim", steps=2))
    return folder / "ddim.onnx"


def test_diffusers_and_torch_sample_as_the_artifact_says(ddim_path, one_thread):
    pytest.importorskip("diffusers")
    job = dataclasses.replace(JOB, source=str(ddim_path))
    pipeline, eager = open_engine(dataclasses.replace(job, engine="diffusers")), open_engine(job)
    assert pipeline.settings["runs"] == "DDIMPipeline of the checkpoint (ddpm)"
    assert pipeline.settings["updates"] == eager.settings["updates"] == "0"
    for engine in (pipeline, eager):
        assert engine.settings["noise"] == "torch's own"
    images = pipeline.sample(3, 5, 2)
    assert images.shape == (3, 1, 8, 8)
    assert images.dtype == np.float32
    np.testing.assert_allclose(images, eager.sample(3, 5, 2), atol=1e-6)  # the same noise, the same two steps


def test_an_artifact_without_its_checkpoint_beside_it_is_refused(ddim_path, tmp_path, one_thread):
    lone = tmp_path / "ddim.onnx"
    lone.write_bytes(ddim_path.read_bytes())
    write_baseline_checkpoint(tmp_path / "ckpt.pt", "ddpm", seed=1)
    with pytest.raises(ArtifactError, match="no checkpoint of the weights"):
        open_engine(dataclasses.replace(JOB, engine="diffusers", source=str(lone)))


def test_diffusers_refuses_what_is_no_diffusion_model(tmp_path, one_thread):
    pytest.importorskip("diffusers")
    checkpoint = write_baseline_checkpoint(tmp_path / "ckpt.pt", "latent_ebm")
    with pytest.raises(ConfigError, match="latent_ebm"):
        open_engine(dataclasses.replace(JOB, engine="diffusers", source=str(checkpoint)))
