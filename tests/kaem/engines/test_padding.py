from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaem.engines.padding import calls, joined, padded, whole_calls

SIZES = st.lists(st.integers(1, 40), unique=True, max_size=4).map(sorted)


@given(num=st.integers(1, 200), sizes=SIZES, most=st.integers(1, 200))
def test_every_call_has_an_allowed_number_of_rows_and_every_row_comes_back_in_its_place(num, sizes, most):
    uniform = np.arange(2 * num, dtype=np.float32).reshape(num, 2) + 1
    pieces = calls(uniform, sizes, most)
    assert all(len(piece) in sizes if sizes else len(piece) <= most for piece in pieces)
    np.testing.assert_array_equal(joined(pieces, num), uniform)


@pytest.mark.parametrize(("num", "expected"), [(1, 4), (4, 4), (5, 16), (16, 16), (17, 17)])
def test_rows_are_padded_to_the_next_size_and_to_none_beyond_the_last(num, expected):
    uniform = np.full((num, 3), 0.25, np.float32)
    found = padded(uniform, (4, 16))
    assert found.shape == (expected, 3)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[:num], uniform)
    assert not found[num:].any()


def test_rows_of_a_chunk_are_a_multiple_of_the_largest_size():
    assert [whole_calls(256, sizes) for sizes in ((), (1, 8), (100,), (1000,))] == [256, 256, 200, 1000]
