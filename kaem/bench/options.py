"""Options of the command line, read strictly: lists of numbers, durations, objectives."""

from __future__ import annotations

import math
import re

from kaem.bench.scenarios.remote import LatencyObjective
from kaem.errors import RequestError

_UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


def parse_counts(text: str, what: str, most: int) -> tuple[int, ...]:
    """Read `1,8,64`: whole numbers, at least 1, none twice.

    Args:
        text: The option.
        what: What the numbers are, for messages.
        most: The largest that is taken; more would only exhaust the machine.

    Raises:
        RequestError: It cannot be read so.
    """
    try:
        numbers = tuple(int(word) for word in text.split(","))
    except ValueError:
        raise RequestError(f"cannot read {what} {text!r}", hint="write them as 1,8,64") from None
    if min(numbers) < 1 or len(set(numbers)) < len(numbers):
        raise RequestError(f"{what} are {text}; each must be at least 1 and named once")
    if max(numbers) > most:
        raise RequestError(f"{what} are {text}; at most {most:,} is taken")
    return numbers


def parse_rates(text: str) -> tuple[float, ...]:
    """Read `200,400`: positive numbers, none twice.

    Raises:
        RequestError: It cannot be read so.
    """
    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError:
        raise RequestError(f"cannot read rates {text!r}", hint="write requests a second as 200,400") from None
    if not all(0 < number < math.inf for number in numbers) or len(set(numbers)) < len(numbers):
        raise RequestError(f"rates are {text}; each must be positive and named once")
    return numbers


def parse_duration(text: str, what: str) -> float:
    """Read `20s`, `500ms` or `2m`; a bare number is seconds.

    Returns:
        Seconds.

    Raises:
        RequestError: It cannot be read so.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(us|ms|s|m)?", text.strip(), re.ASCII)
    if found is None:
        raise RequestError(f"cannot read {what} {text!r}", hint="write 20s, 500ms or 2m")
    return float(found[1]) * _UNITS_S[found[2] or "s"]


def parse_objective(text: str) -> LatencyObjective:
    """Read `p99=50ms`.

    Raises:
        RequestError: It cannot be read so.
    """
    found = re.fullmatch(r"p([0-9]+(?:\.[0-9]+)?)(?:=|<=|<)(.+)", text.strip(), re.ASCII)
    if found is None or not 0 < float(found[1]) < 100:
        raise RequestError(f"cannot read objective {text!r}", hint="write p99=50ms")
    return LatencyObjective(
        percent=float(found[1]), limit_ms=1e3 * parse_duration(found[2], "the limit of the objective")
    )
