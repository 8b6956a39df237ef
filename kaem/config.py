"""Strict TOML -> frozen dataclass: an unknown key or a wrong type is an error that names its dotted path.

Configuration is data. A component is a frozen, keyword-only dataclass whose fields are scalars, tuples of
scalars, or further such dataclasses; its `__post_init__` checks ranges and raises `ConfigError`. Sources are
merged as plain mappings (preset < file < `--set section.key=value`) and converted once, at the end.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from kaem.errors import ConfigError
from kaem.files import read_regular

Config = TypeVar("Config")

_MOST_SHOWN = 60
"""Letters of a value that a message quotes."""


def read_toml(path: Path) -> dict[str, Any]:
    """Read one TOML file into a plain mapping.

    Raises:
        ConfigError: The file is missing, is no regular file (a pipe may never end), or is not valid TOML.
    """
    try:
        return tomllib.loads(read_regular(path).decode("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no configuration file at {path}", hint="check the path") from None
    except (ValueError, OSError, RecursionError) as error:  # of TOML, of UTF-8, and of integers of 5000 digits
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot read {path} as TOML: {reason}") from None


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with every value of `override` laid over it; tables merge, everything else replaces."""
    merged = dict(base)
    for key, value in override.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """Turn `section.key=value` words of a command line into a nested mapping.

    The value is read as TOML where it is valid TOML (numbers, booleans, arrays, quoted strings) and as a bare
    string otherwise, so `data.source=digits` needs no quotes.

    Raises:
        ConfigError: An assignment has no `=`, no key, or characters that do not print (a line break would start
            another assignment).
    """
    merged: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        keys = [part.strip() for part in path.split(".")]
        if not equals or not all(keys) or not assignment.isprintable():
            raise ConfigError(f"cannot read override {assignment!r}", hint="write --set section.key=value")
        try:
            value: Any = tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError):  # of TOML, and of integers of 5000 digits
            value = text
        for key in reversed(keys):
            value = {key: value}
        merged = merge(merged, value)
    return merged


def from_mapping(cls: type[Config], mapping: Mapping[str, Any], *, path: str = "") -> Config:
    """Build the dataclass `cls` from a plain mapping, refusing anything it does not declare.

    Args:
        cls: A frozen dataclass; nested dataclass fields are built from nested mappings.
        mapping: What TOML gave; integers are accepted where a float is declared.
        path: Dotted path of `mapping` inside the whole configuration, used in messages.

    Raises:
        ConfigError: Unknown key (the nearest known one is suggested), missing key, wrong type, or a value
            the dataclass itself refuses.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{path or 'configuration'} must be a table, got {_shown(mapping)}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in mapping:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            known = f"did you mean {_join(path, near[0])}?" if near else f"known keys: {', '.join(fields)}"
            raise ConfigError(f"unknown setting {_join(path, str(key))}", hint=known)
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in mapping:
            values[name] = _convert(hints[name], mapping[name], _join(path, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"setting {_join(path, name)} is missing")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}" if path else error.message, hint=error.hint) from None


def to_mapping(config: Any) -> dict[str, Any]:
    """Return a configuration dataclass as nested plain containers (tuples become lists); inverse of `from_mapping`."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config) if field.init}


def to_toml(config: Any) -> str:
    """Return a configuration dataclass as TOML that `read_toml` and `from_mapping` turn into an equal one."""
    values = to_mapping(config)
    lines = [f"{name} = {_toml(value)}" for name, value in values.items() if not isinstance(value, dict)]
    for name, section in values.items():
        if isinstance(section, dict):
            lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in section.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    # JSON writes booleans, numbers and strings as TOML does, but for DEL, and its escapes of surrogates are not TOML.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_mapping(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _convert(hint: Any, value: Any, path: str) -> Any:
    """Check `value` against the declared type and return it in that type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_mapping(hint, value, path=path)
    if origin is typing.Literal:
        if value in arguments and type(value) in {type(choice) for choice in arguments}:
            return value
        choices = ", ".join(map(str, arguments))
        near = difflib.get_close_matches(_shown(value).strip("'"), [str(choice) for choice in arguments], n=1)
        hint_text = f"did you mean {near[0]!r}?" if near else f"choose one of: {choices}"
        raise ConfigError(f"{path} = {_shown(value)} is not one of: {choices}", hint=hint_text)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        inner = [argument for argument in arguments if argument is not type(None)]
        if len(inner) == 1:
            return _convert(inner[0], value, path)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{path} must be an array, got {_shown(value)}")
        return tuple(_convert(arguments[0], item, f"{path}[{index}]") for index, item in enumerate(value))
    if hint in (int, float) and type(value) is int and not -(2**63) <= value < 2**63:
        raise ConfigError(
            f"{path} = {_shown(value)} is no whole number of 64 bits", hint="is it a slip of the keyboard?"
        )
    if hint is float and type(value) is int:
        return float(value)
    if hint in (bool, int, float, str):
        if type(value) is not hint:
            raise ConfigError(f"{path} must be {_NAMES[hint]}, got {_shown(value)}")
        return value
    raise TypeError(f"{path}: configuration fields of type {hint!r} are not supported")


def _shown(value: Any) -> str:
    """Return a value as a message may quote it: not whole where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integers of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
