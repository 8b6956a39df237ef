"""Whether a call may come in at all: its token, and what that token has left.

Wrong tokens cost time: whoever guesses from one address is answered late, and of one guess a second.

A wrong token is answered when its address has paid for it, a second each; a few are free, for a person who mistypes or
a client whose token was just renewed. Right tokens never wait, wherever they come from: to look them up costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from kaem.errors import RemoteError
from serve.calls.call_context import Call, current
from serve.calls.limits import Allowance
from serve.calls.tokens import Caller, Tokens
from serve.events import Observer
from serve.settings import ServeSettings
from serve.statuses import RefusedError

_KEY = "authorization"
_log = logging.getLogger(__name__)


class Authenticator(Observer):
    """Lets calls in by their tokens; without a token file, everybody.

    It observes what jobs are let in, to charge them to their callers.

    Args:
        settings: Where the tokens are, and what each may use unless its line says otherwise.
        observer: Told of calls that are turned away because of a limit.
        clock: Seconds on a clock that never goes back.

    Raises:
        ConfigError: The token file cannot be used.
    """

    def __init__(
        self, settings: ServeSettings, observer: Observer, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._observer = observer
        self._tokens = Tokens(Path(settings.token_file)) if settings.token_file else None
        self._rate = settings.token_rate
        self._concurrency = settings.token_concurrency
        self._clock = clock
        self._guesses = Guesses(clock)
        self._allowances: dict[str, Allowance] = {}  # by name: a token that is renewed keeps its debts

    @contextmanager
    def visit(self, call: Call) -> Iterator[None]:
        """Hold a caller's place while its call is answered.

        Raises:
            RefusedError: UNAUTHENTICATED, no token or one that is not known; RESOURCE_EXHAUSTED, a limit is reached.
        """
        self.identify(call)
        caller = call.caller
        if caller is None:
            yield
            return
        allowance = self._allowance(caller)
        try:
            allowance.enter(
                rate=self._rate if caller.rate is None else caller.rate,
                concurrency=self._concurrency if caller.concurrency is None else caller.concurrency,
            )
        except RefusedError as refused:
            self._observer.on_rejected(refused.quota)
            raise
        try:
            yield
        finally:
            allowance.charge(min(0, call.rows_sent - call.rows_admitted))
            allowance.leave()

    def identify(self, call: Call) -> None:
        """Note whose token a call carries.

        Raises:
            RefusedError: UNAUTHENTICATED, no token or one that is not known.
        """
        if self._tokens is not None:
            call.caller = self._find(self._tokens, call)

    async def hold_back(self, call: Call) -> None:
        """Wait before a call whose token is wrong is told so; one without a token has guessed nothing."""
        if _KEY not in call.metadata:
            return
        delay_s = self._guesses.delay_s(call.peer)
        self._guesses.num_waiting += 1
        try:
            await asyncio.sleep(delay_s)
        finally:
            self._guesses.num_waiting -= 1

    def on_admitted(self, *, is_bulk: bool, rows: int) -> None:
        """Charge a job to its caller."""
        call = current.get()
        if call is not None and call.caller is not None:
            self._allowance(call.caller).charge(rows)

    def _find(self, tokens: Tokens, call: Call) -> Caller:
        value = call.metadata.get(_KEY)
        if not isinstance(value, str):
            raise _unknown("this server asks for a token", "name a file with it: --token-file or KAEM_TOKEN_FILE")
        caller = tokens.find(value)
        if caller is None:
            _log.warning("request %s from %s has a token that is not known", call.request_id, call.peer)
            raise _unknown("the token is not known to this server", "check the token, or ask whoever runs the server")
        return caller

    def _allowance(self, caller: Caller) -> Allowance:
        if caller.name not in self._allowances:
            self._allowances[caller.name] = Allowance(caller.name, self._clock)
        return self._allowances[caller.name]


def _unknown(message: str, hint: str) -> RefusedError:
    return RefusedError(grpc.StatusCode.UNAUTHENTICATED, RemoteError(message, hint=hint))


_COST_S = 1.0
_FREE = 5
_LONGEST_S = 30.0  # for an answer
_MOST_ADDRESSES = 4096  # that are remembered
_MOST_WAITING = 1024  # at a time: each holds a call


class Guesses:
    """Knows from which addresses wrong tokens come; for the event loop.

    Attributes:
        num_waiting: Calls that wait for their answer.

    Args:
        clock: Seconds on a clock that never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._paid_at: dict[str, float] = {}  # when each address will have paid for all its guesses
        self.num_waiting = 0

    def delay_s(self, peer: str) -> float:
        """Note a wrong token; return the seconds after which it may be answered.

        Args:
            peer: Address and port that it comes from.
        """
        now, address = self._clock(), peer.rpartition(":")[0]
        paid_at = max(self._paid_at.pop(address, now), now) + _COST_S
        self._paid_at[address] = paid_at  # at the end of the table, whose first are forgotten first
        if len(self._paid_at) > _MOST_ADDRESSES:
            del self._paid_at[next(iter(self._paid_at))]
        if self.num_waiting >= _MOST_WAITING:
            return 0.0
        return min(max(0.0, paid_at - now - _FREE * _COST_S), _LONGEST_S)
