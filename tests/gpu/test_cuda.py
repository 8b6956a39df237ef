"""ONNX Runtime and TensorRT on a real GPU: the same images, whatever the batch, recorded or not."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from exported_graphs import KINDS, with_bytes
from gpu.bound import Bound, cuda_session

from kaem.noise import uniforms

pytestmark = pytest.mark.gpu

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
IMAGE_TOLERANCE = 2e-5
"""Of float32 sums in another order, with TF32 off; TF32 itself is off by about 1e-3."""


def _both(model, rows):
    content = model.SerializeToString()
    cpu = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    noise = uniforms(3, 0, rows, cpu.get_inputs()[0].shape[1])
    expected = cpu.run(["image", "latent"], {"uniform": noise})
    return cuda_session(content).run(["image", "latent"], {"uniform": noise}), expected


@pytest.mark.parametrize("kind", KINDS)
def test_float_images_are_those_of_the_cpu_with_tf32_off(kind):
    (image, latent), expected = _both(KINDS[kind](), 300)
    assert np.abs(latent - expected[1]).max() <= 2e-6 * np.abs(expected[1]).max()
    assert np.abs(image - expected[0]).max() < IMAGE_TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_8_bit_images_differ_by_at_most_one_step_and_hardly_anywhere(kind):
    (image, _), expected = _both(with_bytes(KINDS[kind]()), 300)
    steps = np.abs(image.astype(int) - expected[0].astype(int))
    assert steps.max() <= 1
    assert (steps > 0).mean() < 0.01


@pytest.mark.parametrize("rows", BUCKETS)
def test_a_row_has_the_same_bits_wherever_it_lies_in_a_batch_of_one_size(rows):
    session = cuda_session(KINDS["experts in own frames"]().SerializeToString())
    noise = uniforms(4, 0, 2 * rows, session.get_inputs()[0].shape[1])
    (first,) = session.run(["image"], {"uniform": noise[:rows]})
    for shift in {1, rows // 2, rows - 1} - {0}:
        moved = np.concatenate([noise[rows : rows + shift], noise[: rows - shift]])
        (image,) = session.run(["image"], {"uniform": moved})
        assert np.array_equal(image[shift:], first[: rows - shift])


def test_replayed_graphs_compute_from_the_new_noise_what_plain_runs_do():
    content = KINDS["experts in own frames"]().SerializeToString()
    plain, recording = cuda_session(content), cuda_session(content, cuda_graph=True)
    dim = plain.get_inputs()[0].shape[1]
    batches = {rows: Bound(recording, rows, records=True) for rows in BUCKETS}
    for turn in range(3):  # recorded in the first, replayed in the others, sizes interleaved
        for rows, bound in batches.items():
            noise = uniforms(5 + turn, 0, rows, dim)
            image, latent = bound.run(noise)
            expected = plain.run(["image", "latent"], {"uniform": noise})
            assert np.abs(latent - expected[1]).max() <= 2e-6 * np.abs(expected[1]).max()
            assert np.abs(image - expected[0]).max() < IMAGE_TOLERANCE
            assert np.array_equal(bound.run(noise)[0], image)


def test_a_tensorrt_engine_is_built_sealed_loaded_and_computes_the_same(tmp_path, monkeypatch):
    trt = pytest.importorskip("tensorrt", reason="pip install 'kaem[tensorrt]'")
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch is a CPU build; here it holds the buffers")
    from kaem.engines.tensorrt_file import load_engine
    from kaem_export.targets.tensorrt import build_engine, parse_profile

    monkeypatch.setenv("KAEM_ENGINE_SECRET", str(tmp_path / "secret"))
    monkeypatch.setenv("KAEM_CACHE_DIR", str(tmp_path / "cache"))
    model = KINDS["experts in own frames"]()
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    build_engine(tmp_path / "model.onnx", tmp_path / "model.engine", profiles=[parse_profile("1:64:256")])
    assert list((tmp_path / "cache").glob("tensorrt-*.timing"))
    engine = load_engine(tmp_path / "model.engine", tmp_path / "model.onnx")
    context = engine.create_execution_context()
    for rows in (1, 7, 256):
        _, expected = _both(model, rows)
        noise = uniforms(3, 0, rows, engine.get_tensor_shape("uniform")[1])
        assert context.set_input_shape("uniform", noise.shape)
        buffers = {"uniform": torch.from_numpy(noise).cuda()}
        for name in ("image", "latent"):
            buffers[name] = torch.empty(tuple(context.get_tensor_shape(name)), device="cuda")
        for name, buffer in buffers.items():
            assert engine.get_tensor_dtype(name) == trt.float32
            assert context.set_tensor_address(name, buffer.data_ptr())
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        assert context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()
        assert np.abs(buffers["image"].cpu().numpy() - expected[0]).max() < IMAGE_TOLERANCE
