"""Laws of the order of training and of pixels, over many sizes, seeds and steps."""

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kaem_train.data import Images, choose_batch, take_batch
from kaem_train.data import order as order_module
from kaem_train.data.order import flips
from kaem_train.data.pixels import convert_exact_bytes
from kaem_train.data.sources.encoded import split_by_folder

SEEDS = st.integers(0, 2**63 - 1)
SIZES = st.integers(1, 60)


@settings(deadline=None)
@given(num=SIZES, size=SIZES, seed=SEEDS, epoch=st.integers(0, 1000))
def test_an_epoch_is_a_permutation_less_what_fills_no_batch(num, size, seed, epoch):
    assume(size <= num)
    steps = num // size
    parts = [choose_batch(num, size, seed=seed, step=epoch * steps + step) for step in range(steps)]
    assert all(len(part) == size for part in parts)
    seen = torch.cat(parts).tolist()
    assert len(set(seen)) == len(seen) == steps * size
    assert set(seen) <= set(range(num))


@settings(deadline=None)
@given(num=SIZES, size=SIZES, seed=SEEDS, steps=st.lists(st.integers(0, 500), max_size=5), flip=st.booleans())
def test_batch_k_of_a_resumed_run_is_batch_k(num, size, seed, steps, flip):
    assume(size <= num)
    images = Images.whole(np.random.default_rng(0).integers(0, 256, (num, 1, 2, 3), dtype=np.uint8))

    def batch(step):
        return take_batch(images, size, seed=seed, step=step, augment_flip=flip)

    before = [batch(step) for step in steps]  # whatever was asked before
    order_module._shuffle_epoch.cache_clear()  # and in another process
    torch.rand(3)
    for step, expected in zip(reversed(steps), reversed(before), strict=True):
        assert torch.equal(batch(step), expected)


@settings(deadline=None)
@given(seed=SEEDS, step=st.integers(0, 10**9), size=SIZES)
def test_a_flip_mirrors_left_to_right_and_nothing_else(seed, step, size):
    images = Images.whole(np.random.default_rng(1).integers(0, 256, (size, 2, 3, 4), dtype=np.uint8))
    plain = take_batch(images, size, seed=seed, step=step, augment_flip=False)
    flipped = take_batch(images, size, seed=seed, step=step, augment_flip=True)
    for before, after, is_flipped in zip(plain, flipped, flips(size, seed=seed, step=step), strict=True):
        assert torch.equal(after, before[..., [3, 2, 1, 0]] if is_flipped else before)


def test_half_of_the_images_are_flipped():
    share = torch.stack([flips(100, seed=3, step=step) for step in range(400)]).float().mean()
    assert abs(float(share) - 0.5) < 0.01  # four standard deviations


@given(value=st.integers(0, 255))
def test_bytes_survive_as_floats_and_back(value):
    stored = np.full((1, 1, 1, 1), value, np.uint8)
    served = Images.whole(stored)[:].numpy()
    assert served.dtype == np.float32
    assert np.array_equal(served, stored / np.float32(255.0))
    assert np.array_equal(convert_exact_bytes(served), stored)


@given(value=st.floats(0.0, 1.0, width=32))
def test_floats_are_never_rounded(value):
    stored = convert_exact_bytes(np.full((1, 1, 1, 1), value, np.float32))
    assert float(Images.whole(stored)[:]) == value


@given(names=st.lists(st.text("ab/tes", min_size=1, max_size=8), unique=True, min_size=1))
def test_a_split_never_shares_or_invents_images(names):
    names = sorted([*names, "train/x.png", "test/x.png"])
    split = split_by_folder(names)
    train, holdout = split.train, split.holdout
    assert len(train) + len(holdout or ()) + sum(split.left_out.values()) == len(names)
    assert len({*train, *(holdout or ())}) == len(train) + len(holdout or ())
    assert {*train, *(holdout or ())} <= set(names)
