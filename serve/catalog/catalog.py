"""What is served, version by version: an artifact is loaded, warmed and compared aside, then takes over at once.

    LOADING -> READY -> DRAINING -> gone          a file that is replaced, removed or unloaded
    LOADING -> FAILED                             and if something was READY under this name and version, it stays so

Taking over is one assignment in the event loop: a request meets the old model or the new one, whole and warm. The old
one has its own scheduler and engines, so what it has let in completes there, byte for byte; then its memory is given
back. Until then both are in memory.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from kaem.errors import ArtifactError, BackendError, KaemError
from serve.calls.health import Health
from serve.catalog.model import Models, ServedModel, limits_of, start_model
from serve.catalog.repository import Found, Key
from serve.catalog.warm_up import ModelOpener, Opened, OpenEngines
from serve.events import Observer, Observers
from serve.services.inference_protocol.statistics import Statistics
from serve.settings import ServeSettings, check_name

_log = logging.getLogger(__name__)


class State(enum.Enum):
    """How far a version of a model is."""

    LOADING = enum.auto()  # with nothing to serve yet
    READY = enum.auto()
    DRAINING = enum.auto()
    FAILED = enum.auto()
    UNLOADED = enum.auto()  # by whoever runs the server, though its file is there


@dataclass(frozen=True, slots=True, eq=False)
class Running:
    """A model that computes, and its engines."""

    model: ServedModel
    opened: Opened


@dataclass(slots=True, eq=False)
class Entry:
    """One version of a model.

    Attributes:
        found: Its file, as it was when it was last loaded, or tried.
        name: Under which it is offered; "" before one artifact without a name of its own was opened.
        running: What is served; None if nothing is.
        is_loading: Whether its file is being loaded.
        error: Why that failed the last time; None if it did not.
    """

    found: Found
    name: str
    running: Running | None = None
    is_loading: bool = False
    error: KaemError | None = None

    @property
    def version(self) -> int:
        """Under which it is offered."""
        return self.found.key.version

    @property
    def state(self) -> State:
        """How far it is."""
        if self.running is not None:
            return State.READY
        if self.is_loading:
            return State.LOADING
        return State.FAILED if self.error is not None else State.UNLOADED


class Catalog:
    """The versions of all models, and what they are served by.

    Attributes:
        entries: Every version that is known.

    Args:
        open_engines: Opens an artifact.
        models: Where models are offered.
        health: Knows `kaem.model/NAME` while a version of it is offered; NOT_SERVING while its devices are lost.
        settings: What the operator decided.
        observer: Told what happens.
        statistics: Counts what each version does.
        on_devices: Called when it may have changed which models compute.
    """

    def __init__(
        self,
        open_engines: OpenEngines,
        models: Models,
        *,
        health: Health,
        settings: ServeSettings,
        observer: Observer,
        statistics: Statistics | None = None,
        on_devices: Callable[[], None] = lambda: None,
    ) -> None:
        self.entries: dict[Key, Entry] = {}
        self._opener = ModelOpener(open_engines, settings.max_batch)
        self._models = models
        self._health = health
        self._settings = settings
        self._observer = observer
        self._statistics = statistics or Statistics()
        self._on_devices = on_devices
        self._draining: dict[asyncio.Task[None], Running] = {}

    def __iter__(self) -> Iterator[Entry]:
        return iter(sorted(self.entries.values(), key=lambda entry: (entry.name, entry.version)))

    @property
    def draining(self) -> list[ServedModel]:
        """Models that are offered no more and still have requests to answer."""
        return [running.model for running in self._draining.values()]

    def announce(self, found: Found) -> None:
        """Know of an artifact that is still to be loaded: whoever asks for its health learns that it is to come."""
        self.entries[found.key] = Entry(found, found.key.name)
        if found.key.name:
            self._health.add(_health_name(found.key.name))

    async def load(self, found: Found) -> None:
        """Load an artifact and let it take over; whatever happens, nothing is offered that is not whole and warm.

        Raises:
            KaemError: It cannot be loaded; the message names its file.
        """
        is_new = found.key not in self.entries
        entry = self.entries.setdefault(found.key, Entry(found, found.key.name))
        before = entry.found
        entry.found, entry.is_loading = found, True
        began = time.monotonic()
        try:
            running = await self._open(entry)
        except asyncio.CancelledError:  # as if it had not been asked for
            entry.found = before
            if is_new:
                del self.entries[found.key]
            raise
        except Exception as raised:
            entry.error = self._failure(entry, raised)
            raise entry.error from None
        finally:
            entry.is_loading = False
        entry.error = None
        previous, entry.running = entry.running, running
        self._models.put(running.model)
        self._health.add(_health_name(entry.name))
        self._follow_devices(entry.name)
        self._observer.on_loaded(model=entry.name, version=entry.version, seconds=time.monotonic() - began)
        _log.info("model %r version %d is served from %s", entry.name, entry.version, found.path)
        if previous is not None:
            self._drain(previous)

    def retire(self, entry: Entry) -> None:
        """Offer what an entry serves no more; it completes what it has let in, and is released."""
        running, entry.running = entry.running, None
        if running is None:
            return
        self._models.remove(running.model)
        if not self._models.versions(entry.name):
            self._health.remove(_health_name(entry.name))
        self._follow_devices(entry.name)
        self._drain(running)

    async def close(self) -> None:
        """Stop everything at once."""
        self._opener.leave_off()  # first: engines are closed by the same thread
        tasks = list(self._draining)
        all_running = [*self._draining.values(), *(entry.running for entry in self if entry.running is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for running in all_running:
            await self._release(running)
        await self._opener.end()

    async def _open(self, entry: Entry) -> Running:
        opened = await self._opener.open(entry.found.path)
        try:
            manifest = opened.engines[0].manifest
            entry.name = entry.name or manifest.name
            check_name(entry.name)
            model = start_model(
                opened.engines,
                opened.warmth,
                name=entry.name,
                version=entry.version,
                limits=limits_of(manifest, self._settings.max_chunk_bytes),
                bounds=self._settings.bounds,
                observer=Observers((self._observer, self._statistics.of(entry.name, entry.version))),
                on_devices=partial(self._follow_devices, entry.name),
            )
        except BaseException:
            await self._opener.close(opened)
            raise
        return Running(model, opened)

    def _follow_devices(self, name: str) -> None:
        """Let the health of a name say whether there is anything to compute what a call with this name meets."""
        newest = self._models.newest(name)
        if newest is not None:
            self._health.set_up(_health_name(name), newest.is_alive)
        self._on_devices()

    def _failure(self, entry: Entry, raised: Exception) -> KaemError:
        """Return why an artifact could not be loaded, naming its file, and tell the log and the observer."""
        path = str(entry.found.path)
        if entry.found.has_changed:
            _log.info("%s is being written", path)
            hint = "write it elsewhere and rename it into place"
            return ArtifactError(f"{path} changed while it was read", hint=hint)
        if not isinstance(raised, KaemError):
            _log.error("loading %s failed", path, exc_info=raised)
            error: KaemError = BackendError(f"{path} cannot be served: {raised}")
        elif path in raised.message:
            error = raised
        else:
            error = type(raised)(f"{path}: {raised.message}", hint=raised.hint)
        name = entry.name or entry.found.path.name  # a file that was never opened has told no name
        _log.error("model %r version %d is not loaded: %s", name, entry.version, error.message)
        self._observer.on_load_failed(model=entry.name, version=entry.version)
        return error

    def _drain(self, running: Running) -> None:
        task = asyncio.create_task(self._drain_and_release(running))
        self._draining[task] = running
        task.add_done_callback(self._draining.pop)

    async def _drain_and_release(self, running: Running) -> None:
        told = running.model.info
        _log.info("the old model %r version %d drains", told.name, told.version)
        await running.model.wait_idle()
        await self._release(running)
        _log.info("the old model %r version %d is released", told.name, told.version)

    async def _release(self, running: Running) -> None:
        await running.model.close()
        await self._opener.close(running.opened)


def _health_name(name: str) -> str:
    return f"kaem.model/{name}"
