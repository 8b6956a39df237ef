from __future__ import annotations

import threading

import numpy as np
import onnxruntime
import pytest

import kaem
from kaem import noise
from kaem.engines.binding import BoundSession
from kaem.engines.cuda import CudaEngine
from kaem.engines.session import open_session
from kaem.errors import BackendError

has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def test_bound_buffers_give_the_bits_of_a_plain_call_and_images_of_their_own(artifact_path):
    """The same code with buffers of the CPU; the parts a GPU adds are checked below, on one."""
    with kaem.load(artifact_path, workers=1) as sampler:
        session = open_session(artifact_path.read_bytes(), "cpu", source="small")
        bound = BoundSession(session, sampler.manifest, device="cpu")
        results = []
        for seed, rows in ((0, 4), (1, 4), (2, 16), (3, 1), (4, 16)):
            uniform = noise.uniforms(seed, 0, rows, sampler.manifest.noise_dim)
            results.append((bound.run(uniform), sampler.decode(uniform)))
            results += zip(bound.run_with_latents(uniform), sampler.decode_with_latents(uniform), strict=True)
        for images, expected in results:
            np.testing.assert_array_equal(images, expected)


@pytest.mark.skipif(has_cuda, reason="this ONNX Runtime has CUDA")
def test_a_runtime_without_cuda_is_an_error_and_no_fallback(artifact_path):
    with pytest.raises(BackendError, match="has no CUDAExecutionProvider"):
        CudaEngine(artifact_path)


@pytest.mark.gpu
@pytest.mark.skipif(not has_cuda, reason="this ONNX Runtime has no CUDA")
def test_a_gpu_agrees_with_the_cpu_to_float32_rounding_and_repeats_its_own_bits(artifact_path):
    with kaem.load(artifact_path) as sampler, CudaEngine(artifact_path) as engine:
        assert engine.numerics_id != sampler.numerics_id
        for rows in (1, 8, 64, 8, 1):
            uniform = noise.uniforms(rows, 0, rows, sampler.manifest.noise_dim)
            images = engine.decode(uniform)
            np.testing.assert_allclose(images, sampler.decode(uniform), atol=1e-5)
            np.testing.assert_array_equal(engine.decode(uniform), images)


@pytest.mark.skipif(has_cuda, reason="this ONNX Runtime has CUDA")
def test_a_provider_that_is_listed_and_does_not_load_is_an_error_and_no_fallback(artifact_path, monkeypatch):
    """`get_available_providers` says what a build contains, not what works here."""
    sessions, real = [], onnxruntime.InferenceSession

    def opened(content, options, **rest):
        sessions.append((options.get_session_config_entry("session.disable_cpu_ep_fallback"), rest["enable_fallback"]))
        return real(content, options, **rest)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    before = threading.active_count()
    with pytest.raises(BackendError, match="CUDAExecutionProvider") as caught:
        CudaEngine(artifact_path)
    assert "nvidia-smi" in caught.value.hint
    assert sessions == [("1", False)]
    assert threading.active_count() == before
