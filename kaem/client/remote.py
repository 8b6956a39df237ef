"""A sampler on servers: same methods and same bits as a local one, whatever fails on the way.

Every call is a pure function of its request, so what fails in transit is simply asked for again, here or elsewhere: a
stream from the index after the last image received, a single call as it was. All servers must compute with the
numerics id that we were told when connecting; otherwise old and new images would not belong together.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, NoReturn, Self

import grpc
import numpy as np

from kaem.artifact import Manifest
from kaem.client.addresses import Target, parse_targets
from kaem.client.connection import Credentials, check_process, not_picklable, open_channel
from kaem.client.handshake import GRACE_S, Greeting, NoAnswerError, Outcome, models_met
from kaem.client.plan import ClientPlan, Exchange, agreed, check_timeout, failure_of
from kaem.client.requests import model_question
from kaem.client.retry import Hedging, Patience
from kaem.client.threads import pieces
from kaem.errors import KaemError, RequestError
from kaem.protocol import kaem_pb2, kaem_pb2_grpc
from kaem.protocol.messages import Model, model_from_message
from kaem.sampler import Chunk, Images, OnProgress, Uniforms
from kaem.unclosed import warn_unclosed
from kaem.validation import check_memory, check_range, check_uniforms


def connect(
    targets: str | Sequence[str],
    *,
    timeout_s: float = 10.0,
    patience: Patience | None = None,
    hedging: Hedging | None = None,
    credentials: Credentials | None = None,
    model: str = "",
    version: int = 0,
) -> RemoteSampler:
    """Connect to a server or to several, waiting for one that is still starting.

    Args:
        targets: `grpc://host:port` (`grpcs://` for TLS); several, separated by commas or as a sequence, share the
            work. Of several, one must answer now; the others may do so later.
        timeout_s: How long to wait for a server to be ready.
        patience: How long later calls put up with failures and silence.
        hedging: When to ask a second server for what a first one is late with; never by default.
        credentials: Certificates and token; by default what the environment says (`KAEM_CA_FILE`, ...).
        model: Name of the model, for servers that have several; "" for the only one.
        version: Version of the model; 0 for the newest one. Either way the sampler stays with the version it meets now.

    Raises:
        ConfigError: A target is not an address, credentials cannot be used, or servers do not compute the same bits.
        RequestError: A server has no such model or version.
        RemoteError: No kaem server answered in time, or one answered that it cannot be used.
        ArtifactError: A server's model is of a format this kaem does not read.
    """
    found = parse_targets(targets)
    timeout_s = check_timeout(timeout_s) or timeout_s
    credentials = credentials or Credentials.from_environment()
    credentials.check(found)
    question = model_question(model, version)
    with ExitStack() as stack:
        channels = [stack.enter_context(open_channel(target, credentials)) for target in found]
        stubs = [kaem_pb2_grpc.SamplerStub(channel) for channel in channels]  # type: ignore[no-untyped-call]
        models = _meet(found, stubs, question, credentials, timeout_s)
        plan = ClientPlan(
            targets=found,
            models=agreed(found, models),
            credentials=credentials,
            patience=patience or Patience(),
            hedging=hedging,
        )
        stack.pop_all()
    return RemoteSampler(channels, stubs, plan)


class RemoteSampler:
    """A sampler on servers; see `kaem.sampler.Sampler` for the contract. Made by `connect`.

    Thread-safe: any number of threads may call its methods at once.

    Args:
        channels: Connections, closed with this object.
        stubs: The generated stub on each.
        plan: What is known of the servers, and how to deal with them.
    """

    _is_closed = True  # until it is made

    def __init__(self, channels: Sequence[grpc.Channel], stubs: Sequence[Any], plan: ClientPlan) -> None:
        self._channels = channels
        self._stubs = stubs
        self._plan = plan
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

    @property
    def max_sample_rows(self) -> int:
        """Samples that every server answers in one message."""
        return self._plan.max_sample_rows

    def sample(
        self,
        num: int,
        seed: int,
        start: int = 0,
        *,
        on_progress: OnProgress | None = None,
        timeout_s: float | None = None,
    ) -> Images:
        """Return samples `start .. start + num - 1` of `seed`.

        Args:
            num: Number of samples, at least 1; all are held in memory (use `stream` for more than fit).
            seed: In [0, 2^64).
            start: Index of the first sample; start + num must not pass 2^64.
            on_progress: Called with (samples done, num) as they arrive.
            timeout_s: Deadline in seconds; by default it grows with `num` (see `Patience`).

        Returns:
            Shape (num, C, H, W), float32 in [0, 1] or uint8 as the manifest states.

        Raises:
            RequestError: A value is out of range, or the images would not fit in this machine's memory.
            RemoteError: The servers gave up, were too late, or their numerics id has changed.
        """
        num, seed, start = check_range(num, seed, start)
        check_memory(num * self.manifest.image_bytes)
        exchange = self._plan.samples(num, seed, start, timeout_s=timeout_s, now=time.monotonic())
        images = np.empty((num, *self.manifest.image_shape), self.manifest.image_type)
        with closing(self._pieces(exchange)) as parts:
            for first, part in parts:
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
    ) -> Iterator[Chunk]:
        """Yield the same samples in order, in chunks of about 1 MiB; servers compute only a little ahead.

        Args:
            num: Number of samples, at least 1.
            seed: In [0, 2^64).
            start: Index of the first sample.
            on_progress: Called with (samples done, num) before each chunk is handed out.
            timeout_s: Deadline in seconds spent waiting here, not with a chunk elsewhere; by default it grows with
                `num` (see `Patience`).

        Raises:
            RequestError: A value is out of range (raised at the call, not at the first chunk).
            RemoteError: The servers gave up, were too late, or their numerics id has changed (raised between chunks).
        """
        num, seed, start = check_range(num, seed, start)
        self._check_open()
        check_timeout(timeout_s)
        return self._chunks(num, seed, start, on_progress, timeout_s)

    def decode(
        self, uniform: Uniforms, *, on_progress: OnProgress | None = None, timeout_s: float | None = None
    ) -> Images:
        """Map rows of uniforms to images.

        Args:
            uniform: Shape (N, D), signed in [-1/2, 1/2] or plain in [0, 1).
            on_progress: Called with (rows done, N) as images arrive.
            timeout_s: Deadline in seconds; by default it grows with N (see `Patience`).

        Returns:
            Shape (N, C, H, W).

        Raises:
            RequestError: Wrong shape or a value out of range.
            RemoteError: The servers gave up, were too late, or their numerics id has changed.
        """
        rows = check_uniforms(uniform, self.manifest.noise_dim)
        exchange = self._plan.decoding(rows, timeout_s=timeout_s, now=time.monotonic())
        images = np.empty((len(rows), *self.manifest.image_shape), self.manifest.image_type)
        with closing(self._pieces(exchange)) as parts:
            for first, part in parts:
                images[first : first + len(part)] = part
                if on_progress is not None:
                    on_progress(first + len(part), len(rows))
        return images

    def close(self) -> None:
        """Close the connections; streams that are being read end with an error."""
        self._is_closed = True
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(
        self, _warn: Callable[[str, object], None] = warn_unclosed, _process: Callable[[], int] = os.getpid
    ) -> None:
        if not self._is_closed and self._process == _process():  # a forked child has nothing to close
            _warn(f"sampler connected to {self._addresses}", self)

    def _chunks(
        self, num: int, seed: int, start: int, on_progress: OnProgress | None, timeout_s: float | None
    ) -> Iterator[Chunk]:
        exchange = self._plan.stream(num, seed, start, timeout_s=timeout_s, now=time.monotonic())
        with closing(self._pieces(exchange)) as parts:
            for first, part in parts:
                if on_progress is not None:
                    on_progress(first - start + len(part), num)
                yield Chunk(start=first, images=part.copy())

    def _pieces(self, exchange: Exchange) -> Generator[tuple[int, Images], None, None]:
        return pieces(exchange, self._stubs, self._plan.targets, self._check_open)

    def _check_open(self) -> None:
        if self._is_closed:
            raise RequestError("this sampler is closed")
        check_process(self._process)

    def __reduce__(self) -> NoReturn:
        raise not_picklable()


class _Greeter(threading.Thread):
    """Asks one server for its model, and reports (number, model or error) to a queue."""

    def __init__(
        self,
        number: int,
        target: Target,
        stub: Any,
        question: kaem_pb2.GetModelRequest,
        credentials: Credentials,
        timeout_s: float,
        met: SimpleQueue[Any],
    ) -> None:
        super().__init__(name="kaem-greet", daemon=True)
        self._number = number
        self._target = target
        self._stub = stub
        self._question = question
        self._credentials = credentials
        self._greeting = Greeting(target, timeout_s, now=time.monotonic())
        self._met = met
        self._is_over = threading.Event()
        self._call: Any = None

    def run(self) -> None:
        """Ask until there is an answer."""
        try:
            outcome: Outcome = self._ask()
        except (KaemError, NoAnswerError) as error:
            outcome = error
        self._met.put((self._number, outcome))

    def cancel(self) -> None:
        """Stop asking."""
        self._is_over.set()
        if self._call is not None:
            self._call.cancel()

    def _ask(self) -> Model | None:
        while not self._is_over.is_set():
            self._call = self._stub.GetModel.future(
                self._question,
                timeout=self._greeting.left_s(time.monotonic()),
                metadata=self._credentials.metadata(),
            )
            try:
                return model_from_message(
                    self._call.result(), source=self._target.address, version=self._question.version
                )
            except grpc.FutureCancelledError:
                break
            except grpc.RpcError as error:
                failure = failure_of(error, self._target)
                self._is_over.wait(self._greeting.delay_s(failure, time.monotonic()))
        return None


def _meet(
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
    met: SimpleQueue[tuple[int, Outcome]] = SimpleQueue()
    greeters = [
        _Greeter(number, target, stub, question, credentials, timeout_s, met)
        for number, (target, stub) in enumerate(zip(targets, stubs, strict=True))
    ]
    outcomes: list[Outcome] = [None] * len(targets)
    limit = time.monotonic() + timeout_s + GRACE_S
    try:
        for greeter in greeters:
            greeter.start()
        for _ in targets:
            number, outcome = met.get(timeout=max(0.0, limit - time.monotonic()))
            outcomes[number] = outcome
            if isinstance(outcome, Model):
                limit = min(limit, time.monotonic() + GRACE_S)
            elif isinstance(outcome, KaemError):
                break
    except Empty:
        pass  # some are not there yet
    finally:
        for greeter in greeters:
            greeter.cancel()
    return models_met(targets, outcomes)
