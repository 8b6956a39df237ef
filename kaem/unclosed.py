"""What samplers and connections say when they are dropped without `close`, as files do: a ResourceWarning."""

from __future__ import annotations

import warnings
from collections.abc import Callable


def warn_unclosed(what: str, dropped: object, _warn: Callable[..., None] = warnings.warn) -> None:
    """Warn that something was dropped which should have been closed; for `__del__`.

    Python shows it where it shows that of files: with `-X dev`, `-W default` and in tests.

    Args:
        what: That it is, and where it leads.
        dropped: The object; with `tracemalloc` the warning tells where it was made.
        _warn: `warnings.warn`, which must still be there when the interpreter ends and modules are empty.
    """
    _warn(f"unclosed {what}", ResourceWarning, stacklevel=3, source=dropped)
