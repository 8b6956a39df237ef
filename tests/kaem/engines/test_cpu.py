from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from artifacts import write_sealed, write_small_artifact

import kaem
from kaem.artifact import Manifest
from kaem.engines.providers import GPU_ROWS
from kaem.errors import ArtifactError, BackendError, ConfigError, RequestError
from kaem.noise import uniforms


def test_sample_is_the_graph_applied_to_the_documented_noise(artifact_path):
    import onnxruntime

    session = onnxruntime.InferenceSession(artifact_path, providers=["CPUExecutionProvider"])
    (expected,) = session.run(["image"], {"uniform": uniforms(9, 100, 70, 5)})
    with kaem.load(artifact_path) as sampler:
        assert np.array_equal(sampler.sample(70, 9, 100), expected)


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_the_number_of_workers_does_not_show_in_the_bits(artifact_path, workers):
    with kaem.load(artifact_path, workers=1) as one, kaem.load(artifact_path, workers=workers) as many:
        assert np.array_equal(one.sample(1000, 1), many.sample(1000, 1))
        assert one.numerics_id == many.numerics_id


def test_many_threads_may_share_one_sampler(artifact_path):
    with kaem.load(artifact_path) as sampler, ThreadPoolExecutor(8) as pool:
        expected = sampler.sample(300, 4)
        for images in pool.map(lambda _: sampler.sample(300, 4), range(24)):
            assert np.array_equal(images, expected)


def test_latents_are_the_graphs_second_output(artifact_path):
    uniform = uniforms(0, 0, 10, 5)
    with kaem.load(artifact_path) as sampler:
        assert np.array_equal(sampler.latents(uniform), uniform * np.float32(4))
        images, latents = sampler.decode_with_latents(uniform)
        assert np.array_equal(images, sampler.decode(uniform))
        assert np.array_equal(latents, uniform * np.float32(4))


def test_another_artifact_has_another_numerics_id(artifact_path, tmp_path):
    other = write_small_artifact(tmp_path / "other.onnx", seed=3)
    with kaem.load(artifact_path) as one, kaem.load(other) as two:
        assert one.numerics_id != two.numerics_id


@pytest.mark.parametrize(
    "uniform",
    [
        np.zeros((4, 4), np.float32) + 0.1,
        np.zeros(5, np.float32) + 0.1,
        np.zeros((0, 5), np.float32),
        np.zeros((4, 5), np.int64),
        np.full((4, 5), np.nan, np.float32),
        np.full((4, 5), np.inf, np.float32),
        np.full((4, 5), 1.0, np.float32),
        np.full((4, 5), -0.6, np.float32),
    ],
)
def test_uniforms_of_a_wrong_shape_type_or_range_are_refused(artifact_path, uniform):
    with kaem.load(artifact_path) as sampler, pytest.raises(RequestError, match="uniform"):
        sampler.decode(uniform)


def test_more_samples_than_memory_are_refused_before_anything_is_allocated(artifact_path):
    with kaem.load(artifact_path) as sampler, pytest.raises(RequestError, match="GiB"):
        sampler.sample(1 << 50, 0)


def test_a_range_error_of_a_stream_is_raised_at_the_call(artifact_path):
    with kaem.load(artifact_path) as sampler, pytest.raises(RequestError):
        sampler.stream(0, 0)


def test_a_closed_sampler_says_so(artifact_path):
    sampler = kaem.load(artifact_path)
    sampler.close()
    with pytest.raises(RequestError, match="closed"):
        sampler.sample(1, 0)


