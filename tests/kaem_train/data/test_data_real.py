"""Real data sets, where they are: $KAEM_TEST_DATA, or ../shared/data beside the project."""

import numpy as np
import pytest
from pictures import real_data

from kaem_train.config.settings import load_config
from kaem_train.data import load_dataset


def _load(preset, name, *overrides):
    path = real_data(name)
    if path is None:
        pytest.skip(f"{name} is neither in $KAEM_TEST_DATA nor in ../shared/data")
    return load_dataset(load_config(preset, ["data.source=files", f"data.path={path}", *overrides]).data)


@pytest.mark.parametrize(
    ("preset", "name", "sizes"),
    [
        ("mnist", "mnist.npz", (60000, 10000)),
        ("fashion-mnist", "fashion_mnist.npz", (60000, 10000)),
        ("svhn", "svhn.npz", (10083, 1000)),
    ],
)
def test_arrays_have_their_official_sizes_and_their_own_split(preset, name, sizes):
    data = _load(preset, name)
    assert (len(data.train), len(data.holdout)) == sizes
    assert data.train.stored.dtype == np.uint8


@pytest.mark.slow
def test_celeba_faces_are_centred_and_upright():
    data = _load("celeba", "celeba_89x109_jpeg.tar", "data.crop=74")
    assert data.train.shape == (9000, 3, 64, 64)
    assert len(data.holdout) == 1000
    mean = data.train[:1000].mean((0, 1)).numpy()
    assert mean[30:50, 24:40].mean() > mean[:, :8].mean() + 0.05  # skin in the middle, background at the side
    assert abs(mean - mean[:, ::-1]).mean() < 0.5 * abs(mean - mean[::-1]).mean()  # symmetric left to right only
