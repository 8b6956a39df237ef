"""Where artifacts are opened and warmed up, aside from what is being served: one thread, one artifact at a time.

Engines are opened, run at every size and closed in this thread only, so that a load that was given up is closed after
its last batch and not under it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

from serve.catalog.model import warm_engines
from serve.devices.engine import Engine, Warmth

OpenEngines = Callable[[Path, Callable[[], bool]], AbstractContextManager[Sequence[Engine]]]
"""Artifact -> its engines, one per device, which are closed at the end of the block.

The second argument says whether they are still wanted; whoever waits long for a device asks it now and then.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """Engines of one artifact, open and warm.

    Attributes:
        engines: One per device.
        warmth: What warming them up has shown.
        stack: Closes them.
    """

    engines: Sequence[Engine]
    warmth: Warmth
    stack: ExitStack


class ModelOpener:
    """The thread.

    Args:
        open_engines: Opens an artifact.
        max_batch: Rows of the largest batch; None for as many as make batches more efficient.
    """

    def __init__(self, open_engines: OpenEngines, max_batch: int | None) -> None:
        self._open_engines = open_engines
        self._max_batch = max_batch
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kaem-load")
        self._is_over = threading.Event()

    async def open(self, path: Path) -> Opened:
        """Open an artifact and run it at every size.

        Raises:
            ArtifactError: The file is missing, damaged, or not a kaem artifact.
            BackendError: It does not run, or its bits depend on what must not matter.
        """
        future = self._thread.submit(self._open, path)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(_close_unwanted)
            raise

    async def close(self, opened: Opened) -> None:
        """Close engines that compute no more."""
        await asyncio.wrap_future(self._thread.submit(opened.stack.close))

    def leave_off(self) -> None:
        """Load nothing more; what is just loaded is left at its next size, or the next look for a process."""
        self._is_over.set()

    async def end(self) -> None:
        """End the thread, after what it is doing."""
        await asyncio.to_thread(self._thread.shutdown)

    def _open(self, path: Path) -> Opened:
        with ExitStack() as stack:
            engines = stack.enter_context(self._open_engines(path, self._is_wanted))
            return Opened(engines, warm_engines(engines, self._max_batch, self._is_wanted), stack.pop_all())

    def _is_wanted(self) -> bool:
        return not self._is_over.is_set()


def _close_unwanted(future: Future[Opened]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().stack.close()
