"""The life of a server: bind -> warm up -> serve -> drain -> stop.

Draining, in this order: health says NOT_SERVING, new calls get UNAVAILABLE, the running ones complete, open
health watches are ended, and only then gRPC stops. Stopping gRPC alone would be held for its whole grace by
one watch, and would cancel calls that arrive meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc

from kaem import noise
from kaem.artifact import Manifest
from kaem.protocol.messages import MAX_MESSAGE_BYTES, MESSAGE_HEADROOM, Limits
from kaem.runtime import MAX_ROWS, LocalSampler
from serve import health, reflection, services
from serve.address import bare_host, check_address, format_address, why_not_bound
from serve.allocator import keep_large_blocks, release_when_idle
from serve.calls import Gate
from serve.scheduler import Scheduler
from serve.services import Backend, SamplerService, limits_of
from serve.settings import ServeSettings, check_name

_MAX_BATCH_BYTES = 64 << 20  # of images, where the operator names no batch size
_STOP_GRACE_S = 1.0
_WARM_UP_S = 10.0
_log = logging.getLogger(__name__)


class Server:
    """One model on one port.

    Args:
        backend: The sampler; the caller closes it after the server has stopped.
        settings: What the operator decided.

    Raises:
        ConfigError: The model cannot be offered under its name.
    """

    def __init__(self, backend: Backend, settings: ServeSettings) -> None:
        self._backend = backend
        self._settings = settings
        self._host = bare_host(settings.host)
        self._name = settings.name or backend.manifest.name
        check_name(self._name)
        self._max_batch = settings.max_batch or _default_max_batch(backend.manifest, backend.workers)
        self._health = health.Health(("", services.SERVICE, f"kaem.model/{self._name}"))
        self._running = AsyncExitStack()  # what has been started, and how to stop it
        self.gate = Gate()

    async def start(self) -> str:
        """Bind, warm up and serve; health says NOT_SERVING until this returns.

        Returns:
            The address clients connect to, `grpc://host:port`.

        Raises:
            ConfigError: The address cannot be used.
            ArtifactError: An image of the model does not fit in a message.
            BackendError: The model does not run.
        """
        settings = self._settings
        check_address(self._host, settings.port, insecure=settings.insecure)
        limits = limits_of(self._backend.manifest, settings.max_chunk_bytes)
        largest_request = 4 * self._backend.manifest.noise_dim + MESSAGE_HEADROOM
        self._grpc = grpc.aio.server(
            options=(
                ("grpc.so_reuseport", 0),  # a second server on the port is a mistake, not a cluster
                ("grpc.max_receive_message_length", max(MAX_MESSAGE_BYTES, largest_request)),
            )
        )
        self.scheduler = Scheduler(self._backend.decode, max_batch=self._max_batch)
        self._running.push_async_callback(self.scheduler.close)
        self._running.push_async_callback(self._grpc.stop, 0)
        try:
            self._add_services(limits)
            port = self._bind()
            await self._grpc.start()
            await self._warm_up()
        except BaseException:
            await self.stop()
            raise
        self._health.set_serving(True)
        self.gate.open()
        _log.info(
            "serving model %r on %s with %d workers, batches of at most %d rows",
            self._name,
            self._backend.provider,
            self._backend.workers,
            self._max_batch,
        )
        return f"grpc://{format_address(self._host, port)}"

    async def drain(self) -> None:
        """Refuse new calls and let the running ones complete, for at most the grace; then stop."""
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

    def _add_services(self, limits: Limits) -> None:
        service = SamplerService(self._backend, self.scheduler, name=self._name, limits=limits)
        names = (services.SERVICE, health.SERVICE, reflection.SERVICE)
        self._grpc.add_generic_rpc_handlers(
            (service.handler(self.gate), self._health.handler(), reflection.handler(names))
        )

    def _bind(self) -> int:
        host, port = self._host, self._settings.port
        try:
            return self._grpc.add_insecure_port(format_address(host, port))
        except RuntimeError:  # which does not say why
            raise why_not_bound(host, port) from None

    async def _warm_up(self) -> None:
        """Run every power of two and the largest batch once, so that no request pays for a first time.

        A model whose sampler takes many steps is slow at any time: the rest is left out after ten seconds.
        """
        sizes = {1 << power for power in range(self._max_batch.bit_length())} | {self._max_batch}
        begin = time.monotonic()
        for rows in sorted(sizes):
            await asyncio.to_thread(self._decode_noise, rows)
            if time.monotonic() - begin > _WARM_UP_S:
                return

    def _decode_noise(self, rows: int) -> None:
        self._backend.decode(noise.uniforms(0, 0, rows, self._backend.manifest.noise_dim))


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
    with LocalSampler(path, provider=settings.provider, workers=settings.workers) as sampler:
        early = asyncio.run(_run_until_signal(sampler, settings, on_serving))
    if early is not None:
        raise SystemExit(128 + early)


async def _run_until_signal(backend: Backend, settings: ServeSettings, on_serving: Callable[[str], None]) -> int | None:
    """Return None after a drain, or the signal that came before there was anything to drain."""
    signals: asyncio.Queue[int] = asyncio.Queue()
    # Taken from whoever had them before the first task of gRPC: an exception raised by a signal handler would end
    # the loop under gRPC, which then never stops.
    for number in _signals():
        asyncio.get_running_loop().add_signal_handler(number, signals.put_nowait, number)
    server = Server(backend, settings)
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


def _default_max_batch(manifest: Manifest, workers: int) -> int:
    """Return a full session call for every worker, or fewer rows where images are large."""
    return max(1, min(MAX_ROWS * workers, _MAX_BATCH_BYTES // manifest.image_bytes))
