"""Artifact -> a model folder of NVIDIA's Triton Inference Server, run by its ONNX Runtime or its TensorRT backend.

REPOSITORY/NAME/config.pbtxt
REPOSITORY/NAME/1/model.onnx     or model.plan
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from kaem.artifact import Manifest
from kaem.engines.tensorrt_file import EngineFile
from kaem.errors import RequestError

Backend = Literal["onnxruntime", "tensorrt"]
_FILES: dict[Backend, str] = {"onnxruntime": "model.onnx", "tensorrt": "model.plan"}
MOST_ROWS = 256
"""Largest batch that Triton collects for ONNX Runtime; an engine's profiles say their own."""

_QUEUE_DELAY_US = 500
_BYTE_TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8"}


def model_config(manifest: Manifest, name: str, *, batch: int | None, engine: EngineFile | None = None) -> str:
    """Return the text of config.pbtxt.

    Args:
        manifest: Manifest of the artifact.
        name: The model's name in the repository.
        batch: The fixed batch size of the graph, or None where it is free.
        engine: The engine that Triton shall run; ONNX Runtime runs the graph where it is None.
    """
    rows = () if batch is None else (batch,)
    most = MOST_ROWS if engine is None else max(profile[2] for profile in engine.profiles)
    sizes: tuple[int, ...] = (8, 64, most)
    if manifest.batch_sizes:  # Triton fills up no batch, but it prefers these, and makes none larger
        most = min(most, manifest.batch_sizes[-1])
        sizes = manifest.batch_sizes
    tensors = {
        "input": [("uniform", "TYPE_FP32", (*rows, manifest.noise_dim))],
        "output": [
            ("image", _BYTE_TYPES[manifest.image_type], (*rows, *manifest.image_shape)),
            ("latent", "TYPE_FP32", (*rows, manifest.latent_dim)),
        ],
    }
    lines = [
        f'name: "{name}"',
        'backend: "onnxruntime"' if engine is None else 'platform: "tensorrt_plan"',
        # Zero says that the shapes below are whole, batch and all.
        f"max_batch_size: {most if batch is None else 0}",
        *(_tensor(kind, *tensor) for kind, several in tensors.items() for tensor in several),
    ]
    if batch is None:
        preferred = ", ".join(str(size) for size in sorted({*sizes}) if size <= most)
        lines.append(
            f"dynamic_batching {{\n  preferred_batch_size: [ {preferred} ]\n"
            f"  max_queue_delay_microseconds: {_QUEUE_DELAY_US}\n}}"
        )
    if engine is None:
        lines.append("instance_group [ { count: 1 kind: KIND_AUTO } ]")
        # As in kaem's own sessions: a row's bits must not depend on the number of threads, arithmetic is exact, and a
        # new batch size does not stall.
        lines += [_parameter("intra_op_thread_count", "1"), _parameter("inter_op_thread_count", "1")]
        lines.append(_cuda_accelerator({"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}))
    else:
        profiles = ", ".join(f'"{number}"' for number in range(len(engine.profiles))) if batch is None else ""
        chosen = f" profile: [ {profiles} ]" if profiles else ""
        lines.append(f"instance_group [ {{ count: 1 kind: KIND_GPU{chosen} }} ]")
        lines.append("optimization { cuda { graphs: true } }")
    return "\n".join(lines) + "\n"


def write_model(repository: Path, name: str, config: str, model: bytes, backend: Backend) -> Path:
    """Write a model folder, which appears whole; one of the same name is replaced.

    Raises:
        RequestError: The folder cannot be written, or what is there is no model folder.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise RequestError(f"{name!r} cannot be the name of a folder", hint="use letters, digits, -, _ and .")
    folder = repository / name
    if folder.exists() and not (folder / "config.pbtxt").is_file():
        raise RequestError(f"{folder} is there and is no model of Triton", hint="name another repository with -o")
    draft = repository / f".{name}.{secrets.token_hex(4)}"
    old = draft.with_suffix(".old")
    try:
        (draft / "1").mkdir(parents=True)
        (draft / "1" / _FILES[backend]).write_bytes(model)
        (draft / "config.pbtxt").write_text(config, encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        draft.rename(folder)
    except OSError as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise RequestError(f"cannot write {folder}: {error.strerror or error}") from None
    finally:
        for rest in (draft, old):
            shutil.rmtree(rest, ignore_errors=True)
    return folder


def _tensor(kind: str, name: str, data_type: str, dims: Iterable[int]) -> str:
    sizes = ", ".join(map(str, dims))
    return f'{kind} [ {{ name: "{name}" data_type: {data_type} dims: [ {sizes} ] }} ]'


def _parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


def _cuda_accelerator(options: dict[str, str]) -> str:
    pairs = " ".join(f'parameters {{ key: "{key}" value: "{value}" }}' for key, value in options.items())
    return f'optimization {{ execution_accelerators {{ gpu_execution_accelerator [ {{ name: "cuda" {pairs} }} ] }} }}'
