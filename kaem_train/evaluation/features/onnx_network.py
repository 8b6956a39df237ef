"""Features of any ONNX network with one image input and one feature output.

Float input gets pixels in [0, 1], uint8 input gets bytes; further normalisation belongs into the graph. Where the
graph fixes channels, height or width, images are fitted to them as in `features.fitted`. An output of shape
(N, F, 1, 1) counts as (N, F).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kaem.artifact import fingerprint
from kaem.engines.session import open_session
from kaem.errors import DataError
from kaem_train.evaluation.features.network import Features, Pixels, fitted

_TYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxNetwork:
    """A `FeatureNetwork` from a file.

    Attributes:
        session: ONNX Runtime's.
        name: The file's name.
        fingerprint: `sha256:` digest of the file.
        image_shape: What the graph fixes of (C, H, W); None where it does not.
        num_features: F.
    """

    session: Any
    name: str
    fingerprint: str
    image_shape: tuple[int | None, ...]
    num_features: int
    batch_size: int = 64

    @property
    def description(self) -> str:
        """Which file, and its output."""
        return f"output {self.session.get_outputs()[0].name} ({self.num_features:,}) of {self.name}"

    def features(self, images: Pixels) -> Features:
        """Return one feature vector per image: shape (N, F).

        Raises:
            DataError: The network cannot process these images.
        """
        entry = self.session.get_inputs()[0]
        channels, height, width = (size or own for size, own in zip(self.image_shape, images.shape[1:], strict=True))
        pixels = fitted(images, channels, height, width).numpy()
        if _TYPES[entry.type] is np.uint8:
            values = np.rint(pixels).clip(0, 255).astype(np.uint8)
        else:
            values = pixels / np.float32(255.0)
        try:
            found = self.session.run(None, {entry.name: values})[0]
        except Exception as error:  # onnxruntime's own exception classes share no public base
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{self.name} cannot process images of shape {values.shape}: {reason}") from None
        flat = np.asarray(found, np.float32).reshape(len(images), -1)
        if self.num_features and flat.shape[1] != self.num_features:
            raise DataError(f"{self.name} gives {flat.shape[1]} features where its graph says {self.num_features}")
        return flat


def load_onnx_network(path: Path, image_shape: tuple[int, ...]) -> OnnxNetwork:
    """Open a network and try it on one black image.

    Args:
        path: An .onnx file.
        image_shape: (C, H, W) of the images that will be given.

    Raises:
        DataError: There is no such file, or it does not map one batch of images to one batch of features.
        ArtifactError: It is no valid ONNX model in one piece.
    """
    if not path.is_file():
        raise DataError(f"no feature network at {path}", hint="give --features classifier, inception or a .onnx file")
    content = path.read_bytes()
    session = open_session(content, "cpu", source=str(path))
    entries = [(entry.type, entry.shape) for entry in session.get_inputs()]
    if len(entries) != 1 or entries[0][0] not in _TYPES or len(entries[0][1]) != 4:
        raise DataError(
            f"{path} has the inputs {entries}; a feature network has one, float32 or uint8 of shape (N, C, H, W)",
            hint="export the network with a single image input",
        )
    batch, *sizes = entries[0][1]
    if isinstance(batch, int):
        raise DataError(f"{path} takes batches of {batch} images only", hint="export it with a dynamic first axis")
    shape = tuple(size if isinstance(size, int) else None for size in sizes)
    trial = OnnxNetwork(
        session=session, name=path.name, fingerprint=fingerprint(content), image_shape=shape, num_features=0
    )
    found = trial.features(np.zeros((2, *image_shape), np.uint8))
    return OnnxNetwork(
        session=session,
        name=path.name,
        fingerprint=trial.fingerprint,
        image_shape=shape,
        num_features=found.shape[1],
    )
