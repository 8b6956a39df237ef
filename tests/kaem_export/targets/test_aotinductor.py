"""A package compiled ahead of time gives the samples of the artifact, for any number of rows."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from artifacts import write_small_artifact

import kaem
from kaem import noise
from kaem.errors import BackendError
from kaem_export.targets.torch_twin import build_package


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_package_gives_the_samples_of_the_artifact(tmp_path):
    artifact, package = write_small_artifact(tmp_path / "model.onnx", image_shape=(1, 2, 2)), tmp_path / "model.pt2"
    try:
        build_package(onnx.load(artifact), package, device="cpu")
    except BackendError as error:  # a machine without a C++ compiler
        pytest.skip(error.message)
    run = torch._inductor.aoti_load_package(str(package))
    with kaem.load(artifact, workers=1) as sampler:
        for rows in (1, 7, 300):
            uniform = noise.uniforms(5, 0, rows, sampler.manifest.noise_dim)
            image, latent = run(torch.from_numpy(uniform))
            np.testing.assert_allclose(image.numpy(), sampler.decode(uniform), atol=1e-6)
            np.testing.assert_allclose(latent.numpy(), sampler.latents(uniform), atol=1e-5)
