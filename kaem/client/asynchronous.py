"""A sampler on servers for asyncio: the methods of `RemoteSampler` as coroutines, the same images."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, NoReturn, Self

import grpc
import numpy as np

from kaem.artifact import Manifest
from kaem.client.addresses import Target, parse_targets
from kaem.client.connection import Credentials, check_process, not_picklable, open_async_channel
from kaem.client.handshake import GRACE_S, Greeting, NoAnswerError, Outcome, models_met
from kaem.client.plan import ClientPlan, agreed, check_timeout, failure_of
from kaem.client.requests import model_question
from kaem.client.retry import Hedging, Patience
from kaem.client.tasks import pieces
from kaem.errors import KaemError, RequestError
from kaem.protocol import kaem_pb2, kaem_pb2_grpc
from kaem.protocol.messages import Model, model_from_message
from kaem.sampler import Chunk, Images, OnProgress, Uniforms
from kaem.unclosed import warn_unclosed
from kaem.validation import check_memory, check_range, check_uniforms


def connect_async(
    targets: str | Sequence[str],
    *,
    timeout_s: float = 10.0,
    patience: Patience | None = None,
    hedging: Hedging | None = None,
    credentials: Credentials | None = None,
    model: str = "",
    version: int = 0,
) -> Connecting:
    """Connect to a server or to several; see `kaem.client.remote.connect` for the arguments.

    Returns:
        A sampler when awaited; one that is closed at the end of the block when entered with `async with`.

    Raises:
        ConfigError: A target is not an address, or credentials cannot be used. When awaited: also if servers do not
            compute the same bits.
        RequestError: `version` is out of range. When awaited: also if a server has no such model or version.
        RemoteError: When awaited: no kaem server answered in time, or one answered that it cannot be used.
        ArtifactError: When awaited: a server's model is of a format this kaem does not read.
    """
    found = parse_targets(targets)
    credentials = credentials or Credentials.from_environment()
    credentials.check(found)
    timeout_s = check_timeout(timeout_s) or timeout_s
    return Connecting(found, model_question(model, version), timeout_s, patience or Patience(), hedging, credentials)


class Connecting:
    """A connection that is being made: `await` it, or enter it with `async with`.

    Args:
        targets: The servers.
        question: For their model.
        timeout_s: How long to wait for one to be ready.
        patience: With failing and silent ones.
        hedging: When to ask a second one.
        credentials: What we show them.
    """

    def __init__(
        self,
        targets: tuple[Target, ...],
        question: kaem_pb2.GetModelRequest,
        timeout_s: float,
        patience: Patience,
        hedging: Hedging | None,
        credentials: Credentials,
    ) -> None:
        self._targets = targets
        self._question = question
        self._timeout_s = timeout_s
        self._patience = patience
        self._hedging = hedging
        self._credentials = credentials
        self._sampler: AsyncRemoteSampler | None = None

    def __await__(self) -> Generator[Any, None, AsyncRemoteSampler]:
        return self._connect().__await__()

    async def __aenter__(self) -> AsyncRemoteSampler:
        self._sampler = await self._connect()
        return self._sampler

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sampler is not None:
            await self._sampler.close()

    async def _connect(self) -> AsyncRemoteSampler:
        channels: list[grpc.aio.Channel] = []
        try:
            channels += [open_async_channel(target, self._credentials) for target in self._targets]
            stubs = [kaem_pb2_grpc.SamplerStub(channel) for channel in channels]  # type: ignore[no-untyped-call]
            models = await _meet(self._targets, stubs, self._question, self._credentials, self._timeout_s)
            plan = ClientPlan(
                targets=self._targets,
                models=agreed(self._targets, models),
                credentials=self._credentials,
                patience=self._patience,
                hedging=self._hedging,
            )
        except BaseException:
            for channel in channels:
                await channel.close(None)
            raise
        return AsyncRemoteSampler(channels, stubs, plan)


class AsyncRemoteSampler:
    """A sampler on servers for asyncio. Made by `connect_async`; used in the event loop that made it.

    Args:
        channels: Connections, closed with this object.
        stubs: The generated stub on each.
        plan: What is known of the servers, and how to deal with them.
    """

    _is_closed = True  # until it is made

    def __init__(self, channels: Sequence[grpc.aio.Channel], stubs: Sequence[Any], plan: ClientPlan) -> None:
        self._channels = channels
        self._stubs = stubs
        self._plan = plan
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()
        self._addresses = ", ".join(target.address for target in plan.targets)
        self._is_closed = False

    @property
    def manifest(self) -> Manifest:
        """What the servers' artifact says about itself."""
        return self._plan.manifest

    @property
    def numerics_id(self) -> str:
        """Digest of artifact, provider and runtime version: equal ids give equal bits."""
        return self._plan.numerics_id

    async def sample(
        self,
        num: int,
        seed: int,
        start: int = 0,
        *,
        on_progress: OnProgress | None = None,
        timeout_s: float | None = None,
    ) -> Images:
        """Return samples `start .. start + num - 1` of `seed`; see `RemoteSampler.sample`."""
        self._check_open()
        num, seed, start = check_range(num, seed, start)
        check_memory(num * self.manifest.image_bytes)
        exchange = self._plan.samples(num, seed, start, timeout_s=timeout_s, now=time.monotonic())
        images = np.empty((num, *self.manifest.image_shape), self.manifest.image_type)
        async with aclosing(pieces(exchange, self._stubs, self._plan.targets, self._check_open)) as parts:
            async for first, part in parts:
                images[first - start : first - start + len(part)] = part
                if on_progress is not None:
                    on_progress(first - start + len(part), num)
        return images

    def stream(
        self,
        num: int,
        seed: int,
        start: int = 0,
        *,
        on_progress: OnProgress | None = None,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Chunk, None]:
        """Yield the same samples in order, in chunks; see `RemoteSampler.stream`.

        Leave it early with `aclose` (or `contextlib.aclosing`), so that the servers stop at once.
        """
        num, seed, start = check_range(num, seed, start)
        self._check_open()
        check_timeout(timeout_s)
        return self._chunks(num, seed, start, on_progress, timeout_s)

    async def decode(
        self, uniform: Uniforms, *, on_progress: OnProgress | None = None, timeout_s: float | None = None
    ) -> Images:
        """Map rows of uniforms, shape (N, D), to images, shape (N, C, H, W); see `RemoteSampler.decode`."""
        rows = check_uniforms(uniform, self.manifest.noise_dim)
        exchange = self._plan.decoding(rows, timeout_s=timeout_s, now=time.monotonic())
        images = np.empty((len(rows), *self.manifest.image_shape), self.manifest.image_type)
        async with aclosing(pieces(exchange, self._stubs, self._plan.targets, self._check_open)) as parts:
            async for first, part in parts:
                images[first : first + len(part)] = part
                if on_progress is not None:
                    on_progress(first + len(part), len(rows))
        return images

    async def close(self) -> None:
        """Close the connections; streams that are being read end with an error."""
        self._is_closed = True
        for channel in self._channels:
            await channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(
        self, _warn: Callable[[str, object], None] = warn_unclosed, _process: Callable[[], int] = os.getpid
    ) -> None:
        if not self._is_closed and self._process == _process():  # a forked child has nothing to close
            _warn(f"sampler connected to {self._addresses}", self)

    async def _chunks(
        self, num: int, seed: int, start: int, on_progress: OnProgress | None, timeout_s: float | None
    ) -> AsyncGenerator[Chunk, None]:
        exchange = self._plan.stream(num, seed, start, timeout_s=timeout_s, now=time.monotonic())
        async with aclosing(pieces(exchange, self._stubs, self._plan.targets, self._check_open)) as parts:
            async for first, part in parts:
                if on_progress is not None:
                    on_progress(first - start + len(part), num)
                yield Chunk(start=first, images=part.copy())

    def _check_open(self) -> None:
        if self._is_closed:
            raise RequestError("this sampler is closed")
        check_process(self._process)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # a stream may be made anywhere; it asks in its loop
            return
        if loop is not self._loop:
            raise RequestError(
                "this sampler was connected in another event loop, and works there only",
                hint="connect in the loop that asks: async with kaem.connect_async(...)",
            )

    def __reduce__(self) -> NoReturn:
        raise not_picklable()


