"""Connections belong to the process that made them: what samplers say elsewhere instead of waiting for ever."""

from __future__ import annotations

import os

from kaem.errors import RequestError


def check_process(process: int) -> None:
    """Check that this is still the process that connected.

    Args:
        process: Its id.

    Raises:
        RequestError: This one was forked from it.
    """
    if os.getpid() != process:
        raise RequestError(
            "this sampler was connected before this process was forked, and a connection cannot be shared",
            hint="connect in the child: kaem.connect(...)",
        )


def not_picklable() -> RequestError:
    """Return the error of a sampler that is to be pickled."""
    return RequestError(
        "a connected sampler cannot be pickled: its connections and its token belong to this process",
        hint="send the address, and connect where it arrives: kaem.connect(...)",
    )
