"""Artifact -> its engines, where the settings want them: one in this process, or a process for every device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kaem.engines.cpu import LocalSampler
from serve.devices.device_pool import DevicePool
from serve.devices.devices import Device, open_engine, parse_devices
from serve.devices.engine import Engine
from serve.settings import ServeSettings


@contextmanager
def engines_of(settings: ServeSettings, path: Path, is_wanted: Callable[[], bool]) -> Iterator[Sequence[Engine]]:
    """Open an artifact on the devices that the settings name, for the time of the block.

    Args:
        settings: Name the devices.
        path: The artifact.
        is_wanted: Asked now and then while processes start; once it says no, they are ended.

    Raises:
        ArtifactError: The file is missing, damaged, or not a kaem artifact.
        BackendError: A device or its libraries are unusable.
    """
    if settings.device is not None:
        with DevicePool(
            path, parse_devices(settings.device), workers=settings.workers, is_wanted=is_wanted
        ) as device_pool:
            yield device_pool.engines
    elif settings.provider == "ort-tensorrt":
        with LocalSampler(path, provider=settings.provider, workers=settings.workers) as sampler:
            yield [sampler]
    else:
        with open_engine(path, Device(settings.provider), workers=settings.workers) as engine:
            yield [engine]
