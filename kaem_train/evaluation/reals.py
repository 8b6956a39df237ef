"""The real side of a comparison: data set, feature network, and the features of the real images.

It is prepared once and serves any number of models.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kaem.errors import ConfigError, DataError
from kaem.images import to_uint8
from kaem_train.config import DataConfig
from kaem_train.data import Dataset, Images, load_dataset
from kaem_train.data.sources.labels import Labels, load_labels
from kaem_train.evaluation.distances import FrechetDistance
from kaem_train.evaluation.features.classifier import load_classifier
from kaem_train.evaluation.features.inception import load_inception
from kaem_train.evaluation.features.network import FeatureNetwork, Features, Pixels, Progress, recall_features
from kaem_train.evaluation.features.onnx_network import load_onnx_network
from kaem_train.evaluation.options import EvaluationOptions, Split

_LARGEST_SIDE = 32
_ALTERNATIVES = "choose --features inception (pip install 'kaem[inception]') or --features net.onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reals:
    """What models are compared with.

    Attributes:
        config: Section of the configuration that names the images.
        dataset: Training and held-out images.
        network: The feature network.
        options: What was asked for.
        features: Features of the chosen real images, shape (M, F).
        frechet: Distance to them.
    """

    config: DataConfig
    dataset: Dataset
    network: FeatureNetwork
    options: EvaluationOptions
    features: Features
    frechet: FrechetDistance

    @property
    def origin(self) -> str:
        """Path or name of the data set."""
        return self.config.path or self.config.source


def nothing(_what: str, _done: int, _total: int) -> None:
    """Tell nobody about progress."""


def prepare_reals(config: DataConfig, options: EvaluationOptions, progress: Progress = nothing) -> Reals:
    """Load the images, choose the network and compute (or recall) the features of the real images.

    Raises:
        DataError: The images cannot be had, or the network does not fit them.
        ConfigError: `options.features` names no network.
        ArtifactError: An .onnx file is no valid model.
    """
    dataset = load_dataset(config, progress=lambda done, total: progress("decoding", done, total))
    network = choose_network(options.features, config, dataset, progress, options.device)
    pixels = choose_pixels(dataset, options.real, options.num_real)
    features = recall_features(network, pixels, progress, "real images")
    return Reals(
        config=config,
        dataset=dataset,
        network=network,
        options=options,
        features=features,
        frechet=FrechetDistance(features),
    )


def choose_network(
    name: str, config: DataConfig, dataset: Dataset, progress: Progress, device: str = "auto"
) -> FeatureNetwork:
    """Return the network that `name` means for a data set: see `EvaluationOptions.features` and `.device`."""
    if name.endswith(".onnx"):
        return load_onnx_network(Path(name), dataset.train.shape[1:])
    match name:
        case "auto":
            channels, height, width = dataset.train.shape[1:]
            is_small = channels == 1 and max(height, width) <= _LARGEST_SIDE
            labels = load_labels(config, dataset) if is_small else None
            return load_inception(device) if labels is None else load_classifier(dataset, labels, progress)
        case "inception":
            return load_inception(device)
        case "classifier":
            return load_classifier(dataset, _require_labels(config, dataset), progress)
        case _:
            raise ConfigError(
                f"unknown feature network {name!r}",
                hint="choose auto, classifier, inception, or a file ending in .onnx",
            )


def _require_labels(config: DataConfig, dataset: Dataset) -> Labels:
    labels = load_labels(config, dataset)
    if labels is None:
        raise DataError(
            f"{config.path or config.source} holds no labels to train the classifier with", hint=_ALTERNATIVES
        )
    return labels


def choose_pixels(dataset: Dataset, split: Split, most: int | None) -> Pixels:
    """Return the images of a split as 8 bits, at most `most` of them, the same ones every time."""
    parts = {"train": [dataset.train], "test": [dataset.holdout], "all": [dataset.train, dataset.holdout]}[split]
    pixels: Pixels = np.concatenate([read_pixels(part) for part in parts])
    if most is None or most >= len(pixels):
        return pixels
    some: Pixels = pixels[choose_rows(len(pixels), most)]
    return some


def read_pixels(images: Images) -> Pixels:
    """Return a whole set as 8 bits: shape (N, C, H, W)."""
    return np.ascontiguousarray(to_uint8(images.stored[images.rows]))


def choose_rows(num: int, most: int) -> np.ndarray:
    """Return `most` indices below `num`, spread over the whole set, the same ones every time."""
    return np.sort(np.random.default_rng(0).permutation(num)[:most])