def test_a_missing_file_a_folder_and_a_file_of_rubbish_are_told_apart(tmp_path):
    with pytest.raises(ArtifactError, match="no model file"):
        kaem.load(tmp_path / "none.onnx")
    with pytest.raises(ArtifactError, match="not a file"):
        kaem.load(tmp_path)
    (tmp_path / "rubbish.onnx").write_bytes(os.urandom(1000))
    with pytest.raises(ArtifactError, match="not a usable ONNX model"):
        kaem.load(tmp_path / "rubbish.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(ArtifactError):
        kaem.load(tmp_path / "empty.onnx")


def test_a_truncated_artifact_is_refused(artifact_path, tmp_path):
    content = artifact_path.read_bytes()
    for length in (len(content) // 2, len(content) - 1):
        (tmp_path / "cut.onnx").write_bytes(content[:length])
        with pytest.raises(ArtifactError):
            kaem.load(tmp_path / "cut.onnx")


def test_a_model_that_keeps_weights_in_another_file_is_refused(artifact_path, tmp_path, monkeypatch):
    import onnx

    model = onnx.load(artifact_path)
    onnx.save(model, tmp_path / "split.onnx", save_as_external_data=True, location="weights.bin", size_threshold=10)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match="changed after its export"):
        kaem.load("split.onnx")
    model = onnx.load(tmp_path / "split.onnx", load_external_data=False)
    manifest = Manifest(family="kaem", name="split", noise_dim=5, latent_dim=5, image_shape=(1, 8, 8))
    write_sealed(tmp_path / "sealed.onnx", model, manifest)
    with pytest.raises(ArtifactError, match="not a usable ONNX model"):
        kaem.load("sealed.onnx")


def test_numpys_own_integers_are_whole_numbers_like_any_other(artifact_path):
    with kaem.load(artifact_path) as sampler:
        expected = sampler.sample(200, 5, 100)
        assert np.array_equal(sampler.sample(np.uint8(200), np.int64(5), np.uint8(100)), expected)
        streamed = [chunk.images for chunk in sampler.stream(np.uint8(200), 5, np.uint8(100))]
        assert np.array_equal(np.concatenate(streamed), expected)
        with pytest.raises(RequestError, match="GiB"):
            sampler.sample(np.int64(1 << 56), 0)


def test_a_tiny_negative_uniform_stays_at_the_top_of_the_distribution(artifact_path):
    with kaem.load(artifact_path) as sampler:
        assert np.all(sampler.latents(np.full((1, 5), -1e-60)) < 0)
        assert np.all(sampler.latents(np.full((1, 5), 1e-60)) == 0)


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, "2", 100_000, 1 << 70])
def test_workers_are_a_positive_whole_number(artifact_path, workers):
    with pytest.raises(RequestError, match="workers"):
        kaem.load(artifact_path, workers=workers)


def test_a_manifest_that_contradicts_its_graph_is_refused(tmp_path):
    lie = Manifest(family="kaem", name="lie", noise_dim=5, latent_dim=5, image_shape=(1, 9, 9))
    path = write_small_artifact(tmp_path / "lie.onnx", manifest=lie)
    with pytest.raises(ArtifactError, match="its manifest says"):
        kaem.load(path)


def test_a_provider_is_never_replaced_by_another(artifact_path):
    with pytest.raises(ConfigError, match="unknown provider"):
        kaem.load(artifact_path, provider="tpu")
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this environment has a CUDA build of ONNX Runtime")
    with pytest.raises(BackendError, match="CUDAExecutionProvider"):
        kaem.load(artifact_path, provider="cuda")


def test_loading_a_model_leaves_the_callers_floating_point_mode_alone(artifact_path):
    code = (
        "import sys, kaem, numpy as np\n"
        "with kaem.load(sys.argv[1]) as sampler:\n    sampler.sample(3, 0)\n"
        "print(np.float32(1e-30) * np.float32(1e-10) > 0)"  # a subnormal number, unless it is flushed to zero
    )
    done = subprocess.run([sys.executable, "-c", code, str(artifact_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


@pytest.mark.parametrize("num", [1, 2, 3, 63, 65, 1024, 1500, 2500])
def test_a_gpus_session_meets_few_numbers_of_rows_and_makes_the_same_images(artifact_path, monkeypatch, num):
    # A CPU's session stands in: it tells how many rows each call had, and what the calls made.
    with kaem.load(artifact_path, workers=1) as sampler:
        expected = sampler.sample(num, 3, 11)
        monkeypatch.setattr(sampler, "_sizes", GPU_ROWS)
        monkeypatch.setattr(sampler, "_most_rows", GPU_ROWS[-1])
        rows = []
        call = sampler._session.run

        class Noting:
            def run(self, outputs, inputs):
                rows.append(len(inputs["uniform"]))
                return call(outputs, inputs)

        monkeypatch.setattr(sampler, "_session", Noting())
        assert np.array_equal(sampler.sample(num, 3, 11), expected)
        assert set(rows) <= set(GPU_ROWS)
        assert len(rows) == -(-num // 1024)
        assert np.array_equal(np.concatenate([c.images for c in sampler.stream(num, 3, 11)]), expected)
        assert set(rows) <= set(GPU_ROWS)
