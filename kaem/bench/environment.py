"""What a reader must know about the machine to place a figure."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

_PACKAGES = ("kaem", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "torch", "tensorrt", "grpcio", "protobuf")
_CPU = Path("/sys/devices/system/cpu")


def describe_machine() -> dict[str, str]:
    """Return processor, cores, governor, load, memory, GPUs, versions and date, by the names to show."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _processor(),
        "cores": _cores(),
        "governor": _governors(),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "memory": _memory(),
        **_gpus(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **_versions(),
    }


def stolen_share(earlier: tuple[int, int], later: tuple[int, int]) -> float:
    """Share of processor time that a hypervisor gave to others between two `processor_ticks`."""
    return (later[0] - earlier[0]) / max(1, later[1] - earlier[1])


def processor_ticks() -> tuple[int, int]:
    """Return (stolen, all) ticks of all cores since boot; zeros where the kernel does not say."""
    try:
        with Path("/proc/stat").open(encoding="utf-8") as lines:
            ticks = [int(word) for word in lines.readline().split()[1:9]]
    except (OSError, ValueError):
        return 0, 0
    return (ticks[7], sum(ticks)) if len(ticks) == 8 else (0, 0)


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _processor() -> str:
    names = _values(Path("/proc/cpuinfo"), "model name")
    return names[0] if names else platform.processor() or platform.machine()


def _cores() -> str:
    cores = str(len(os.sched_getaffinity(0)))
    quota, _, period = _text(Path("/sys/fs/cgroup/cpu.max")).partition(" ")
    if quota.isdigit() and period.isdigit():
        return f"{cores}, limited to {int(quota) / int(period):g}"
    return cores


def _governors() -> str:
    found = {_text(path) for path in _CPU.glob("cpu[0-9]*/cpufreq/scaling_governor")} - {""}
    return ", ".join(sorted(found)) or "not reported"


def _memory() -> str:
    words = _values(Path("/proc/meminfo"), "MemTotal")
    return f"{int(words[0].split()[0]) / (1 << 20):.1f} GiB" if words else "not reported"


def _gpus() -> dict[str, str]:
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    models = [model for path in files for model in _values(path, "Model")]
    if not models:
        return {}
    driver = _text(Path("/proc/driver/nvidia/version")).partition("\n")[0]
    return {"GPU": ", ".join(models), "driver": driver or "not reported"}


def _values(path: Path, name: str) -> list[str]:
    """Return the values of `name : value` lines in a file of the kernel."""
    pairs = (line.partition(":") for line in _text(path).splitlines())
    return [value.strip() for key, _, value in pairs if key.strip() == name]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
