from __future__ import annotations

import os
import sys
from pathlib import Path

# As kaem_train does, but before any test module imports torch by itself.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from artifacts import write_small_artifact


@pytest.fixture(scope="session")
def artifact_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small grey model: D = 5, images (1, 8, 8)."""
    return write_small_artifact(tmp_path_factory.mktemp("small") / "small.onnx")


@pytest.fixture(scope="session")
def rgb_artifact_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small colour model: D = 3, images (3, 6, 4)."""
    path = tmp_path_factory.mktemp("small-rgb") / "rgb.onnx"
    return write_small_artifact(path, noise_dim=3, image_shape=(3, 6, 4), seed=1)
