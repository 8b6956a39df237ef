"""What the training tests share: float64 by default, and a configuration that trains in a second."""

import pytest
import torch

from kaem_train.config.settings import load_config

TINY = (
    "prior.variant=mixture",
    "prior.frame=none",
    "prior.num_latents=3",
    "prior.num_components=2",
    "generator.dense=8",
    "generator.channels=[4]",
    "posterior.encoder_channels=[4]",
    "posterior.encoder_dense=8",
    "posterior.num_proposals=20",
    "refit.kind=none",
    "training.updates=12",
    "training.batch_size=16",
    "training.log_every=5",
    "training.checkpoint_every=100",
)


@pytest.fixture(autouse=True)
def _same_draws():
    # What a test draws does not depend on which tests ran before it in the same process.
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    # These models are tiny: threads only wait for each other, and wait long where other work runs beside.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _no_caches_at_home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hugging-face")))
        yield


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """The folder of decoded images, empty."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("KAEM_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def float64():
    former = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(former)


@pytest.fixture
def tiny():
    def build(*overrides):
        return load_config("digits", (*TINY, *overrides))

    return build
