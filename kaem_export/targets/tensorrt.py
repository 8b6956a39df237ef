"""Artifact -> TensorRT engine: parsed, typed as the graph is, with optimisation profiles and a timing cache.

The network is strongly typed: every tensor has the type that the ONNX graph gives it, and no flag changes that. Half
precision is the matter of the graph that is handed in.

`build_plan` takes the module that builds. `tensorrt` needs the GPU that the engine is for; `tensorrt_rtx` has the same
parser and builder, and works without any GPU, which is how this code is tested where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from kaem.artifact import fingerprint
from kaem.engines.cpu import read_file
from kaem.engines.gpu import installed_gpu
from kaem.engines.tensorrt_file import EngineFile, EngineKey, native_tensorrt, write_engine
from kaem.errors import ArtifactError, BackendError, ConfigError
from kaem.files import cache_folder, replacing
from kaem.onnx_file import require_whole

MOST_ROWS = 1 << 16
"""Largest batch of a profile."""


class Profile(NamedTuple):
    """Batch sizes that an engine accepts, and the one it is tuned for."""

    least: int
    best: int
    most: int


DEFAULT_PROFILES = (Profile(1, 1, 1), Profile(1, 64, 1024))
"""One for the latency of a single image, one for everything."""


class BuiltEngine(NamedTuple):
    """What a build gives: the engine, its profiles, and what the builder learnt about kernels."""

    plan: bytes
    profiles: tuple[Profile, ...]
    timing_cache: bytes


def parse_profile(text: str) -> Profile:
    """Read "LEAST:BEST:MOST" or one number for all three.

    Raises:
        ConfigError: It is neither, or the sizes do not ascend from 1.
    """
    parts = text.split(":")
    sizes = [int(part) if part.isascii() and part.isdecimal() else 0 for part in parts]
    sizes = sizes * 3 if len(sizes) == 1 else sizes
    if len(sizes) != 3 or not 1 <= sizes[0] <= sizes[1] <= sizes[2] <= MOST_ROWS:
        raise ConfigError(
            f"the profile {text!r} is not LEAST:BEST:MOST with 1 <= LEAST <= BEST <= MOST <= {MOST_ROWS}",
            hint="write for example 1:64:1024, or 8 for a batch of exactly 8",
        )
    return Profile(*sizes)


def build_engine(
    artifact: Path, output: Path, *, profiles: Sequence[Profile] = (), tf32: bool = False, device: int = 0
) -> EngineFile:
    """Build the engine of an artifact for the GPU of this machine.

    What the builder measured is kept in the user's cache folder and makes the next build quicker.

    Args:
        artifact: A model.onnx made by kaem.
        output: Where the engine goes.
        profiles: For a free batch size, `DEFAULT_PROFILES` if empty; a fixed one takes none.
        tf32: Let matrix products round their factors to TF32, 10 bits of mantissa.
        device: The GPU, as CUDA counts.

    Raises:
        ArtifactError: The artifact is unusable, or TensorRT cannot run one of its nodes.
        BackendError: TensorRT or the GPU is absent, or the build failed.
        ConfigError: Profiles are given for a fixed batch size.
        RequestError: The output cannot be written.
    """
    with replacing(output) as draft:
        trt = native_tensorrt()
        gpu = installed_gpu(device)
        content = read_file(artifact)
        require_whole(content, source=str(artifact))
        known = _timing_cache_path(trt.__version__, gpu.name)
        built = build_plan(
            trt,
            content,
            profiles=profiles,
            tf32=tf32,
            timing_cache=known.read_bytes() if known.exists() else b"",
            source=str(artifact),
        )
        key = EngineKey(model=fingerprint(content), tensorrt=str(trt.__version__), gpu=gpu.name, driver=gpu.driver)
        engine = EngineFile(key=key, profiles=built.profiles, tf32=tf32, plan=built.plan)
        draft.write_bytes(write_engine(engine))
    known.parent.mkdir(parents=True, exist_ok=True)
    with replacing(known) as draft:
        draft.write_bytes(built.timing_cache)
    return engine


def build_plan(
    trt: ModuleType,
    content: bytes,
    *,
    profiles: Sequence[Profile] = (),
    tf32: bool = False,
    timing_cache: bytes | None = None,
    source: str = "the model",
) -> BuiltEngine:
    """Parse an ONNX model and build its engine.

    Args:
        trt: `tensorrt` from version 11 on, or `tensorrt_rtx`.
        content: An ONNX file with one input.
        profiles: As for `build_engine`.
        tf32: As for `build_engine`.
        timing_cache: Timing cache of an earlier build with the same version and GPU; empty for a first one; None to
            keep none, as `tensorrt_rtx` does not.
        source: Name of the model, for messages.

    Raises:
        ArtifactError: A node is not supported; every such node is named.
        BackendError: The build failed.
        ConfigError: Profiles are given for a fixed batch size.
    """
    complaints: list[str] = []
    logger = _logger(trt, complaints)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(content):
        errors = [parser.get_error(number) for number in range(parser.num_errors)]
        reasons = "; ".join(map(_reason, errors)) or "it is not an ONNX model"
        raise ArtifactError(f"TensorRT cannot run {source}: {reasons}", hint="export a graph without these nodes")
    if network.num_inputs != 1:
        raise ArtifactError(
            f"{source} has {network.num_inputs} inputs, not one", hint="give a model.onnx of kaem export"
        )
    config = builder.create_builder_config()
    # On by default, and 10 bits of mantissa: only for who asks for it.
    (config.set_flag if tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    chosen = _set_profiles(builder, config, network.get_input(0), profiles, source)
    cache = None if timing_cache is None else _set_timing_cache(config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        reasons = "; ".join(complaints[-3:]) or "it gives no reason"
        raise BackendError(
            f"TensorRT {trt.__version__} cannot build an engine of {source}: {reasons}",
            hint="check the GPU and its free memory with nvidia-smi",
        )
    return BuiltEngine(bytes(plan), chosen, b"" if cache is None else bytes(cache.serialize()))


def _set_profiles(
    builder: Any, config: Any, value: Any, profiles: Sequence[Profile], source: str
) -> tuple[Profile, ...]:
    """Add the profiles of the one input; return them, or the one that a fixed batch size amounts to."""
    rows, *rest = value.shape
    if rows >= 0:
        if profiles:
            raise ConfigError(
                f"{source} has the fixed batch size {rows} and takes no profile", hint="export it with a free batch"
            )
        return (Profile(rows, rows, rows),)
    chosen = tuple(profiles) or DEFAULT_PROFILES
    for sizes in chosen:
        profile = builder.create_optimization_profile()
        profile.set_shape(value.name, *((size, *rest) for size in sizes))
        config.add_optimization_profile(profile)
    return chosen


def _set_timing_cache(config: Any, known: bytes) -> Any:
    """Give the builder what an earlier build measured; a cache that does not fit is replaced by an empty one."""
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _reason(error: Any) -> str:
    node = f"node {error.node_name() or error.node()} ({error.node_operator()})"
    return f"{node}: {error.code().name} {' '.join(error.desc().split())}"


def _logger(trt: Any, complaints: list[str]) -> Any:
    """Return a logger that keeps what went wrong and prints nothing."""

    class Complaints(trt.ILogger):  # type: ignore[misc]  # of whichever module
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                complaints.append(" ".join(message.split()))

    return Complaints()


def _timing_cache_path(version: str, gpu: str) -> Path:
    name = "".join(letter if letter.isalnum() else "-" for letter in f"{version} {gpu}")
    return cache_folder() / f"tensorrt-{name}.timing"
