"""Settings of a server from flags, environment and a TOML file; the first that says something wins.

The environment variable of a setting is `KAEM_SERVE_` and its name in capitals; the key in the file is its name.
"""

from __future__ import annotations

import os
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kaem.config import from_mapping, read_toml
from kaem.errors import ConfigError
from serve.settings import ServeSettings

PREFIX = "KAEM_SERVE_"
CONFIG_VARIABLE = f"{PREFIX}CONFIG"

_WORDS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
_KINDS = {int: "a whole number", float: "a number", bool: "true or false"}


def load_settings(
    flags: Mapping[str, Any],
    *,
    names: Mapping[str, str],
    config: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> ServeSettings:
    """Return the settings of a server.

    Args:
        flags: Settings that the command line gave, by name; None for those it did not give.
        names: The flag of each setting, for errors.
        config: TOML file; None for the one that KAEM_SERVE_CONFIG names, if it does. Its paths are relative to the
            working directory.
        environ: The environment; variables that are empty count as absent.

    Raises:
        ConfigError: A value is wrong or unknown, with the flag, variable or file it came from.
    """
    if config is None and environ.get(CONFIG_VARIABLE):
        config = Path(environ[CONFIG_VARIABLE])
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    if config is not None:
        values |= read_toml(config)
        sources |= dict.fromkeys(values, str(config))
    for variable, text in environ.items():
        if variable.startswith(PREFIX) and variable != CONFIG_VARIABLE and text:
            name = variable.removeprefix(PREFIX).lower()
            values[name] = _parsed(name, text, variable)
            sources[name] = variable
    for name, value in flags.items():
        if value is not None:
            values[name] = value
            sources[name] = names.get(name, name)
    try:
        return from_mapping(ServeSettings, values)
    except ConfigError as error:
        blamed = [sources[name] for name in values if re.search(rf"\b{re.escape(name)}\b", error.message)]
        where = f" ({', '.join(dict.fromkeys(blamed))})" if blamed else ""
        raise ConfigError(f"{error.message}{where}", hint=error.hint) from None


def _parsed(name: str, text: str, variable: str) -> Any:
    """Return the text of a variable in the type of its setting; unknown settings are left to be refused with all."""
    hint = typing.get_type_hints(ServeSettings).get(name, str)
    if isinstance(hint, types.UnionType):
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    try:
        if hint is bool:
            return _WORDS[text.lower()]
        return hint(text)
    except (ValueError, KeyError):
        raise ConfigError(f"{name} must be {_KINDS[hint]}, got {text!r} ({variable})") from None