async def _greet(
    target: Target, stub: Any, question: kaem_pb2.GetModelRequest, credentials: Credentials, timeout_s: float
) -> Outcome:
    """Ask one server for its model until it answers or time is up."""
    greeting = Greeting(target, timeout_s, now=time.monotonic())
    try:
        while True:
            try:
                message = await stub.GetModel(
                    question,
                    timeout=greeting.left_s(time.monotonic()),
                    metadata=credentials.metadata(),
                )
                return model_from_message(message, source=target.address, version=question.version)
            except grpc.aio.AioRpcError as error:
                await asyncio.sleep(greeting.delay_s(failure_of(error, target), time.monotonic()))
    except (KaemError, NoAnswerError) as error:
        return error


async def _meet(
    targets: Sequence[Target],
    stubs: Sequence[Any],
    question: kaem_pb2.GetModelRequest,
    credentials: Credentials,
    timeout_s: float,
) -> list[Model | None]:
    """Ask all servers for their models; once one has answered, the others are waited for only a little.

    Raises:
        KaemError: None answered, or one answered that it cannot be used.
    """
    greeters = [
        asyncio.create_task(_greet(target, stub, question, credentials, timeout_s))
        for target, stub in zip(targets, stubs, strict=True)
    ]
    limit = time.monotonic() + timeout_s + GRACE_S
    waiting = set(greeters)
    try:
        while waiting and (left := limit - time.monotonic()) > 0:
            done, waiting = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            outcomes = [task.result() for task in done]
            if any(isinstance(outcome, KaemError) for outcome in outcomes):
                break
            if any(isinstance(outcome, Model) for outcome in outcomes):
                limit = min(limit, time.monotonic() + GRACE_S)
    finally:
        for task in greeters:
            task.cancel()
        await asyncio.wait(greeters)
    return models_met(targets, [None if task.cancelled() else task.result() for task in greeters])
