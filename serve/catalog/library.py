"""The models of a server: the catalog, and all who change what is on it: the start, polls, the admin service."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack

from serve.calls.health import Health
from serve.calls.interceptor import Gate, Reception
from serve.catalog.catalog import Catalog
from serve.catalog.loader import Loader
from serve.catalog.model import Models
from serve.catalog.repository import Repository
from serve.catalog.warm_up import OpenEngines
from serve.events import Observer
from serve.services.admin import AdminService
from serve.services.admin_port import AdminPort
from serve.services.inference_protocol.statistics import Statistics
from serve.settings import ServeSettings

_log = logging.getLogger(__name__)


class Library:
    """Loads models and keeps them up to date.

    Attributes:
        catalog: What is served.
        loader: Changes that.
        admin_address: Address of the admin service, once it has been started, and if there is one.

    Args:
        repository: Which artifacts there are.
        open_engines: Opens an artifact.
        models: Where models are offered.
        health: The health service's word on their names.
        settings: What the operator decided.
        observer: Told what happens.
        statistics: Counts what each version does.
        on_devices: Called when it may have changed which models compute.
    """

    def __init__(
        self,
        repository: Repository,
        open_engines: OpenEngines,
        models: Models,
        *,
        health: Health,
        settings: ServeSettings,
        observer: Observer,
        statistics: Statistics,
        on_devices: Callable[[], None],
    ) -> None:
        self.catalog = Catalog(
            open_engines,
            models,
            health=health,
            settings=settings,
            observer=observer,
            statistics=statistics,
            on_devices=on_devices,
        )
        self.loader = Loader(repository, self.catalog)
        self.admin_address = ""
        self._models = models
        self._settings = settings
        self._running = AsyncExitStack()

    async def start(self, reception: Reception, gate: Gate, on_drain: Callable[[], None]) -> None:
        """Load everything there is; from before that on, answer the admin service.

        Args:
            reception: Surrounds its calls.
            gate: Gate of the clients' calls.
            on_drain: Called when it is asked to shut the server down.

        Raises:
            KaemError: Something cannot be loaded, or the admin service not be offered at its address.
        """
        self._running.push_async_callback(self.catalog.close)
        if self._settings.admin is not None:  # stopped before the catalog is closed: nothing is put on it after that
            service = AdminService(self.loader, self.catalog, self._models, gate=gate, on_drain=on_drain)
            port = AdminPort(self._settings.admin, service.handler(reception))
            self._running.push_async_callback(port.stop)
            self.admin_address = await port.start()
            _log.info("admin service at %s", self.admin_address)
        await self.loader.start()
        if self._settings.poll_models is not None:
            polling = asyncio.create_task(self.loader.watch(self._settings.poll_models))
            self._running.push_async_callback(_cancel, polling)

    async def close(self) -> None:
        """Stop everything at once."""
        await self._running.aclose()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait((task,))
