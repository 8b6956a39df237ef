"""Which files a server serves under which names and versions: one artifact, or a folder laid out as Triton has it.

    FOLDER/NAME/VERSION/model.onnx        versions are whole numbers from 1
    FOLDER/NAME.onnx                      version 1

What else lies there is ignored: other names, hidden ones, and a version folder without its file, which is still being
put in place. This page only looks; `serve.catalog.loader` decides what follows from what it sees.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from kaem.errors import ConfigError
from serve.settings import check_name

_FILE = "model.onnx"
_SUFFIX = ".onnx"
_VERSION = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)  # no leading zeros, as Triton has it; below 2^63


class Key(NamedTuple):
    """What a request names; an empty name stands for the one in the artifact itself."""

    name: str
    version: int


class Signature(NamedTuple):
    """What changes when a file does, without reading it: time of its change in nanoseconds, bytes, and inode."""

    changed_ns: int
    size: int
    inode: int


@dataclass(frozen=True, slots=True)
class Found:
    """An artifact that is to be served.

    Attributes:
        key: Under what.
        path: Where it lies.
        signature: Signature of the file as it was when it was found.
    """

    key: Key
    path: Path
    signature: Signature

    @property
    def has_changed(self) -> bool:
        """Whether the file is another one by now."""
        return _sign(self.path) != self.signature


class Findings(dict[Key, Found]):
    """The artifacts of a repository, and what kept others from being among them.

    Attributes:
        troubles: Why something that lies there is no artifact of it.
        spared: Names, and keys, of which nothing is known now: what is served under them is left as it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.troubles: list[ConfigError] = []
        self.spared: set[str | Key] = set()

    def leave_out(self, error: ConfigError, spared: str | Key) -> None:
        """Note why something is left out."""
        self.troubles.append(error)
        self.spared.add(spared)
        if isinstance(spared, Key):
            self.pop(spared, None)

    def is_spared(self, key: Key) -> bool:
        """Whether nothing is known of what is served under a key."""
        return key in self.spared or key.name in self.spared


class Repository(Protocol):
    """Where artifacts come from; `File` and `Folder` satisfy it."""

    def scan(self) -> dict[Key, Found]:
        """Return what is there now; `Findings` where something is left out.

        Raises:
            ConfigError: Nothing is there.
        """
        ...


def open_repository(path: Path, *, name: str | None = None) -> Repository:
    """Return the repository of a path: a folder of artifacts, or one artifact.

    Args:
        path: Folder or file.
        name: Under which one artifact is offered; None for the name in it.

    Raises:
        ConfigError: A name is given for a folder.
    """
    if not path.is_dir():
        return File(path, name or "")
    if name is not None:
        raise ConfigError(
            f"name is {name!r}, but {path} is a folder of models", hint="they have the names of their files and folders"
        )
    return Folder(path)


@dataclass(frozen=True, slots=True)
class File:
    """One artifact as version 1."""

    path: Path
    name: str

    def scan(self) -> dict[Key, Found]:
        """Return the artifact."""
        key = Key(self.name, 1)
        return {key: Found(key, self.path, _sign(self.path))}


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of artifacts."""

    path: Path

    def scan(self) -> Findings:
        """Return the artifacts in it."""
        found, twice = Findings(), Findings()
        try:
            entries = sorted(self.path.iterdir())
        except OSError as error:
            raise _unreadable(error, self.path) from None
        for entry in entries:
            try:
                for key, path in _artifacts(entry):
                    _check_name(key.name, path)
                    (twice if key in found else found)[key] = Found(key, path, _sign(path))
            except OSError as error:
                found.leave_out(_unreadable(error, entry), entry.name)
            except ConfigError as error:
                found.leave_out(error, entry.name)
        for key, other in twice.items():
            message = f"version {key.version} of model {key.name!r} is there twice: {found[key].path} and {other.path}"
            found.leave_out(ConfigError(message, hint="remove one of them"), key)
        if not found:
            nothing = ConfigError(
                f"there is no model in {self.path}", hint=f"put one there as NAME/1/{_FILE}, or as NAME{_SUFFIX}"
            )
            raise found.troubles[0] if found.troubles else nothing
        return found


def _artifacts(entry: Path) -> Iterator[tuple[Key, Path]]:
    """Yield what an entry of a folder holds: a file, or the versions of a model."""
    if entry.name.startswith("."):
        return
    if entry.is_dir():
        for version in sorted(entry.iterdir()):
            path = version / _FILE
            if _VERSION.fullmatch(version.name) and path.is_file():
                yield Key(entry.name, int(version.name)), path
    elif entry.suffix == _SUFFIX and entry.is_file():
        yield Key(entry.stem, 1), entry


def _check_name(name: str, path: Path) -> None:
    try:
        check_name(name)
    except ConfigError as error:  # the path holds the name, and so what a terminal might obey
        shown = ascii(str(path))
        raise ConfigError(f"{error.message}: {shown}", hint="rename it: at most 128 printable characters") from None


def _unreadable(error: OSError, path: Path) -> ConfigError:
    return ConfigError(f"cannot read {ascii(str(error.filename or path))[1:-1]}: {error.strerror or error}")


def _sign(path: Path) -> Signature:
    """Return a file's signature; all zero where there is none, which reading it will say better."""
    try:
        status = path.stat()
    except OSError:
        return Signature(0, 0, 0)
    return Signature(status.st_mtime_ns, status.st_size, status.st_ino)
