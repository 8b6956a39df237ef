"""Training images that judge the final refit, and that nothing is trained on: neither the model nor either prior."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from kaem_train.config.settings import Config
from kaem_train.data import Dataset, Images
from kaem_train.rng import noise_stream

_LOOKED_AT, _FEW = 2000, 10
_LARGEST_SHARE = 20  # one in so many, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """The training images of a run, divided.

    Attributes:
        dataset: The data set with the images to train on; held-out images and fingerprint are those of the whole.
        judges: The others, shape (M, C, H, W); None where none are set aside.
    """

    dataset: Dataset
    judges: Images | None = None

    @property
    def num_judges(self) -> int:
        """M, or 0."""
        return 0 if self.judges is None else len(self.judges)

    @property
    def warning(self) -> str:
        """What is odd about the images to train on, "" if nothing is: that nearly all are copies of a few."""
        num, num_distinct = len(self.dataset.train), self.dataset.train.num_distinct(_LOOKED_AT)
        if num_distinct >= min(num, _FEW):
            return ""
        what = "are all the same" if num_distinct == 1 else f"are copies of {num_distinct}"
        return f"the {num:,} images to train on {what}: a model of them has nothing to vary"

    @property
    def summary(self) -> str:
        """How many images do what, for people."""
        aside = f", {self.num_judges:,} set aside to judge the final refit" if self.num_judges else ""
        return f"{len(self.dataset.train):,} images to train on{aside}, {len(self.dataset.holdout):,} held out"


def divide(config: Config, dataset: Dataset) -> Division:
    """Set images aside for a run that ends with a refit: which ones follows from its seed alone.

    Args:
        config: Configuration of the run: `refit.num_set_aside` and the seed.
        dataset: All images; both parts keep their order.
    """
    images = dataset.train
    num = 0 if config.refit.kind == "none" else min(config.refit.num_set_aside, len(images) // _LARGEST_SHARE)
    if num == 0:
        return Division(dataset=dataset)
    order = torch.randperm(len(images), generator=noise_stream(config.training.seed, 0, "set aside"))
    judges, rest = (images.subset(part.sort().values) for part in (order[:num], order[num:]))
    return Division(dataset=replace(dataset, train=rest), judges=judges)
