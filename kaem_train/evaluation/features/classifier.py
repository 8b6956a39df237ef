"""Features of a small classifier that is trained on the data set itself, once, and kept in the cache folder.

    convolution 5x5 / 2 -> convolution 3x3 / 2 -> 96 features -> classes         SiLU between them

Features are scaled so that their mean square over training images is 1.

For small grey images its features mean more than those of a network for photographs. Its figures compare only
with figures in the features of the same classifier, which is why its fingerprint and its accuracy on the held-out
images stand beside them. It trains in about a minute on one core: for 1,400 updates, or 30 epochs where those are
fewer.
"""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kaem.artifact import fingerprint as digest_of
from kaem.errors import DataError
from kaem.files import cache_folder
from kaem_train.checkpoint import packed
from kaem_train.data import Dataset
from kaem_train.data.sources.labels import Labels
from kaem_train.evaluation.features.network import Features, Pixels, Progress, write_cached

_FEATURES = 96
_CHANNELS = (24, 48)
_MOST_UPDATES, _MOST_EPOCHS = 1400, 30
_BATCH = 128
_RATE = 2e-3
_SEED = 0
_SCALE_IMAGES = 5000
_FORMAT = 2


class _Network(nn.Module):
    scale: Tensor

    def __init__(self, image_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape
        first, second = _CHANNELS
        for _ in range(2):
            height, width = (height + 1) // 2, (width + 1) // 2
        self.body = nn.Sequential(
            nn.Conv2d(channels, first, 5, stride=2, padding=2),
            nn.SiLU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(second * height * width, _FEATURES),
            nn.SiLU(),
        )
        self.head = nn.Linear(_FEATURES, num_classes)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.body(pixels.float() / 127.5 - 1.0)
        return features

    def scaled(self, pixels: Tensor) -> Tensor:
        scaled: Tensor = self.scale * self(pixels)
        return scaled


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierNetwork:
    """A `FeatureNetwork`: the layer before the classes.

    Attributes:
        network: The trained classifier.
        accuracy: Share of held-out images that it classifies as labelled.
        fingerprint: `sha256:` digest of its weights.
    """

    network: _Network
    accuracy: float
    fingerprint: str
    name: str = "classifier"
    num_features: int = _FEATURES
    batch_size: int = 500

    @property
    def description(self) -> str:
        """What it is and how good it is."""
        return (
            f"last hidden layer ({_FEATURES}) of a classifier trained on this data set, "
            f"{100 * self.accuracy:.1f} % accurate on held-out images"
        )

    @torch.no_grad()
    def features(self, images: Pixels) -> Features:
        """Return one feature vector per image: shape (N, 96)."""
        found: Tensor = self.network.scaled(torch.from_numpy(np.ascontiguousarray(images)))
        return found.numpy()


def load_classifier(dataset: Dataset, labels: Labels, progress: Progress) -> ClassifierNetwork:
    """Return the classifier of a data set, trained now or by an earlier run.

    Args:
        dataset: Images to train the classifier on, and held-out ones to judge it.
        labels: Labels of both.
        progress: Told about the training.

    Raises:
        DataError: There is only one class, or the cache folder cannot be written.
    """
    classes = np.unique(labels.train)
    if len(classes) < 2:
        raise DataError(
            f"all training images have the label {classes[0]}: there is nothing to classify",
            hint="choose --features inception or --features net.onnx",
        )
    path = cache_folder() / "classifiers" / f"{_make_key(dataset, labels)}.pt"
    network = _Network(dataset.train.shape[1:], len(classes))
    kept = _read(path)
    if kept is None or not _fits(network, kept):
        network = _train(dataset, np.searchsorted(classes, labels.train), len(classes), progress)
        content = network.state_dict()
        write_cached(path, lambda draft: draft.write_bytes(packed(content)))
    network.eval().requires_grad_(False)
    weights = b"".join(value.numpy().tobytes() for value in network.state_dict().values())
    return ClassifierNetwork(
        network=network, accuracy=_measure_accuracy(network, dataset, labels, classes), fingerprint=digest_of(weights)
    )


def _make_key(dataset: Dataset, labels: Labels) -> str:
    recipe = (_FORMAT, _FEATURES, _CHANNELS, _MOST_UPDATES, _MOST_EPOCHS, _BATCH, _RATE, _SEED, dataset.fingerprint)
    return hashlib.sha256(repr(recipe).encode() + labels.train.tobytes()).hexdigest()[:32]


def _read(path: Path) -> dict[str, Tensor] | None:
    try:
        if not zipfile.is_zipfile(path):
            return None
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError):
        return None
    return state


def _fits(network: _Network, state: dict[str, Tensor]) -> bool:
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError):
        return False
    return True


def _train(dataset: Dataset, targets: np.ndarray, num_classes: int, progress: Progress) -> _Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        network = _Network(dataset.train.shape[1:], num_classes)
    rng = torch.Generator().manual_seed(_SEED)
    answers = torch.from_numpy(targets.astype(np.int64))
    size = min(_BATCH, len(answers))
    updates = min(_MOST_UPDATES, _MOST_EPOCHS * -(-len(answers) // size))
    optimiser = torch.optim.Adam(network.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=updates)
    order = torch.empty(0, dtype=torch.int64)
    for update in range(updates):
        if len(order) < size:
            order = torch.randperm(len(answers), generator=rng)
        batch, order = order[:size], order[size:]
        features = network(dataset.train[batch] * 255.0)
        loss = F.cross_entropy(network.head(features), answers[batch])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        progress("training the classifier", update + 1, updates)
    _set_scale(network, dataset)
    return network


@torch.no_grad()
def _set_scale(network: _Network, dataset: Dataset) -> None:
    # The longer it trains, the larger its features, which says nothing about images. Their mean square becomes 1,
    # the magnitude for which the kernel (a.b / F + 1)^3 is made.
    features = network(dataset.train[:_SCALE_IMAGES] * 255.0)
    network.scale.copy_(features.square().mean().rsqrt())


@torch.no_grad()
def _measure_accuracy(network: _Network, dataset: Dataset, labels: Labels, classes: np.ndarray) -> float:
    right = 0
    for start in range(0, len(dataset.holdout), 500):
        found = network.head(network(dataset.holdout[start : start + 500] * 255.0)).argmax(1).numpy()
        right += int((classes[found] == labels.holdout[start : start + 500]).sum())
    return right / len(dataset.holdout)
