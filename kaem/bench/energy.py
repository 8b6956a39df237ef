"""Energy where the machine counts it: processors through RAPL, NVIDIA GPUs through NVML.

The counters are of whole packages and boards: what else runs there is in them, and so is what idling takes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")


@dataclass(slots=True)
class Counter:
    """One counter of energy; it starts again at 0 when it has passed its range.

    Attributes:
        name: What it counts.
        read_uj: Reads it, in microjoules.
        range_uj: Its largest value.
    """

    name: str
    read_uj: Callable[[], int]
    range_uj: int
    _last_uj: int = field(init=False)

    def __post_init__(self) -> None:
        self._last_uj = self.read_uj()

    def joules(self) -> float:
        """Energy since the last call, or since the counter was opened; at most one wrap between calls is seen."""
        now = self.read_uj()
        used = now - self._last_uj
        self._last_uj = now
        return (used if used >= 0 else used + self.range_uj) / 1e6


def open_counters(powercap: Path = POWERCAP) -> list[Counter]:
    """Return every counter that can be read; none on most virtual machines, and RAPL often needs root."""
    return [*_processors(powercap), *_gpus()]


def _processors(powercap: Path) -> list[Counter]:
    counters = []
    for domain in sorted(powercap.glob("*-rapl:*")):
        if domain.name.count(":") > 1:
            continue  # cores and memory controllers lie within their package
        try:
            name = (domain / "name").read_text().strip()
            limit = int((domain / "max_energy_range_uj").read_text())
            counters.append(Counter(name, _reader(domain / "energy_uj"), limit))
        except (OSError, ValueError):
            continue
    return counters


def _reader(path: Path) -> Callable[[], int]:
    return lambda: int(path.read_text())


def _gpus() -> list[Counter]:
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return [Counter(f"gpu-{index}", _board(nvml, handle), 1 << 63) for index, handle in enumerate(handles)]
    except Exception:  # not installed, no driver, or a board that does not count: NVML's errors share no public base
        return []


def _board(nvml: Any, handle: Any) -> Callable[[], int]:
    return lambda: 1000 * int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
