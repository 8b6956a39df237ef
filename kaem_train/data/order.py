"""Which images make up which update: pure functions of the seed and the update, so a resumed run sees the same."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from kaem_train.data.pixels import Images
from kaem_train.devices import upload

_ORDER, _FLIP = 0, 1  # streams: order and flips of one seed are unrelated


class PixelsAhead:
    """Pixels of batches in turn, the next of which a thread reads while a GPU computes the last.

    Args:
        images: The set to train on.
        batch_size: At most the number of images.
        seed: Seed of the order.
    """

    def __init__(self, images: Images, batch_size: int, *, seed: int) -> None:
        self._images = images
        self._batch_size = batch_size
        self._seed = seed
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="kaem-pixels")
        self._next: tuple[int, Future[Tensor]] | None = None

    def take(self, step: int) -> Tensor:
        """Return the stored pixels of update `step` (from 0), and begin to read those of the one after."""
        pixels = self._next[1].result() if self._next and self._next[0] == step else self._read(step)
        self._next = step + 1, self._reader.submit(self._read, step + 1)
        return pixels

    def _read(self, step: int) -> Tensor:
        chosen = choose_batch(len(self._images), self._batch_size, seed=self._seed, step=step)
        return self._images.read(chosen)


def take_batch(
    images: Images, batch_size: int, *, seed: int, step: int, augment_flip: bool, ahead: PixelsAhead | None = None
) -> Tensor:
    """Return the images of update `step` (from 0), shape (batch_size, C, H, W), float32 in [0, 1].

    Args:
        images: The set to train on.
        batch_size: At most the number of images.
        seed: Seed of the order and of the flips.
        step: Updates done before this one.
        augment_flip: Mirror each image left to right with probability one half.
        ahead: Reads the pixels of the same images, batch size and seed.
    """
    chosen = choose_batch(len(images), batch_size, seed=seed, step=step)
    batch = images[chosen] if ahead is None else images.serve(ahead.take(step))
    if not augment_flip:
        return batch
    is_flipped = upload(flips(batch_size, seed=seed, step=step), batch.device)
    return torch.where(is_flipped[:, None, None, None], batch.flip(-1), batch)


def choose_batch(num_images: int, batch_size: int, *, seed: int, step: int) -> Tensor:
    """Return the images of update `step` (from 0) as indices of shape (batch_size,).

    Each epoch is its own seeded permutation. The remainder of an epoch that fills no batch is left out; the
    next permutation brings other images into the remainder.
    """
    epoch, batch = divmod(step, num_images // batch_size)
    return _shuffle_epoch(num_images, seed, epoch)[batch * batch_size : (batch + 1) * batch_size]


def flips(batch_size: int, *, seed: int, step: int) -> Tensor:
    """Return which images of update `step` (from 0) are mirrored, bool of shape (batch_size,)."""
    generator = _make_generator(seed, step, _FLIP)
    return torch.randint(2, (batch_size,), generator=generator, dtype=torch.uint8).bool()


@lru_cache(maxsize=2)
def _shuffle_epoch(num_images: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(num_images, generator=_make_generator(seed, epoch, _ORDER))


def _make_generator(seed: int, counter: int, stream: int) -> torch.Generator:
    # SeedSequence keeps neighbouring (seed, counter) pairs unrelated, which seed + counter would not.
    sequence = np.random.SeedSequence((seed, counter), spawn_key=(stream,) if stream else ())
    return torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0]) >> 1)
