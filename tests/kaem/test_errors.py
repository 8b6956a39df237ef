from __future__ import annotations

import grpc
import pytest

from kaem import errors

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.KaemError)]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_has_an_exit_code_a_real_grpc_status_and_a_place_in_the_printed_tree(cls):
    assert cls.exit_code in (1, 2)
    assert hasattr(grpc.StatusCode, cls.grpc_status)
    assert cls.__name__ in errors.__doc__


def test_the_hint_is_part_of_the_text_only_when_there_is_one():
    assert str(errors.RequestError("num is 0", hint="ask for more")) == "num is 0 (hint: ask for more)"
    assert str(errors.RequestError("num is 0")) == "num is 0"
