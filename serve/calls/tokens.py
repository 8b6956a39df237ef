"""Bearer tokens: who may call, and how much. They are read from a file, which may change while the server runs.

    # name   token                        what else holds for it
    alice    kx8Qm2...                    rate=5000 concurrency=8
    batch    9fTz1a...                    models=digits,faces

One token a line: a name for the log and the metrics, the token itself, and any of `rate` (samples a second),
`concurrency` (requests at a time) and `models` (that it may use; all by default). A `#` that begins a word begins a
comment; inside a word it belongs to it.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from kaem.errors import ConfigError
from kaem.files import read_regular
from serve.reloaded_file import ReloadedFile

_LEAST_CHARS = 16  # of a token: shorter ones can be guessed
_MOST_BYTES = 64 << 20  # of the file
_COMMENT = re.compile(r"(?:^|\s)#")  # not inside a word: a token may hold the sign
_SCHEME = "bearer "
_OPTIONS = ("rate", "concurrency", "models")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever holds a token.

    Attributes:
        name: For logs.
        digest: SHA-256 of the token; the token itself is not kept.
        rate: Samples a second; None for what holds for all.
        concurrency: Requests at a time; None for what holds for all.
        models: What it may use; None for all models.
    """

    name: str
    digest: bytes = field(repr=False)
    rate: float | None = None
    concurrency: int | None = None
    models: frozenset[str] | None = None

    def may_use(self, model: str) -> bool:
        """Whether it may use a model."""
        return self.models is None or model in self.models


class Tokens:
    """The tokens of a file.

    Args:
        path: The file.

    Raises:
        ConfigError: It cannot be read, or a line of it not be understood.
    """

    def __init__(self, path: Path) -> None:
        self._callers = ReloadedFile("tokens", [path], lambda: read_tokens(path))

    def find(self, authorization: str) -> Caller | None:
        """Return whose token the value of an `authorization` header holds, or None.

        All digests are compared, each in constant time: how long it takes says nothing about any token.
        """
        if authorization[: len(_SCHEME)].lower() != _SCHEME:
            return None
        digest = _digest(authorization[len(_SCHEME) :].strip())
        found = None
        for caller in self._callers.value():
            if hmac.compare_digest(caller.digest, digest):
                found = caller
        return found


def read_tokens(path: Path) -> tuple[Caller, ...]:
    """Read a file of tokens.

    Raises:
        ConfigError: It cannot be read, or a line of it not be understood; never with the text of the line.
    """
    try:
        lines = read_regular(path, most_bytes=_MOST_BYTES).decode("utf-8-sig").splitlines()
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = "it is not text" if isinstance(error, UnicodeError) else getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot read the token file {path}: {reason}") from None
    if mode & stat.S_IROTH:
        _log.warning("every user of this machine can read the token file %s: run chmod 600 on it", path)
    callers: dict[str, Caller] = {}
    for number, line in enumerate(lines, start=1):
        words = _COMMENT.split(line, maxsplit=1)[0].split()
        if not words:
            continue
        caller = _caller(words, f"line {number} of the token file {path}")
        if caller.name in callers:
            raise ConfigError(f"line {number} of the token file {path}: a second token named {caller.name!r}")
        if caller.digest in {known.digest for known in callers.values()}:
            raise ConfigError(f"line {number} of the token file {path}: the token has another name already")
        callers[caller.name] = caller
    if not callers:
        raise ConfigError(f"the token file {path} holds no token", hint="write one a line: NAME TOKEN")
    return tuple(callers.values())


def _caller(words: list[str], where: str) -> Caller:
    if len(words) < 2:
        raise ConfigError(f"{where}: one word only", hint="write NAME TOKEN")
    name, token, *options = words
    if len(token) < _LEAST_CHARS or not all("!" <= letter <= "~" for letter in token):
        raise ConfigError(
            f"{where}: the token of {name!r} is not {_LEAST_CHARS} or more visible ASCII characters",
            hint="make one: openssl rand -base64 32",
        )
    values: dict[str, str] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if key not in _OPTIONS or not equals or key in values:
            raise ConfigError(f"{where}: what follows the token of {name!r} is not {', '.join(_OPTIONS)} once each")
        values[key] = value
    models = [model for model in values["models"].split(",") if model] if "models" in values else None
    if models == []:
        raise ConfigError(f"{where}: {name!r} may use no model")
    rate, concurrency = values.get("rate"), values.get("concurrency")
    return Caller(
        name,
        _digest(token),
        rate=None if rate is None else _number(rate, f"{where}: rate of {name!r}"),
        concurrency=None if concurrency is None else _whole(concurrency, f"{where}: concurrency of {name!r}"),
        models=None if models is None else frozenset(models),
    )


def _number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigError(f"{what} is {text!r}; give samples a second, more than 0")
    return value


def _whole(text: str, what: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise ConfigError(f"{what} is {text!r}; give 1 or more requests")
    return int(text)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
