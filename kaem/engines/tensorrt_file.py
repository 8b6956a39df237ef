"""TensorRT engines as files: what each was built from and for, sealed, and opened only where all of it holds.

An engine is compiled GPU code: it runs on the GPU model, driver and TensorRT that it was built for, and whoever wrote
it can make the process that loads it do anything. So a file says what it belongs to (`EngineKey`), and it is sealed
with a secret of the user who built it: HMAC-SHA256 over everything before the seal. No other file gets as far as
TensorRT.

    KAEMENG1 | length of the JSON, 8 bytes, little-endian | JSON | plan | seal, 32 bytes
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from kaem.artifact import fingerprint
from kaem.engines.gpu import installed_gpu
from kaem.errors import ArtifactError, BackendError
from kaem.files import read_regular

SECRET_VARIABLE = "KAEM_ENGINE_SECRET"  # noqa: S105 - the name of a variable that names a file
_MAGIC = b"KAEMENG1"
_SEAL_BYTES = 32
_BUILD_AGAIN = "build it again, here: kaem export MODEL --target tensorrt"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKey:
    """What an engine belongs to; any difference makes another engine.

    Attributes:
        model: `sha256:` digest of the artifact's file.
        tensorrt: Version of TensorRT.
        gpu: Model of the GPU.
        driver: Version of its driver.
    """

    model: str
    tensorrt: str
    gpu: str
    driver: str

    @property
    def digest(self) -> str:
        """`sha256:` digest of the four, the name under which an engine may be kept."""
        return fingerprint(json.dumps(asdict(self), sort_keys=True).encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFile:
    """An engine and what is known of it.

    Attributes:
        key: What it belongs to.
        profiles: Batch sizes (least, best, most) of each optimisation profile; the three are one for a fixed batch.
        tf32: Whether matrix products may round their factors to TF32.
        plan: What TensorRT serialised.
    """

    key: EngineKey
    profiles: tuple[tuple[int, int, int], ...]
    tf32: bool
    plan: bytes


def write_engine(engine: EngineFile) -> bytes:
    """Return the file's bytes, sealed with this user's secret, which is made if there is none.

    Raises:
        BackendError: The secret cannot be read or made.
    """
    manifest = {"key": asdict(engine.key), "profiles": engine.profiles, "tf32": engine.tf32, "plan": len(engine.plan)}
    text = json.dumps(manifest, sort_keys=True).encode()
    body = b"".join((_MAGIC, len(text).to_bytes(8, "little"), text, engine.plan))
    return body + _seal(body, _secret(may_make=True))


def read_engine(path: Path) -> EngineFile:
    """Read an engine that this user built.

    Raises:
        ArtifactError: There is no such file, it is not an engine, it is damaged, or its seal is not this user's.
        BackendError: The secret cannot be read.
    """
    try:
        content = read_regular(path)
    except OSError as error:
        raise ArtifactError(f"cannot read the engine {path}: {error.strerror or error}", hint=_BUILD_AGAIN) from None
    if not content.startswith(_MAGIC):
        raise ArtifactError(f"{path} is not an engine of kaem", hint=_BUILD_AGAIN)
    body, seal = content[:-_SEAL_BYTES], content[-_SEAL_BYTES:]
    if not hmac.compare_digest(seal, _seal(body, _secret(may_make=False))):
        raise ArtifactError(
            f"the engine {path} is damaged, or it was not built by you (its seal does not fit your secret "
            f"{_secret_path()})",
            hint=f"{_BUILD_AGAIN}   (engines are executable: one of unknown origin is never loaded)",
        )
    # The seal holds, so what follows is what write_engine wrote.
    length = int.from_bytes(body[8:16], "little")
    manifest: dict[str, Any] = json.loads(body[16 : 16 + length])
    return EngineFile(
        key=EngineKey(**manifest["key"]),
        profiles=tuple((least, best, most) for least, best, most in manifest["profiles"]),
        tf32=manifest["tf32"],
        plan=body[16 + length :],
    )


def require_match(engine: EngineFile, here: EngineKey, path: Path) -> None:
    """Raise unless an engine belongs to exactly this model, TensorRT, GPU and driver.

    Raises:
        ArtifactError: Names each difference.
    """
    names = [field.name for field in fields(EngineKey) if getattr(engine.key, field.name) != getattr(here, field.name)]
    if names:
        pairs = "; ".join(f"{name} {getattr(engine.key, name)}, here {getattr(here, name)}" for name in names)
        raise ArtifactError(f"the engine {path} was built for something else: {pairs}", hint=_BUILD_AGAIN)


def load_engine(path: Path, artifact: Path, *, device: int = 0) -> Any:
    """Open an engine for running, on the current CUDA device of this thread.

    Args:
        path: The engine.
        artifact: The model.onnx it was built from.
        device: The GPU, as CUDA counts.

    Returns:
        A `tensorrt.ICudaEngine`.

    Raises:
        ArtifactError: The engine is not ours, or not of this model, TensorRT, GPU and driver.
        BackendError: TensorRT or the GPU is absent, or TensorRT refuses the engine.
    """
    try:
        content = artifact.read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read {artifact}: {error.strerror or error}", hint="check the path") from None
    return deserialised(matching_engine(path, content, device=device), path)


def matching_engine(path: Path, model: bytes, *, device: int = 0) -> EngineFile:
    """Read an engine that this user built for this very model, TensorRT, GPU and driver.

    Args:
        path: The engine.
        model: The bytes of the model.onnx it was built from.
        device: The GPU, as CUDA counts.

    Raises:
        ArtifactError: It is not.
        BackendError: TensorRT or the GPU is absent.
    """
    engine = read_engine(path)
    tensorrt = native_tensorrt()
    gpu = installed_gpu(device)  # before TensorRT, whose runtime is hollow where there is no driver
    here = EngineKey(model=fingerprint(model), tensorrt=str(tensorrt.__version__), gpu=gpu.name, driver=gpu.driver)
    require_match(engine, here, path)
    return engine


def deserialised(engine: EngineFile, path: Path) -> Any:
    """Return the `tensorrt.ICudaEngine` of an engine that matches, on the current CUDA device of this thread.

    Raises:
        BackendError: TensorRT refuses it.
    """
    tensorrt = native_tensorrt()
    loaded = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR)).deserialize_cuda_engine(engine.plan)
    if loaded is None:
        raise BackendError(f"TensorRT {tensorrt.__version__} cannot open the engine {path}", hint=_BUILD_AGAIN)
    return loaded


def native_tensorrt() -> Any:
    """Return the module `tensorrt`, version 11 or newer: older ones would type the network as they like.

    Raises:
        BackendError: It is not installed, cannot be imported, or is older.
    """
    install = "run: pip install 'kaem[tensorrt]'   (Linux with an NVIDIA driver; it downloads from NVIDIA's own index)"
    try:
        import tensorrt
    except ImportError as error:
        raise BackendError(f"TensorRT cannot be imported: {error}", hint=install) from None
    version = str(tensorrt.__version__)
    if int(version.partition(".")[0]) < 11:
        raise BackendError(f"TensorRT {version} is older than 11, whose networks are strongly typed", hint=install)
    return tensorrt


def _seal(body: bytes, secret: bytes) -> bytes:
    return hmac.new(secret, body, hashlib.sha256).digest()


def _secret_path() -> Path:
    named = os.environ.get(SECRET_VARIABLE)
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "kaem" / "engine-secret"


def _secret(*, may_make: bool) -> bytes:
    """Return the 32 random bytes that seal this user's engines; others must not be able to read them."""
    path = _secret_path()
    try:
        if may_make and not path.exists():
            _make_secret(path)
        if not path.exists():
            raise ArtifactError(f"there is no secret {path}, so no engine was built by you here", hint=_BUILD_AGAIN)
        status, secret = path.stat(), path.read_bytes()
    except OSError as error:
        raise BackendError(
            f"cannot use the secret {path} that seals engines: {error.strerror or error}",
            hint=f"name another file with {SECRET_VARIABLE}",
        ) from None
    if len(secret) != 32 or status.st_mode & 0o077:
        raise BackendError(
            f"the secret {path} is not a file of 32 bytes that only you can read",
            hint=f"run: rm {path}   and build engines again",
        )
    return secret


def _make_secret(path: Path) -> None:
    """Write a new secret, whole from its first moment; another process may have been quicker, then its secret stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        draft.touch(mode=0o600, exist_ok=False)
        draft.write_bytes(secrets.token_bytes(32))
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(draft)
    finally:
        draft.unlink(missing_ok=True)
