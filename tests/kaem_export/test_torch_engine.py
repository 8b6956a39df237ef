"""Promises of the engines that need torch: they compute what the exported graph computes."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from artifacts import write_small_artifact
from exported_graphs import with_batch
from models import VARIANTS, write_random_checkpoint
from onnx import helper

import kaem
from kaem import noise
from kaem.bench.contestant import Contestant, Process
from kaem.bench.engines import Job
from kaem.errors import ArtifactError
from kaem_export.compile import export
from kaem_export.torch_engine import open_engine
from kaem_export.torch_twin import TorchTwin

JOB = Job(engine="torch-eager", source="", threads=1)


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
    onnx.save(model, tmp_path / "erf.onnx")
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
    onnx.save(with_batch(onnx.load(artifact_path), 100), path)
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
    with Process(Contestant(job=job, module="kaem_export.torch_engine")) as process:
        assert process.settings["compiled"] == "yes"
        with kaem.load(path, workers=1) as sampler:
            np.testing.assert_allclose(process.images(1, 7), sampler.sample(1, 7), atol=1e-6)
