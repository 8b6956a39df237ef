from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from kaem.errors import RequestError
from kaem.images import contact_sheet, encode_png, to_uint8


def test_conversion_rounds_to_nearest_and_clips():
    values = np.array([-0.1, 0.0, 0.4 / 255, 0.6 / 255, 0.5, 254.6 / 255, 1.0, 1.2], np.float32)
    assert to_uint8(values).tolist() == [0, 0, 0, 1, 128, 255, 255, 255]


@given(pixels=hnp.arrays(np.uint8, st.tuples(st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9))))
def test_a_png_holds_exactly_the_pixels(pixels):
    decoded = np.asarray(Image.open(io.BytesIO(encode_png(pixels))))
    expected = pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)
    assert np.array_equal(decoded, expected)


def test_float_and_uint8_images_of_the_same_levels_give_the_same_png():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    assert encode_png(levels) == encode_png(levels.astype(np.float32) / 255)


def test_a_png_of_two_channels_is_refused():
    with pytest.raises(RequestError, match="2"):
        encode_png(np.zeros((2, 4, 4)))


def test_tiles_stand_in_reading_order_unflipped():
    images = np.zeros((3, 1, 2, 3), np.uint8)
    images[0, 0, 0, 0] = 10  # top left of the first
    images[1, 0, 1, 2] = 20  # bottom right of the second
    images[2, 0, 0, 2] = 30  # top right of the third
    sheet = contact_sheet(images, columns=2, scale=1, gap=1)
    assert sheet.shape == (1, 7, 9)
    assert sheet[0, 1, 1] == 10
    assert sheet[0, 2, 7] == 20
    assert sheet[0, 4, 3] == 30
    assert np.all(sheet[0, :, 0] == 128)


def test_small_images_are_magnified_by_squares():
    sheet = contact_sheet(np.full((1, 1, 8, 8), 255, np.uint8), gap=0)
    assert sheet.shape == (1, 40, 40)
    assert np.all(sheet == 255)


@pytest.mark.parametrize("settings", [{"columns": 0}, {"scale": 0}])
def test_a_sheet_of_nothing_is_refused(settings):
    with pytest.raises(RequestError):
        contact_sheet(np.zeros((1, 1, 2, 2)), **settings)
    with pytest.raises(RequestError):
        contact_sheet(np.zeros((0, 1, 2, 2)))
