"""The certificate of a device, with an engine that computes on the CPU and can be made to be wrong."""

import numpy as np
import pytest
from models import write_random_checkpoint

from kaem.engines.cpu import LocalSampler
from kaem.engines.gpu import installed_gpu
from kaem.errors import ArtifactError, BackendError, ConfigError
from kaem_export.certificate import verify_on_device
from kaem_export.compile import export
from kaem_export.proof.device import OnDevice, device_figures
from kaem_train.checkpoint import load_model


@pytest.fixture(scope="module", params=["float32", "uint8"])
def exported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    write_random_checkpoint(folder / "ckpt.pt")
    export(folder / "ckpt.pt", folder / "model.onnx", image_type=request.param)
    return folder


class Other:
    """An engine that notes its batches and adds what it is told to."""

    def __init__(self, sampler, change=lambda images, latents: (images, latents)):
        self.manifest, self._sampler, self._change, self.sizes = sampler.manifest, sampler, change, set()

    def decode_with_latents(self, uniform):
        self.sizes.add(len(uniform))
        return self._change(*self._sampler.decode_with_latents(uniform))


def _figures(folder, **changes):
    _, model = load_model(folder / "ckpt.pt")
    with LocalSampler(folder / "model.onnx", workers=1) as here:
        engine = Other(here, **changes)
        figures = device_figures(OnDevice(engine, 96), here, model.eval().generator, "cuda:0")
    return {figure.name: figure for figure in figures}, engine


def test_a_device_that_computes_the_same_keeps_every_bound_at_every_size(exported):
    figures, engine = _figures(exported)
    assert set(figures) == {"device_latents", "device_images", "device_rows"}
    assert all(figure.is_kept for figure in figures.values())
    assert figures["device_latents"].value == figures["device_rows"].value == 0.0
    assert {1, 2, 4, 8, 16, 32, 64, 96} <= engine.sizes
    assert max(engine.sizes) == 96  # the largest profile


def _nudged(images, latents):
    return images, latents * np.float32(1 + 1e-5)


def _by_place(images, latents):
    half, step = (128, 3) if images.dtype == np.uint8 else (0.5, 1e-3)
    images = images.copy()
    images[40:] += np.where(images[40:] < half, step, -step).astype(images.dtype)  # past 40 rows of a batch
    return images, latents


def _wrong(images, latents):
    return (255 if images.dtype == np.uint8 else 1) - images, latents


@pytest.mark.parametrize(
    ("change", "broken"),
    [(_nudged, "device_latents"), (_by_place, "device_rows"), (_wrong, "device_images")],
)
def test_a_device_that_computes_something_else_is_found(exported, change, broken):
    figures, _ = _figures(exported, change=change)
    assert not figures[broken].is_kept


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:0,cuda:1", "tensorrt:x", "cpu:0"])
def test_a_device_of_another_name_is_refused(exported, device):
    with pytest.raises(ConfigError, match="device is"):
        verify_on_device(exported / "model.onnx", exported / "ckpt.pt", device)


def _has_gpu():
    try:
        installed_gpu()
    except BackendError:
        return False
    return True


@pytest.mark.gpu
@pytest.mark.skipif(not _has_gpu(), reason="needs an NVIDIA GPU")
def test_what_cuda_makes_of_an_artifact_keeps_its_bounds(exported):
    _, figures = verify_on_device(exported / "model.onnx", exported / "ckpt.pt", "cuda:0")
    assert all(figure.is_kept for figure in figures), figures


@pytest.mark.skipif(_has_gpu(), reason="this machine has a GPU")
@pytest.mark.parametrize(("device", "error"), [("cuda:0", BackendError), ("tensorrt:0", ArtifactError)])
def test_what_a_device_lacks_is_said(exported, device, error):
    with pytest.raises(error, match=r"CUDAExecutionProvider|cannot read the engine") as caught:
        verify_on_device(exported / "model.onnx", exported / "ckpt.pt", device)
    assert caught.value.hint
