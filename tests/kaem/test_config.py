from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaem.config import from_mapping, merge, parse_overrides, read_toml, to_mapping
from kaem.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    rate: float = 0.5
    kind: Literal["fast", "exact"] = "fast"
    sizes: tuple[int, ...] = (1, 2)

    def __post_init__(self):
        if self.rate <= 0:
            raise ConfigError(f"rate is {self.rate}", hint="make it positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    name: str
    is_on: bool = False
    limit: int | None = None
    inner: Inner = field(default_factory=Inner)


def test_a_mapping_becomes_a_dataclass_and_back():
    outer = from_mapping(Outer, {"name": "a", "limit": 3, "inner": {"rate": 1, "sizes": [4]}})
    assert outer == Outer(name="a", limit=3, inner=Inner(rate=1.0, sizes=(4,)))
    assert from_mapping(Outer, to_mapping(outer)) == outer


@given(key=st.text(min_size=1).filter(lambda key: key not in {"rate", "kind", "sizes"}))
def test_every_unknown_key_is_refused_with_its_path(key):
    with pytest.raises(ConfigError) as caught:
        from_mapping(Outer, {"name": "a", "inner": {key: 1}})
    assert f"inner.{key}" in caught.value.message


def test_a_misspelt_key_is_told_the_nearest_name():
    with pytest.raises(ConfigError) as caught:
        from_mapping(Outer, {"name": "a", "inner": {"rat": 1}})
    assert "inner.rate" in caught.value.hint


@pytest.mark.parametrize(
    ("mapping", "path"),
    [
        ({}, "name"),
        ({"name": 3}, "name"),
        ({"name": "a", "is_on": 1}, "is_on"),
        ({"name": "a", "limit": 1.5}, "limit"),
        ({"name": "a", "limit": True}, "limit"),
        ({"name": "a", "inner": 3}, "inner"),
        ({"name": "a", "inner": {"rate": "x"}}, "inner.rate"),
        ({"name": "a", "inner": {"rate": -1.0}}, "inner"),
        ({"name": "a", "inner": {"kind": "fats"}}, "inner.kind"),
        ({"name": "a", "inner": {"sizes": [1, "2"]}}, "inner.sizes[1]"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path(mapping, path):
    with pytest.raises(ConfigError) as caught:
        from_mapping(Outer, mapping)
    assert path in caught.value.message


def test_overrides_read_toml_values_and_bare_words():
    assert parse_overrides(["a.b=3", "a.c=[1, 2]", "a.d=word", "e=true", "f=1e-3", 'g="x=y"']) == {
        "a": {"b": 3, "c": [1, 2], "d": "word"},
        "e": True,
        "f": 1e-3,
        "g": "x=y",
    }


@pytest.mark.parametrize("text", ["a", "=3", "a..b=3", "", "a=1\nb=2", "a=\0"])
def test_an_unreadable_override_is_refused(text):
    with pytest.raises(ConfigError, match="override"):
        parse_overrides([text])


def test_tables_merge_and_values_replace():
    assert merge({"a": {"b": 1, "c": [1]}, "d": 1}, {"a": {"c": [2]}, "d": {"e": 1}}) == {
        "a": {"b": 1, "c": [2]},
        "d": {"e": 1},
    }


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no configuration file at .*none\.toml"):
        read_toml(tmp_path / "none.toml")
    (tmp_path / "deep.toml").write_text("a = " + "[" * 5000)
    with pytest.raises(ConfigError, match=r"deep\.toml as TOML"):
        read_toml(tmp_path / "deep.toml")
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(ConfigError, match=r"bad\.toml as TOML"):
        read_toml(tmp_path / "bad.toml")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(ConfigError, match=r"cannot read .*pipe\.toml as TOML: it is no regular file"):
        read_toml(tmp_path / "pipe.toml")
    with pytest.raises(ConfigError, match="no regular file"):
        read_toml(Path("/dev/zero"))
