"""When requests arrive, and what each asks for: a Poisson process, drawn before the first is sent.

Users do not wait for each other, so arrivals must not wait for answers (the closed loop's mistake, which hides
queueing: "coordinated omission"). The whole schedule is a function of its seed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kaem.errors import RequestError

KINDS = {"interactive": 1, "bulk": 1024}
"""Images a request of each named kind asks for; a number in a mix names itself."""

MAX_ARRIVALS = 2_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of request: its name, the images it asks for, and its share of the arrivals."""

    name: str
    images: int
    share: float


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: seconds from the start at which it is meant to be sent, its kind, and its first sample."""

    at_s: float
    kind: Kind
    start: int


DEFAULT_MIX = (Kind(name="interactive", images=1, share=1.0),)


def parse_mix(text: str) -> tuple[Kind, ...]:
    """Read `interactive:0.9,bulk:0.1`; a kind may be a number of images, as in `1:0.5,64:0.5`.

    Raises:
        RequestError: A kind is unknown or named twice, or the shares are not positive.
    """
    kinds = []
    for word in text.split(","):
        name, _, share = word.strip().partition(":")
        images = KINDS.get(name) or (int(name) if re.fullmatch("[0-9]{1,9}", name) else 0)
        try:
            value = float(share or "1")
        except ValueError:
            value = math.nan
        if not images or not 0 < value < math.inf:
            hint = f"write interactive:0.9,bulk:0.1; kinds are {', '.join(KINDS)} or a number of images"
            raise RequestError(f"cannot read {word.strip()!r} in the mix {text!r}", hint=hint)
        kinds.append(Kind(name=name, images=images, share=value))
    if len({kind.name for kind in kinds}) < len(kinds):
        raise RequestError(f"the mix {text!r} names a kind twice")
    total = sum(kind.share for kind in kinds)
    return tuple(Kind(name=kind.name, images=kind.images, share=kind.share / total) for kind in kinds)


def check_arrivals(rate: float, duration_s: float) -> None:
    """Refuse a rate (requests a second) and a duration (seconds) that no run can have.

    Raises:
        RequestError: One is not positive, or there would be too many arrivals.
    """
    if not 0 < rate < math.inf or not 0 < duration_s < math.inf:
        raise RequestError(f"rate is {rate:g}/s and duration {duration_s:g} s; both must be positive")
    if rate * duration_s > MAX_ARRIVALS:
        raise RequestError(f"{rate:g}/s for {duration_s:g} s are more than {MAX_ARRIVALS:,} requests")


def poisson_arrivals(rate: float, duration_s: float, mix: Sequence[Kind], seed: int) -> list[Arrival]:
    """Draw the arrivals of a Poisson process of a rate on [0, duration_s), each of a kind drawn by its share.

    Args:
        rate: Mean requests a second.
        duration_s: Seconds.
        mix: Kinds whose shares sum to 1.
        seed: Seed of all draws.

    Raises:
        RequestError: The rate or the duration is not positive, or there would be too many arrivals.
    """
    check_arrivals(rate, duration_s)
    random = np.random.default_rng([seed, round(rate * 1e6)])
    # Given their number, the arrivals of a Poisson process are independent and uniform on the interval.
    times = np.sort(random.uniform(0.0, duration_s, random.poisson(rate * duration_s)))
    picks = random.choice(len(mix), size=len(times), p=[kind.share for kind in mix])
    starts = np.concatenate(([0], np.cumsum([mix[pick].images for pick in picks])))
    return [Arrival(float(at), mix[pick], int(start)) for at, pick, start in zip(times, picks, starts, strict=False)]
