"""How many processors this process may use: those it may run on, and the share of time that its cgroup leaves it.

A container with `--cpus 2` on a machine of 64 processors may run on all of them, for two seconds in every second.
64 threads would use that up at once and then all stand still.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def count_processors() -> int:
    """Return how many threads can compute side by side, at least 1."""
    allowed = len(os.sched_getaffinity(0))
    quota = cgroup_quota()
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def cgroup_quota(membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return the seconds of processor time a second that this process's cgroups leave it; None for no limit.

    Args:
        membership: Where Linux names the groups of this process, `NUMBER:CONTROLLERS:PATH` a line.
        root: Where the groups are mounted: version 2 itself, or a folder for each controller of version 1.
    """
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    quotas = [quota for line in lines for quota in _quotas(line, root)]
    return min(quotas, default=None)


def _quotas(line: str, root: Path) -> Iterator[float]:
    """Yield the limits of one group and of those above it."""
    _, controllers, path = (*line.split(":", 2), "", "")[:3]
    if controllers == "":
        for group in _and_above(root, path):
            quota, _, period = _read(group / "cpu.max").partition(" ")
            yield from _as_share(quota, period)
    elif "cpu" in controllers.split(","):
        for group in _and_above(root / "cpu", path):
            yield from _as_share(_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us"))


def _and_above(root: Path, path: str) -> Iterator[Path]:
    """Yield the folders of a group and of those above it, as far as this process sees them."""
    group = root / path.strip("/")
    yield group
    while group != root and ".." not in group.parts:
        group = group.parent
        yield group


def _as_share(quota: str, period: str) -> Iterator[float]:
    """Yield quota over period, if there is a limit: `max` and -1 stand for none."""
    if quota.isdigit() and period.isdigit() and int(period) > 0:
        yield int(quota) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
