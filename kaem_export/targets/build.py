"""What an artifact is turned into for a machine other than ONNX Runtime's; the artifact itself stays beside it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from kaem.artifact import Manifest
from kaem.engines.cpu import read_file
from kaem.engines.gpu import installed_gpu
from kaem.engines.session import open_session
from kaem.engines.tensorrt_file import EngineFile, native_tensorrt
from kaem.errors import ConfigError, RequestError
from kaem.files import require_place
from kaem.onnx_file import read_artifact
from kaem_export.targets.tensorrt import Profile, build_engine, parse_profile
from kaem_export.targets.triton import Backend, model_config, write_model

Target = Literal["onnx", "tensorrt", "triton", "aotinductor"]
_SUFFIXES = {"tensorrt": ".engine", "aotinductor": ".pt2"}


class TargetOptions(NamedTuple):
    """What the command line says about a target beside its name.

    Attributes:
        profiles: TensorRT's, as `parse_profile` reads them.
        tf32: Whether TensorRT may round to TF32.
        triton_backend: What runs the model in Triton.
        device: What an AOTInductor package is compiled for, "cpu" or "cuda".
    """

    profiles: Sequence[str] = ()
    tf32: bool = False
    triton_backend: Backend = "onnxruntime"
    device: str = "cpu"


def build_target(
    source: Path, target: Target, out: Path | None, compile_to: Callable[[Path], None], options: TargetOptions
) -> Path:
    """Build a target from a checkpoint or from a finished artifact.

    Args:
        source: ckpt.pt, or a model.onnx that kaem exported.
        target: Any but "onnx".
        out: A file, or for Triton the repository's folder; by default beside the source.
        compile_to: Compiles the source, a checkpoint, to an artifact at a path.
        options: As above.

    Returns:
        What was written.

    Raises:
        ConfigError: The target does not run what the source is.
        KaemError: As the target's own module says.
    """
    profiles = [parse_profile(text) for text in options.profiles]
    if needs_engine(target, options):
        native_tensorrt()  # first of all: what cannot be built here should not cost a compilation
        installed_gpu()
    is_repository = target == "triton"
    if is_repository:
        return _triton_model(source, out or source.with_name("triton"), compile_to, options, profiles)
    path = out or source.with_name("model").with_suffix(_SUFFIXES[target])
    if path.suffix == ".onnx":
        raise RequestError(
            f"{path} is where the artifact itself goes", hint=f"give a name that ends in {_SUFFIXES[target]}"
        )
    require_place(path, source=source)
    artifact = source
    if source.suffix != ".onnx":
        artifact = path.with_suffix(".onnx")
        compile_to(artifact)
    content, manifest, batch = _open(artifact)
    refuse_int8(target, options, manifest.compilation.get("precision"))
    match target:
        case "tensorrt":
            build_engine(artifact, path, profiles=profiles, tf32=options.tf32)
        case "aotinductor":
            import onnx

            from kaem_export.targets.torch_twin import build_package

            if batch is not None:
                raise ConfigError(
                    f"{artifact} is made for batches of {batch} alone; a package takes any size",
                    hint="export it without --batch",
                )
            build_package(onnx.load_model_from_string(content), path, device=options.device)
        case _:
            raise AssertionError(f"{target!r} is not built here")
    return path


def needs_engine(target: Target, options: TargetOptions) -> bool:
    """Whether an engine of TensorRT is built; what is said about one is refused where none is.

    Raises:
        ConfigError: Something is asked for that is another target's.
    """
    is_needed = target == "tensorrt" or (target == "triton" and options.triton_backend == "tensorrt")
    if (options.profiles or options.tf32) and not is_needed:
        raise ConfigError("--profile and --tf32 are for engines of TensorRT", hint="add --target tensorrt")
    if options.triton_backend != "onnxruntime" and target != "triton":
        raise ConfigError("--triton-backend is for models of Triton", hint="add --target triton")
    if options.device != "cpu" and target != "aotinductor":
        raise ConfigError("--device is for packages of AOTInductor", hint="add --target aotinductor")
    return is_needed


def refuse_int8(target: Target, options: TargetOptions, precision: object) -> None:
    """Raise `ConfigError` where a graph in 8 bits is meant for anything but ONNX Runtime.

    TensorRT takes neither the 32-bit biases of its layers nor zero points other than zero, and the torch twin none of
    its operators.
    """
    if precision != "int8" or target == "onnx" or (target == "triton" and options.triton_backend == "onnxruntime"):
        return
    runner = {"aotinductor": "AOTInductor", "tensorrt": "TensorRT", "triton": "TensorRT"}[target]
    raise ConfigError(
        f"{runner} does not run int8 graphs, which are for ONNX Runtime on a processor",
        hint="export the checkpoint with --precision float16 for a GPU, or float32",
    )


def _triton_model(
    source: Path, repository: Path, compile_to: Callable[[Path], None], options: TargetOptions, profiles: list[Profile]
) -> Path:
    if repository.exists() and not repository.is_dir():
        raise RequestError(f"{repository} is a file, and a repository of Triton is a folder", hint="name a folder")
    with tempfile.TemporaryDirectory() as folder:
        artifact = source
        if source.suffix != ".onnx":
            artifact = Path(folder) / "model.onnx"
            compile_to(artifact)
        model, manifest, batch = _open(artifact)
        refuse_int8("triton", options, manifest.compilation.get("precision"))
        engine: EngineFile | None = None
        if options.triton_backend == "tensorrt":
            engine = build_engine(artifact, Path(folder) / "model.engine", profiles=profiles, tf32=options.tf32)
            model = engine.plan
        name = re.sub(r"[^\w.-]", "-", manifest.name, flags=re.ASCII).lstrip("_.-") or "kaem"
        config = model_config(manifest, name, batch=batch, engine=engine)
    return write_model(repository, name, config, model, options.triton_backend)


def _open(artifact: Path) -> tuple[bytes, Manifest, int | None]:
    """Return bytes, manifest and batch size, None where it is free, of an artifact that ONNX Runtime accepts."""
    content = read_file(artifact)
    manifest = read_artifact(content, source=str(artifact))
    session = open_session(content, "cpu", source=str(artifact))
    rows = session.get_inputs()[0].shape[0]
    return content, manifest, rows if isinstance(rows, int) else None
