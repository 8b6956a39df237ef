"""What files hold, read again when they change, so that certificates and tokens are renewed without a restart."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from kaem.errors import ConfigError

Value = TypeVar("Value")
_Signature = tuple[tuple[int, int, int] | None, ...]
_RETRY_S = 1.0
_log = logging.getLogger(__name__)


class ReloadedFile(Generic[Value]):
    """A value made from files; thread-safe.

    Files that are being replaced may for a moment not fit together, and a file may for a moment not be read, for want
    of a descriptor say: then the last good value stays in use, the log says why, and it is tried again with the next
    change, and after a moment without one.

    Args:
        what: What the files hold, for the log.
        paths: The files.
        read: Makes the value from them; raises ConfigError if it cannot.

    Raises:
        ConfigError: The value cannot be made at the start.
    """

    def __init__(self, what: str, paths: Sequence[Path], read: Callable[[], Value]) -> None:
        self._what = what
        self._paths = tuple(paths)
        self._read = read
        self._reading = threading.Lock()
        self._signature = self._sign()  # taken before reading, so that a change meanwhile is seen the next time
        self._value = read()
        self._again_at = math.inf  # when what has failed is tried again
        self._trouble = ""

    def value(self) -> Value:
        """Return the value of the files as they are now, or the last good one."""
        with self._reading:
            signature = self._sign()
            if signature != self._signature or time.monotonic() >= self._again_at:
                if signature != self._signature:
                    self._trouble = ""  # of other files, and told anew
                self._signature = signature
                try:
                    self._value = self._read()
                    self._again_at = math.inf
                    _log.info("%s read again", self._what)
                except ConfigError as error:
                    self._again_at = time.monotonic() + _RETRY_S
                    if error.message != self._trouble:
                        self._trouble = error.message
                        _log.warning("%s not replaced: %s", self._what, error.message)
            return self._value

    def _sign(self) -> _Signature:
        return tuple(_sign(path) for path in self._paths)


def _sign(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
