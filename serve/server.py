"""The life of a server: bind -> warm up -> serve -> drain -> stop.

Draining, in this order: health says NOT_SERVING, new calls get UNAVAILABLE, the running ones complete, open
health watches are ended, and only then gRPC stops. Stopping gRPC alone would be held for its whole grace by
one watch, and would cancel calls that arrive meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from kaem.protocol.messages import MAX_MESSAGE_BYTES, MESSAGE_HEADROOM, Limits
from kaem.runtime import LocalSampler
from serve import health, reflection, services
from serve.address import bare_host, check_address, format_address, why_not_bound
from serve.allocator import keep_large_blocks, release_when_idle
from serve.calls import Gate, Reception
from serve.current import Tally
from serve.devices import Device, open_engine, parse_devices
from serve.engine import Engine
from serve.fleet import Fleet, fleet_of
from serve.guard import Guard
from serve.logs import CallLog
from serve.models import Models, open_model
from serve.observer import Observer, Observers
from serve.services import SamplerService, limits_of
from serve.settings import ServeSettings, check_name
from serve.tls import Tls

if TYPE_CHECKING:
    from serve.http import HttpServer

_STOP_GRACE_S = 1.0
_log = logging.getLogger(__name__)


class Server:
    """One model on one port.

    Args:
        engines: One per device, all with the same model; the caller closes them after the server has stopped.
        settings: What the operator decided.
        observer: Told what happens.

    Raises:
        ConfigError: The model cannot be offered under its name, or certificates or tokens cannot be used.
    """

    def __init__(self, engines: Sequence[Engine], settings: ServeSettings, observer: Observer | None = None) -> None:
        self._engines = engines
        self._settings = settings
        self.observer = observer or Observer()
        self._host = bare_host(settings.host)
        self._name = settings.name or engines[0].manifest.name
        check_name(self._name)
        self.models = Models()
        self.http_address = ""  # once it has been started, and if it has one
        self._health = health.Health(("", services.SERVICE, f"kaem.model/{self._name}"))
        self._running = AsyncExitStack()  # what has been started, and how to stop it
        self.gate = Gate()
        self._is_draining = False
        self._tls = Tls(settings) if settings.is_encrypted else None
        self._watchers = Observers((Tally(), self.observer))
        guard = Guard(settings, self._watchers)
        self._watchers.add(guard)
        self._add_telemetry()
        self._reception = Reception(self.gate, self._watchers, guard)

    async def start(self) -> str:
        """Bind, warm up and serve; health says NOT_SERVING until this returns.

        Returns:
            The address clients connect to, `grpc://host:port`, or `grpcs://` with TLS.

        Raises:
            ConfigError: The address cannot be used.
            ArtifactError: An image of the model does not fit in a message.
            BackendError: The model does not run.
        """
        settings = self._settings
        check_address(self._host, settings.port, insecure=settings.insecure or settings.is_encrypted)
        manifest = self._engines[0].manifest
        limits = limits_of(manifest, settings.max_chunk_bytes)
        largest_request = 4 * manifest.noise_dim + MESSAGE_HEADROOM
        self._grpc = grpc.aio.server(
            options=(
                ("grpc.so_reuseport", 0),  # a second server on the port is a mistake, not a cluster
                ("grpc.max_receive_message_length", max(MAX_MESSAGE_BYTES, largest_request)),
            )
        )
        self._running.push_async_callback(self._grpc.stop, 0)
        try:
            await self._start_http()
            self._add_services()
            port = self._bind()
            await self._grpc.start()
            await self._open_model(limits)
        except BaseException:
            await self.stop()
            raise
        fleet = fleet_of(self._engines)
        self._reopen(1 if fleet is None else fleet.num_alive)
        address = f"grpc{'s' if self._tls else ''}://{format_address(self._host, port)}"
        _log.info("serving model %r at %s", self._name, address)
        return address

    async def drain(self) -> None:
        """Refuse new calls and let the running ones complete, for at most the grace; then stop."""
        self._is_draining = True
        self._health.set_serving(False)
        self.gate.close("is shutting down")
        if not await self.gate.wait_empty(self._settings.drain_grace_s):
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
            from serve.tracing import Tracing, open_provider

            provider = open_provider()
            self._running.push_async_callback(asyncio.to_thread, provider.shutdown)  # sends what it still has
            self._watchers.add(Tracing(provider))
        self._http: HttpServer | None = None
        if settings.http_port is not None:
            from serve.http import HttpServer, monitoring_routes
            from serve.metrics import Metrics

            metrics = Metrics(self.models, lambda: self.gate.closed_because is None)
            self._watchers.add(metrics)
            self._http = HttpServer(
                monitoring_routes(metrics.registry, lambda: self.gate.closed_because or ""),
                host=settings.http_host,
                port=settings.http_port,
                insecure=settings.insecure,
                tls=self._tls.http_context() if self._tls else None,
            )

    async def _start_http(self) -> None:
        if self._http is not None:
            self.http_address = await self._http.start()
            self._running.push_async_callback(self._http.stop)
            _log.info("metrics, /healthz and /readyz at %s", self.http_address)

    def _add_services(self) -> None:
        service = SamplerService(self.models, self._settings, self._watchers)
        names = (services.SERVICE, health.SERVICE, reflection.SERVICE)
        self._grpc.add_generic_rpc_handlers(
            (
                service.handler(self._reception),
                self._health.handler(self._reception),
                reflection.handler(names, self._reception),
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

    async def _open_model(self, limits: Limits) -> None:
        model = await open_model(
            self._engines,
            name=self._name,
            limits=limits,
            bounds=self._settings.bounds,
            max_batch=self._settings.max_batch,
            observer=self._watchers,
            on_devices=self._reopen,
        )
        self._running.push_async_callback(model.close)
        self.models.put(model)

    def _reopen(self, num_alive: int) -> None:
        """Let calls in as long as a device is left."""
        if self._is_draining:
            return
        self._health.set_serving(num_alive > 0)
        if num_alive:
            self.gate.open()
        else:
            self.gate.close("has lost its devices and starts them again")


def run(path: Path, settings: ServeSettings, *, on_serving: Callable[[str], None]) -> None:
    """Serve an artifact until SIGTERM, SIGINT or SIGHUP, then drain; a second signal stops at once.

    Args:
        path: The artifact.
        settings: What the operator decided.
        on_serving: Called with the address once requests are answered.

    Raises:
        KaemError: The server could not start; see `LocalSampler` and `Server.start`.
        SystemExit: 128 + n, signal n came before anything was served.
    """
    keep_large_blocks()
    with _open_engines(path, settings) as engines:
        early = asyncio.run(_run_until_signal(engines, settings, on_serving))
    if early is not None:
        raise SystemExit(128 + early)


@contextmanager
def _open_engines(path: Path, settings: ServeSettings) -> Iterator[Sequence[Engine]]:
    if settings.device is not None:
        with Fleet(path, parse_devices(settings.device), workers=settings.workers) as fleet:
            yield fleet.engines
    elif settings.provider == "ort-tensorrt":
        with LocalSampler(path, provider=settings.provider, workers=settings.workers) as sampler:
            yield [sampler]
    else:
        with open_engine(path, Device(settings.provider), workers=settings.workers) as engine:
            yield [engine]


async def _run_until_signal(
    engines: Sequence[Engine], settings: ServeSettings, on_serving: Callable[[str], None]
) -> int | None:
    """Return None after a drain, or the signal that came before there was anything to drain."""
    signals: asyncio.Queue[int] = asyncio.Queue()
    # Taken from whoever had them before the first task of gRPC: an exception raised by a signal handler would end
    # the loop under gRPC, which then never stops.
    for number in _signals():
        asyncio.get_running_loop().add_signal_handler(number, signals.put_nowait, number)
    server = Server(engines, settings)
    try:
        starting = asyncio.create_task(server.start())
        early = await _signal_during(starting, signals)
        if early is not None:
            return early
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


def _signals() -> list[signal.Signals]:
    """Return the signals that ask a server to stop; under nohup a hangup is none of them."""
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, signal.SIGINT, *hangup]


async def _signal_during(task: asyncio.Task[Any], signals: asyncio.Queue[int]) -> int | None:
    """Wait until a task is done and return None, or cancel it because of a signal, which is returned."""
    signalled = asyncio.create_task(signals.get())
    await asyncio.wait((task, signalled), return_when=asyncio.FIRST_COMPLETED)
    if not signalled.done():
        signalled.cancel()
        return None
    task.cancel()
    await asyncio.wait((task,))
    return signalled.result()
