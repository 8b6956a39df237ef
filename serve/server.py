"""The life of a server: bind -> warm up -> serve -> drain -> stop.

Draining, in this order: health says NOT_SERVING, new calls get UNAVAILABLE, the running ones complete, open
health watches are ended, and only then gRPC stops. Stopping gRPC alone would be held for its whole grace by
one watch, and would cancel calls that arrive meanwhile.

All of it has one budget, the grace: the last of it is kept for closing what is left, and `serve.signals` ends the
process where even that hangs.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from kaem.protocol.messages import MAX_MESSAGE_BYTES, MESSAGE_HEADROOM
from serve.address import bare_host, check_address, format_address, why_not_bound
from serve.calls import health, reflection
from serve.calls.auth import Authenticator
from serve.calls.call_context import Tally
from serve.calls.connections import connection_options
from serve.calls.interceptor import Gate, Reception
from serve.calls.places import Places
from serve.calls.tls import Tls
from serve.catalog.library import Library
from serve.catalog.model import Models, ServedModel
from serve.catalog.repository import Repository, open_repository
from serve.catalog.warm_up import OpenEngines
from serve.descriptors import raise_limit, shares
from serve.devices.devices import parse_devices
from serve.devices.opening import engines_of
from serve.events import Observer, Observers
from serve.malloc import keep_large_blocks, release_when_idle
from serve.monitoring.logs import CallLog, leave_out_departures
from serve.services import sampler
from serve.services.inference_protocol import service as inference_protocol
from serve.services.inference_protocol.statistics import Statistics
from serve.services.sampler import SamplerService
from serve.settings import ServeSettings
from serve.signals import Signals

if TYPE_CHECKING:
    from serve.services.http import HttpServer

_CLOSING_S, _CLOSING_SHARE = 2.0, 0.25  # of the grace, for what comes after the running calls
_STOP_GRACE_S = 0.5  # of that, for calls that are cut off
_HANDSHAKE_S = 10.0  # for a client that has connected to say what it speaks
_log = logging.getLogger(__name__)


class Server:
    """The models of a repository on one port.

    Attributes:
        models: What is offered.
        library: Loads and unloads it.
        gate: Lets calls in.
        http_address: Address of the HTTP server, once it has been started, and if there is one.

    Args:
        repository: Which artifacts there are.
        settings: What the operator decided.
        observer: Told what happens.
        open_engines: Opens an artifact; by default as the settings say.
        on_drain: Called when the admin service is asked to shut the server down.

    Raises:
        ConfigError: Certificates or tokens cannot be used.
    """

    def __init__(
        self,
        repository: Repository,
        settings: ServeSettings,
        observer: Observer | None = None,
        *,
        open_engines: OpenEngines | None = None,
        on_drain: Callable[[], None] = lambda: None,
    ) -> None:
        leave_out_departures()
        self._settings = settings
        self.observer = observer or Observer()
        self._host = bare_host(settings.host)
        self._shares = shares(devices=len(parse_devices(settings.device)) if settings.device else 0)
        self.models = Models()
        self.http_address = ""  # once it has been started, and if it has one
        self._on_drain = on_drain
        self._health = health.Health(("", sampler.SERVICE, inference_protocol.SERVICE))
        self._running = AsyncExitStack()  # what has been started, and how to stop it
        self.gate = Gate()
        self._tls = Tls(settings) if settings.is_encrypted else None
        self._statistics = Statistics()
        self._watchers = Observers((Tally(), self._statistics, self.observer))
        auth = Authenticator(settings, self._watchers)
        self._watchers.add(auth)
        self.library = Library(
            repository,
            open_engines or partial(engines_of, settings),
            self.models,
            health=self._health,
            settings=settings,
            observer=self._watchers,
            statistics=self._statistics,
            on_devices=self._follow_devices,
        )
        self._reception = Reception(self.gate, self._watchers, auth, Places(settings.max_streams))
        self._add_telemetry()

    async def start(self) -> str:
        """Bind, warm up and serve; health says NOT_SERVING until this returns.

        Returns:
            The address clients connect to, `grpc://host:port`, or `grpcs://` with TLS.

        Raises:
            ConfigError: The address cannot be used, there is no model, or one cannot be offered under its name.
            ArtifactError: A model cannot be read, or an image of it does not fit in a message.
            BackendError: A model does not run.
        """
        settings = self._settings
        check_address(self._host, settings.port, insecure=settings.insecure or settings.is_encrypted)
        self._grpc = grpc.aio.server(
            options=(
                ("grpc.so_reuseport", 0),  # a second server on the port is a mistake, not a cluster
                ("grpc.max_allowed_incoming_connections", self._shares.grpc),
                ("grpc.server_handshake_timeout_ms", round(1e3 * _HANDSHAKE_S)),  # TLS, and HTTP/2's first words
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES + MESSAGE_HEADROOM),  # one row of any model
                *connection_options(settings),
            )
        )
        self._running.push_async_callback(self._grpc.stop, 0)
        try:
            await self._start_http()
            self._add_services()
            port = self._bind()
            await self._grpc.start()
            self._running.push_async_callback(self.library.close)
            await self.library.start(self._reception, self.gate, self._on_drain)
        except BaseException:
            await self.stop()
            raise
        self.gate.open()
        self._follow_devices()
        address = f"grpc{'s' if self._tls else ''}://{format_address(self._host, port)}"
        _log.info("serving %s at %s", ", ".join(_told(model) for model in self.models), address)
        return address

    async def drain(self) -> None:
        """Refuse new calls and let the running ones complete, for nearly all of the grace; then stop."""
        self._health.set_serving(False)
        self.gate.close("is shutting down")
        grace_s = self._settings.grace
        if not await self.gate.wait_empty(grace_s - min(_CLOSING_S, _CLOSING_SHARE * grace_s)):
            _log.warning("%d calls did not complete in time and are cut off", self.gate.num_inside)
        self._health.end_watches()
        await self._grpc.stop(_STOP_GRACE_S)
        await self.stop()

    async def stop(self) -> None:
        """Stop at once; running calls are cancelled. May be called at any time, and again."""
        await self._running.aclose()

    def _add_telemetry(self) -> None:
        """Watch what the settings ask for; each needs an extra, which is imported only then."""
        settings = self._settings
        if settings.log_calls:
            self._watchers.add(CallLog())
        if settings.traces:
            from serve.monitoring.tracing import Tracing, open_provider, shut_down

            provider = open_provider()
            self._running.push_async_callback(shut_down, provider)  # sends what it still has
            self._watchers.add(Tracing(provider))
        self._http: HttpServer | None = None
        if settings.http_port is not None:
            from serve.monitoring.metrics import Metrics
            from serve.services.http import HttpServer, monitoring_routes

            metrics = Metrics(
                self.models, lambda: self._why_not_ready() is None, draining=lambda: self.library.catalog.draining
            )
            self._watchers.add(metrics)
            routes = monitoring_routes(metrics.registry, lambda: self._why_not_ready() or "")
            if settings.http_samples:
                from serve.services.http_samples import HttpSamples

                routes += HttpSamples(self.models, settings, self._watchers, self._reception).routes()
            self._http = HttpServer(
                routes,
                host=settings.http_host,
                port=settings.http_port,
                insecure=settings.insecure,
                most_connections=self._shares.http,
                tls=self._tls.http_context() if self._tls else None,
            )

    async def _start_http(self) -> None:
        if self._http is not None:
            self.http_address = await self._http.start()
            self._running.push_async_callback(self._http.stop)
            _log.info("metrics, /healthz and /readyz at %s", self.http_address)

    def _add_services(self) -> None:
        sampling = SamplerService(self.models, self._settings, self._watchers)
        inference = inference_protocol.InferenceService(
            self.models, self._settings, self._watchers, self._statistics, lambda: self._why_not_ready() is None
        )
        names = (
            sampler.SERVICE,
            inference_protocol.SERVICE,
            health.SERVICE,
            reflection.SERVICE,
            reflection.ALPHA_SERVICE,
        )
        self._grpc.add_generic_rpc_handlers(
            (
                sampling.handler(self._reception),
                inference.handler(self._reception),
                self._health.handler(self._reception),
                *reflection.handlers(names, self._reception),
            )
        )

    def _bind(self) -> int:
        host, port = self._host, self._settings.port
        try:
            if self._tls is None:
                return self._grpc.add_insecure_port(format_address(host, port))
            return self._grpc.add_secure_port(format_address(host, port), self._tls.grpc_credentials())
        except RuntimeError:  # which does not say why
            raise why_not_bound(host, port) from None

    def _follow_devices(self) -> None:
        """Say whether there is a device left to compute any model, unless nothing is to be computed yet or any more."""
        if self.gate.closed_because is None:
            self._health.set_serving(self._why_not_ready() is None)

    def _why_not_ready(self) -> str | None:
        """Return why no call should come here, as what the server does; None if any may."""
        models = list(self.models)
        if models and not any(model.is_alive for model in models):
            return self.gate.closed_because or "has lost its devices and starts them again"
        return self.gate.closed_because


def _told(model: ServedModel) -> str:
    return f"model {model.info.name!r} version {model.info.version}"


def run(path: Path, settings: ServeSettings, *, on_serving: Callable[[str], None]) -> None:
    """Serve models until SIGTERM, SIGINT or SIGHUP, then drain; a second signal stops at once.

    Args:
        path: One artifact, or a folder of them.
        settings: What the operator decided.
        on_serving: Called with the address once requests are answered.

    Raises:
        KaemError: The server could not start; see `open_repository` and `Server.start`.
        SystemExit: 128 + n, signal n came before anything was served.
    """
    keep_large_blocks()
    raise_limit()
    repository = open_repository(path, name=settings.name)
    with Signals(settings.grace) as signals:
        early = asyncio.run(_run_until_signal(repository, settings, on_serving, signals))
    if early is not None:
        raise SystemExit(128 + early)


async def _run_until_signal(
    repository: Repository, settings: ServeSettings, on_serving: Callable[[str], None], signals: Signals
) -> int | None:
    """Return None after a drain, or the signal that came before there was anything to drain."""
    signals.attach()
    server = Server(repository, settings, on_drain=_once(partial(signals.ask, signal.SIGTERM)))
    try:
        starting = asyncio.create_task(server.start())
        early = await _signal_during(starting, signals)
        if early is not None:
            return early
        signals.is_serving = True
        on_serving(starting.result())
        releasing = asyncio.create_task(release_when_idle(server.gate))
        await signals.get()
        releasing.cancel()
        _log.info("draining; a second signal stops at once")
        draining = asyncio.create_task(server.drain())
        if await _signal_during(draining, signals) is None:
            draining.result()
        return None
    finally:
        await server.stop()


def _once(act: Callable[[], None]) -> Callable[[], None]:
    """Return a function that acts when it is first called: who asks for a drain twice wants no more than one."""
    left = [act]
    return lambda: left.pop()() if left else None


async def _signal_during(task: asyncio.Task[Any], signals: Signals) -> int | None:
    """Wait until a task is done and return None, or cancel it because of a signal, which is returned."""
    signalled = asyncio.create_task(signals.get())
    await asyncio.wait((task, signalled), return_when=asyncio.FIRST_COMPLETED)
    if not signalled.done():
        signalled.cancel()
        return None
    task.cancel()
    await asyncio.wait((task,))
    return signalled.result()
