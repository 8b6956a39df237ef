"""What a call says about itself beside its message: its deadline, its class, and what a part of the answer is worth.

`kaem-priority: interactive | bulk` chooses the class; otherwise the number of samples does. `kaem-partial: true` says
that a stream cut off by its deadline is still of use, because its reader goes on at the next index: then only its
first chunk has to be ready in time for it to be let in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import grpc

from kaem.errors import RequestError
from kaem.protocol.status import PARTIAL_KEY, PRIORITY_KEY
from serve.calls.interceptor import Context
from serve.statuses import RefusedError

_PRIORITIES = ("interactive", "bulk")
_ANSWERS = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class CallOptions:
    """A call's own wishes.

    Attributes:
        priority: "interactive", "bulk" or "" for what the number of samples says.
        is_partial_welcome: Whether a part of the answer is better than none.
        timeout_s: Seconds until its deadline; None without one.
    """

    priority: str
    is_partial_welcome: bool
    timeout_s: float | None

    def is_bulk(self, samples: int, interactive_samples: int) -> bool:
        """Whether a request of so many samples belongs to the second class."""
        return self.priority == "bulk" if self.priority else samples > interactive_samples


def read_call_options(context: Context) -> CallOptions:
    """Read a call's call options.

    Raises:
        RefusedError: INVALID_ARGUMENT, a value is not one of those known.
    """
    metadata = {key: value for key, value in context.invocation_metadata() or () if key in (PRIORITY_KEY, PARTIAL_KEY)}
    priority, partial = metadata.get(PRIORITY_KEY, ""), metadata.get(PARTIAL_KEY, "false")
    if priority and priority not in _PRIORITIES:
        raise _unknown(PRIORITY_KEY, priority, _PRIORITIES)
    if partial not in _ANSWERS:
        raise _unknown(PARTIAL_KEY, partial, _ANSWERS)
    return CallOptions(str(priority), _ANSWERS[str(partial)], context.time_remaining())


def _unknown(key: str, value: object, known: Iterable[str]) -> RefusedError:
    error = RequestError(f"{key} is {value!r}", hint=f"choose one of: {', '.join(known)}")
    return RefusedError(grpc.StatusCode.INVALID_ARGUMENT, error, field=key)
