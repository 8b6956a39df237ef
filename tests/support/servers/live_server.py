"""Real servers for tests: one in a thread of this process around any backend, one as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np

from kaem.artifact import Manifest
from kaem.protocol import kaem_pb2_grpc
from serve.catalog.repository import Found, Key, Signature, open_repository
from serve.events import Observer
from serve.server import Server
from serve.settings import ServeSettings

PARTIAL = (("kaem-partial", "true"),)
"""Of a stream whose deadline is far too short for all of it."""

LAUNCH = (sys.executable, "-W", "error", "-m", "cli.main", "serve")


class Backend:
    """A sampler that is cheap to understand: pixel p of a row is its uniform p mod D plus 1/2.

    Every batch waits for `may_run`, so a test decides when one may; it starts set.
    """

    provider = "cpu"
    workers = 1

    def __init__(self, *, image_shape=(1, 2, 2), image_type="float32", noise_dim=3, name="fake"):
        self.manifest = Manifest(
            family="kaem",
            name=name,
            noise_dim=noise_dim,
            latent_dim=noise_dim,
            image_shape=image_shape,
            image_type=image_type,
        )
        self.numerics_id = "sha256:" + hashlib.sha256(name.encode()).hexdigest()
        self.may_run = threading.Event()
        self.may_run.set()
        self.error: Exception | None = None
        self.rows = 0
        self.batches: list[int] = []

    def decode(self, uniform):
        self.may_run.wait(timeout=60)
        if self.error is not None:
            raise self.error
        self.rows += len(uniform)
        self.batches.append(len(uniform))
        pixels = np.resize(np.arange(self.manifest.noise_dim), int(np.prod(self.manifest.image_shape)))
        images = (uniform[:, pixels] + np.float32(0.5)).reshape(len(uniform), *self.manifest.image_shape)
        return images if self.manifest.image_type == "float32" else (images * 255).astype(np.uint8)


class Notes(Observer):
    """What tests ask about calls."""

    def __init__(self):
        self.admitted, self.rejected, self.ended, self.sent, self.failed_loads = [], [], [], [], []

    def on_admitted(self, *, is_bulk, rows):
        self.admitted.append((is_bulk, rows))

    def on_rejected(self, reason):
        self.rejected.append(reason)

    def on_call_ended(self, method, code, seconds):
        self.ended.append((method, code))

    def on_sent(self, *, model, version, rows, seconds):
        self.sent.append((model, rows))

    def on_load_failed(self, *, model, version):
        self.failed_loads.append((model, version))


class Held:
    """A repository of one backend that is in memory already; `Server(Held(backend), ..., open_engines=held.open)`."""

    def __init__(self, backend, name=None):
        self._backend = backend
        self._key = Key(name or backend.manifest.name, 1)

    def scan(self):
        return {self._key: Found(self._key, Path("in memory"), Signature(0, 0, 0))}

    @contextlib.contextmanager
    def open(self, path, is_wanted):
        yield [self._backend]


def server_of(backend, settings, observer):
    held = Held(backend, settings.name)
    return Server(held, settings, observer, open_engines=held.open)


class LiveServer:
    """A server in a thread of this process; `run` executes coroutines in its event loop."""

    def __init__(self, backend, **settings):
        self.backend = backend
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        try:
            self.server = self.run(self._make(backend, ServeSettings(**{"port": 0, **settings})))
            self.target = self.run(self.server.start())
        except BaseException:
            self._end()
            raise

    @staticmethod
    async def _make(backend, settings):
        return server_of(backend, settings, Notes())

    @property
    def scheduler(self):
        """Of the one model."""
        return self.server.models.get("").scheduler

    @property
    def address(self):
        return self.target.removeprefix("grpc://")

    def start(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine, timeout=30):
        return self.start(coroutine).result(timeout)

    def _end(self):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if isinstance(self.backend, Backend):
            self.backend.may_run.set()
        self.run(self.server.stop())
        self._end()


class FolderServer(LiveServer):
    """A server of a folder of artifacts, or of one, with small batches that are quickly warm."""

    def __init__(self, path, **settings):
        super().__init__(path, **{"max_batch": 8, "workers": 1, **settings})

    @staticmethod
    async def _make(path, settings):
        return Server(open_repository(path, name=settings.name), settings, Notes())

    def drained(self):
        """Wait until no old model is left."""

        async def wait():
            while tasks := list(self.server.library.catalog._draining):
                await asyncio.wait(tasks)

        self.run(wait())


@contextlib.contextmanager
def stub_of(address):
    """The generated stub on a plain channel, as any other gRPC client would use it."""
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield kaem_pb2_grpc.SamplerStub(channel)


class ServerProcess:
    """`kaem serve` in a process of its own."""

    def __init__(self, path: Path, *options: str):
        self.process = subprocess.Popen(
            [*LAUNCH, str(path), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self.target = self.process.stdout.readline().strip()
        if not self.target:
            raise AssertionError(self.process.communicate(timeout=30)[1])

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def kill(self):
        self.process.kill()
        self.process.wait(timeout=30)


@contextlib.contextmanager
def server_process(path: Path, *options: str) -> Iterator[ServerProcess]:
    server = ServerProcess(path, *options)
    try:
        yield server
    finally:
        server.kill()
        server.process.stdout.close()
        server.process.stderr.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
