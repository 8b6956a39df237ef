"""The parameters of a request: which samples it means, and how it wants to be treated.

| parameter | meaning |
|---|---|
| `seed` | seed of the noise, 0 .. 2^64 - 1; a number, or text where a client's numbers end at 2^63 |
| `start` | index of the first sample, likewise; 0 by default |
| `count` | number of samples, 1 by default |
| `expected_numerics_id` | the numerics id that the answer must have |
| `priority` | 1: interactive, 2: bulk, 0: what the number of rows says |
| `timeout` | microseconds that the answer may take |

An unknown one is an error: a request with a misspelt seed would be answered with other images than were meant.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import grpc

from kaem.errors import RemoteError, RequestError
from kaem.protocol import inference_pb2
from kaem.protocol.messages import check_numerics
from kaem.validation import NUM_INDICES, check_range
from serve.calls.call_options import CallOptions
from serve.scheduling.sources import Seeded
from serve.statuses import RefusedError, blaming

Parameters = Mapping[str, inference_pb2.InferParameter]

_SAMPLES = ("seed", "start", "count")
_IGNORED = ("triton_enable_empty_final_response",)  # the last answer always says that it is the last
_KNOWN = (*_SAMPLES, "expected_numerics_id", "priority", "timeout", *_IGNORED)
_CLASSES = ("", "interactive", "bulk")  # by priority
_MOST_DIGITS = 20  # of 2^64


def check_known(parameters: Parameters) -> None:
    """Check that all parameters of a request have a meaning.

    Raises:
        RefusedError: INVALID_ARGUMENT, one has none.
    """
    for name in sorted(parameters):
        if name not in _KNOWN:
            with blaming(field_of(name)):
                raise RequestError(f"unknown parameter {name[:80]!r}", hint=f"known are: {', '.join(_KNOWN)}")


def names_samples(parameters: Parameters) -> bool:
    """Whether a request means samples by seed and index."""
    return any(name in parameters for name in _SAMPLES)


def read_samples(parameters: Parameters) -> tuple[Seeded, int]:
    """Return which samples a request means, and their number.

    Raises:
        RefusedError: INVALID_ARGUMENT, there is no seed, or a number is not in its range; OUT_OF_RANGE, the samples
            pass the last index.
    """
    with blaming(field_of("seed")):
        if "seed" not in parameters:
            raise RequestError("no seed", hint="give parameter 'seed', or tensor 'uniform'")
        seed = _whole(parameters, "seed", 0)
        check_range(1, seed, 0)
    with blaming(field_of("start")):
        start = _whole(parameters, "start", 0)
        check_range(1, seed, start)
    count = _whole(parameters, "count", 1)
    try:
        check_range(count, seed, start)
    except RequestError as error:
        is_past = start + count > NUM_INDICES
        code = grpc.StatusCode.OUT_OF_RANGE if is_past else grpc.StatusCode[error.grpc_status]
        raise RefusedError(code, error, field=field_of("count")) from None
    return Seeded(seed, start), count


def check_expected_numerics(parameters: Parameters, numerics_id: str) -> None:
    """Check the numerics id that a request demands, if it does.

    Raises:
        RefusedError: FAILED_PRECONDITION, the model has another; INVALID_ARGUMENT, it is no id.
    """
    name = "expected_numerics_id"
    if name in parameters:
        field, expected = field_of(name), parameters[name].string_param
        with blaming(field):
            if not expected:
                raise RequestError(f"{name} is not a text", hint="give the id that an answer carried")
        try:
            check_numerics(numerics_id, expected)
        except RemoteError as error:
            raise RefusedError(grpc.StatusCode.FAILED_PRECONDITION, error, field=field) from None


def merge_call_options(parameters: Parameters, call_options: CallOptions) -> CallOptions:
    """Return the call options of a request, those of its call being `call options`.

    Raises:
        RefusedError: INVALID_ARGUMENT, a number is not in its range.
    """
    priority, timeout_us = _whole(parameters, "priority", 0), _whole(parameters, "timeout", 0)
    with blaming(field_of("priority")):
        if not 0 <= priority < len(_CLASSES):
            raise RequestError(f"priority is {priority}", hint="1 is interactive, 2 bulk; 0 leaves it open")
    with blaming(field_of("timeout")):
        if timeout_us < 0:
            raise RequestError(f"timeout is {timeout_us} microseconds; give 0, for none, or more")
    limits = [
        limit for limit in (call_options.timeout_s, 1e-6 * timeout_us if timeout_us else None) if limit is not None
    ]
    return dataclasses.replace(
        call_options, priority=_CLASSES[priority] or call_options.priority, timeout_s=min(limits, default=None)
    )


def field_of(name: str) -> str:
    """Return the path of a parameter in a request."""
    return f"parameters[{name[:80]}]"


def _whole(parameters: Parameters, name: str, default: int) -> int:
    if name not in parameters:
        return default
    parameter = parameters[name]
    kind = parameter.WhichOneof("parameter_choice")
    if kind in ("int64_param", "uint64_param"):
        return int(getattr(parameter, kind))
    text = parameter.string_param
    with blaming(field_of(name)):
        if not (text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS):
            value = getattr(parameter, kind) if kind else None
            raise RequestError(f"{name} is {str(value)[:80]!r}", hint="give a whole number, or its digits as text")
    return int(text)
