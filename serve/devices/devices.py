"""Where a model may run: names of devices, and the engine of each kind.

    cpu            ONNX Runtime on the processor
    cuda:1         ONNX Runtime on the second GPU, as CUDA counts; `cuda` is the first
    tensorrt:0     native TensorRT, with the engine file beside the model

None of them is ever replaced by another.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from kaem.engines.cpu import LocalSampler
from kaem.engines.cuda import CudaEngine
from kaem.engines.processors import count_processors
from kaem.engines.tensorrt import TensorRtEngine
from kaem.errors import ConfigError

KINDS = ("cpu", "cuda", "tensorrt")
MOST_DEVICES = 64

OpenEngine = LocalSampler | CudaEngine | TensorRtEngine
"""An engine in this process, to be closed by whoever opened it; it satisfies `serve.devices.engine.Engine`."""


class Device(NamedTuple):
    """One device, and the number of the GPU, or of the process where several share a CPU."""

    kind: str
    number: int = 0

    def __str__(self) -> str:
        return f"{self.kind}:{self.number}"


def parse_devices(text: str) -> tuple[Device, ...]:
    """Read names of devices between commas, such as "cuda:0,cuda:1".

    Raises:
        ConfigError: One is unknown, a GPU is named twice, or they are of several kinds.
    """
    devices = tuple(_parse_device(name.strip(), place, text) for place, name in enumerate(text.split(",")))
    if len(devices) > MOST_DEVICES:
        raise ConfigError(f"device names {len(devices)} devices; at most {MOST_DEVICES} are possible")
    kinds = sorted({device.kind for device in devices})
    if len(kinds) > 1:
        raise ConfigError(
            f"device is {text!r}, but {' and '.join(kinds)} do not compute the same bits",
            hint="serve each kind of device by its own server",
        )
    twice = next((device for device in devices if devices.count(device) > 1), None)
    if twice is not None:
        raise ConfigError(f"device is {text!r}, which names {twice} twice; a GPU has one process")
    return devices


def _parse_device(name: str, place: int, text: str) -> Device:
    found = re.fullmatch(r"(cpu)|(cuda|tensorrt)(?::([0-9]{1,3}))?", name, re.ASCII)
    if found is None:
        raise ConfigError(
            f"device is {text!r}; {name!r} is no device", hint="name them like cuda:0,cuda:1 or tensorrt:0 or cpu,cpu"
        )
    return Device("cpu", place) if found[1] else Device(found[2], int(found[3] or 0))


def workers_of(devices: Sequence[Device], workers: int | None) -> int | None:
    """Return the threads of each of several processes; where nobody says, those on a CPU share its cores."""
    if workers is not None or devices[0].kind != "cpu":
        return workers
    return max(1, count_processors() // len(devices))


def open_engine(path: Path, device: Device, *, workers: int | None = None, name: Path | None = None) -> OpenEngine:
    """Open a model on a device, in this process.

    Args:
        path: The artifact.
        device: Where it runs, and nowhere else.
        workers: Threads that share each batch on a CPU; None for one per core.
        name: Where the artifact came from, if it was read already: its engine file lies there.

    Raises:
        ArtifactError: The artifact, or its engine file, cannot be used.
        BackendError: The device or its libraries are unusable.
    """
    match device.kind:
        case "cpu":
            return LocalSampler(path, workers=workers)
        case "cuda":
            # cuDNN may turn to TF32, against the session's option, where it finds no other kernel. In a server's
            # process there is nobody else whose arithmetic that would change.
            os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
            return CudaEngine(path, device_id=device.number)
        case "tensorrt":
            return TensorRtEngine(path, (name or path).with_suffix(".engine"), device_id=device.number)
        case unknown:
            raise AssertionError(f"no device is of the kind {unknown!r}")
