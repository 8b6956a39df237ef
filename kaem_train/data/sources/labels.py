"""Class labels that lie beside the images; training never needs them, evaluation's classifier does.

.npz           labels_train, y_train or labels, and labels_test or y_test
IDX folder     train-labels-idx1-ubyte[.gz] and t10k-labels-idx1-ubyte[.gz]
digits         embedded with the images
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from kaem.errors import DataError
from kaem_train.config import DataConfig
from kaem_train.data.dataset import Dataset
from kaem_train.data.pixels import Images
from kaem_train.data.sources.files import find_idx, find_idx_folder, is_idx_folder, read_idx

_TRAIN_KEYS = ("labels_train", "y_train", "labels")
_HOLDOUT_KEYS = ("labels_test", "y_test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """One class number per image.

    Attributes:
        train: Shape (N,), int64, in the order of `Dataset.train`.
        holdout: Shape (N',), int64, in the order of `Dataset.holdout`.
    """

    train: NDArray[np.int64]
    holdout: NDArray[np.int64]


def load_labels(config: DataConfig, dataset: Dataset) -> Labels | None:
    """Return the labels of a data set, or None where its files hold none.

    Args:
        config: The one `dataset` was loaded with.
        dataset: Its images; labels follow their split and order.

    Raises:
        DataError: There are labels, but not one whole number per image.
    """
    train, holdout = _read_labels(config)
    if train is None:
        return None
    origin = config.path or config.source
    if holdout is None and _is_one_array(dataset):
        everything = _check_labels(train, len(dataset.train.stored), origin)
        return Labels(train=everything[dataset.train.rows], holdout=everything[dataset.holdout.rows])
    if holdout is None:
        return None
    return Labels(train=_select(dataset.train, train, origin), holdout=_select(dataset.holdout, holdout, origin))


def _is_one_array(dataset: Dataset) -> bool:
    return dataset.train.stored is dataset.holdout.stored


def _select(images: Images, labels: NDArray[Any], origin: str) -> NDArray[np.int64]:
    return _check_labels(labels, len(images.stored), origin)[images.rows]


def _check_labels(labels: NDArray[Any], num_images: int, origin: str) -> NDArray[np.int64]:
    if labels.shape != (num_images,) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{origin} holds labels of shape {labels.shape} and type {labels.dtype} for {num_images} images",
            hint="labels must be one whole number per image",
        )
    return labels.astype(np.int64)


def _read_labels(config: DataConfig) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
    match config.source:
        case "digits":
            from sklearn.datasets import load_digits

            return load_digits().target, None
        case "files":
            return _read_labels_beside(Path(config.path))
        case "latents":
            return None, None
        case _:
            assert_never(config.source)


def _read_labels_beside(path: Path) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
    if path.suffix == ".npz" and path.is_file():
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = [
                next((archive[key] for key in keys if key in archive.files), None)
                for keys in (_TRAIN_KEYS, _HOLDOUT_KEYS)
            ]
        return found[0], found[1]
    if path.is_dir() and is_idx_folder(path):
        files = [find_idx(find_idx_folder(path), split, "labels") for split in ("train", "t10k")]
        return tuple(read_idx(file) if file else None for file in files)  # type: ignore[return-value]
    return None, None
