"""Which ONNX Runtime is installed, and a session on exactly the provider that was asked for.

`onnxruntime` and `onnxruntime-gpu` are two distributions of the same files: with both installed whichever
was unpacked last wins and nothing says so. And a GPU provider that fails to load silently becomes a CPU
session. Both are turned into errors here, before a model is touched.
"""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from kaem.artifact import fingerprint
from kaem.engines.gpu import installed_gpu, kernel_libraries
from kaem.engines.providers import PROVIDERS, GpuOptions, cuda_options, tensorrt_options
from kaem.errors import ArtifactError, BackendError, ConfigError
from kaem.files import cache_folder

_EXTRAS = {"cpu": "cpu", "cuda": "gpu", "ort-tensorrt": "ort-tensorrt"}
_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")

_NOT_FOR_A_GPU = {
    "assigned to the default CPU EP": "int8 graphs and large-batch forms are for processors: export the checkpoint "
    "without --precision int8 and --optimize large-batch",
    "has control flow nodes": "a server records graphs on a GPU, and none with a loop or a branch can be: serve a "
    "sampler in steps on a processor, and export a checkpoint without --optimize large-batch",
}
"""What to do, by words of ONNX Runtime's that say that the graph is at fault and not the machine."""


class Runtime(NamedTuple):
    """The one ONNX Runtime of this environment."""

    distribution: str
    version: str


def installed_runtime() -> Runtime:
    """Return the installed ONNX Runtime distribution: of two in folders of their own the one that Python imports.

    Raises:
        BackendError: None is installed, or two are in one folder; the hint is the command that repairs it.
    """
    found: dict[str, list[Runtime]] = {}
    for name in _DISTRIBUTIONS:
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        found.setdefault(str(installed.locate_file("")), []).append(Runtime(name, installed.version))
    if not found:
        raise BackendError(
            "no ONNX Runtime is installed",
            hint="run: pip install 'kaem[cpu]'   (or 'kaem[gpu]' on a machine with an NVIDIA GPU)",
        )
    first = min(found, key=lambda folder: sys.path.index(folder) if folder in sys.path else len(sys.path))
    if len(found[first]) > 1:
        raise BackendError(
            "onnxruntime and onnxruntime-gpu are both installed and have overwritten each other's files",
            hint="run: pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'kaem[cpu]'   (or 'kaem[gpu]')",
        )
    return found[first][0]


def open_session(content: bytes, provider: str, *, source: str, gpu: GpuOptions | None = None) -> Any:
    """Open an ONNX model on exactly one provider.

    The session is single-threaded: work is split by rows over one worker per core instead, which scales
    linearly and keeps a row's bits independent of the number of threads.

    Args:
        content: The ONNX file, whole: a model that keeps weights in further files is refused.
        provider: A key of `PROVIDERS`.
        source: Name of the file, for messages.
        gpu: How a GPU is used; by default as `GpuOptions` says.

    Returns:
        An `onnxruntime.InferenceSession`.

    Raises:
        ConfigError: The provider's name is unknown.
        ArtifactError: It is not a valid ONNX model in one piece.
        BackendError: The runtime is unusable, or would run anywhere else than asked.
    """
    if provider not in PROVIDERS:
        raise ConfigError(f"unknown provider {provider!r}", hint=f"choose one of: {', '.join(PROVIDERS)}")
    runtime = installed_runtime()
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"{runtime.distribution} {runtime.version} is installed but cannot be imported: {error}",
            hint=f"run: pip install --force-reinstall {runtime.distribution}",
        ) from None
    wanted = PROVIDERS[provider]
    if wanted not in onnxruntime.get_available_providers():
        raise BackendError(
            f"{runtime.distribution} {runtime.version} has no {wanted}",
            hint=f"run: pip uninstall -y onnxruntime && pip install 'kaem[{_EXTRAS[provider]}]'",
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # failures become exceptions; the log would only repeat them
    options.enable_mem_pattern = False  # the batch dimension is free; patterns per shape only grow memory
    # Never session.set_denormal_as_zero: it switches the calling thread of the first session to flush-to-zero, for
    # good, so that the caller's own arithmetic and rows computed by other threads would no longer agree.
    # Weights in a second file could change behind the artifact's digest; nothing is found in this folder.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    if provider != "cpu":
        # Kernels that add in an order that depends on timing are left out wherever ONNX Runtime has another one.
        options.use_deterministic_compute = True
        # Without this a provider that fails to load, or a node it lacks, silently runs on the CPU.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it misses; standard output is the command's
            onnxruntime.preload_dlls()
    try:
        providers = _providers(onnxruntime, content, provider, gpu or GpuOptions())
        # A provider that fails is not replaced, neither now nor in a later run.
        session = onnxruntime.InferenceSession(content, options, providers=providers, enable_fallback=False)
    except Exception as error:  # onnxruntime's own exception classes share no public base
        reason = " ".join(str(error).split())
        if provider == "cpu":
            raise ArtifactError(f"{source} is not a usable ONNX model: {reason}", hint="export it again") from None
        raise BackendError(
            f"{wanted} cannot run {source}: {reason}",
            hint=next(
                (hint for words, hint in _NOT_FOR_A_GPU.items() if words in reason),
                f"check the GPU with nvidia-smi, and that 'kaem[{_EXTRAS[provider]}]' is installed with its libraries",
            ),
        ) from None
    if session.get_providers()[0] != wanted:
        raise BackendError(
            f"asked for {wanted}, but ONNX Runtime fell back to {session.get_providers()[0]}",
            hint=f"check the GPU driver with nvidia-smi, and that 'kaem[{_EXTRAS[provider]}]' is installed",
        )
    return session


def _providers(onnxruntime: Any, content: bytes, provider: str, gpu: GpuOptions) -> list[Any]:
    """Return the providers of a session, most wanted first, each with its options."""
    wanted = PROVIDERS[provider]
    if provider == "cpu":
        return [wanted]
    cuda = (PROVIDERS["cuda"], cuda_options(gpu))
    if wanted == PROVIDERS["cuda"]:
        return [cuda]
    if wanted != PROVIDERS["ort-tensorrt"]:
        raise AssertionError(f"no options are known for {wanted}")
    # Engines are built for the batch sizes of a profile, which names the inputs.
    inputs = onnxruntime.InferenceSession(content, providers=[PROVIDERS["cpu"]]).get_inputs()
    free = {value.name: tuple(value.shape[1:]) for value in inputs if isinstance(value.shape[0], str)}
    # Engines of another version or GPU are not recognised as such, so each has a folder of its own; and they are
    # executable, so nobody else may write there.
    cache = _engine_folder(content, gpu.device)
    return [(wanted, tensorrt_options(gpu, free, cache)), cuda]


def _engine_folder(content: bytes, device: int) -> Path:
    made_by = (*installed_runtime(), _version("tensorrt-cu13"), hardware_id("ort-tensorrt", device))
    key = fingerprint("\n".join((fingerprint(content), *made_by)).encode())
    folder = cache_folder() / "ort-tensorrt" / key.removeprefix("sha256:")[:16]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def build_id(content: bytes, provider: str, device: int = 0) -> str:
    """Name what decides which kernels run for a model, and so the last bits of a result.

    TensorRT chooses kernels by a race while it builds an engine, so there it is the folder of the built engines: an
    arbitrary number that is drawn once with it.
    """
    if provider != "ort-tensorrt":
        return hardware_id(provider, device)
    path = _engine_folder(content, device) / "kaem-build"
    draft = path.with_name(f".kaem-build.{secrets.token_hex(4)}")
    try:
        draft.write_text(secrets.token_hex(16), encoding="ascii")
        with contextlib.suppress(FileExistsError):  # another process was quicker; its number holds
            path.hardlink_to(draft)
    finally:
        draft.unlink(missing_ok=True)
    return path.read_text(encoding="ascii")


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def hardware_id(provider: str, device: int = 0) -> str:
    """Name the hardware, and the libraries written for it, as far as they decide which kernels run.

    On a CPU the architecture and its instruction sets, between which ONNX Runtime chooses; on a GPU its model, whatever
    its number and its neighbours are, its driver, and the installed libraries of kernels.

    Raises:
        BackendError: There is no such GPU.
    """
    if provider not in PROVIDERS:
        raise AssertionError(f"no provider is named {provider!r}")
    if provider == "cpu":
        return " ".join((platform.machine(), *sorted(_cpu_flags() & _INSTRUCTION_SETS)))
    return " ".join((platform.machine(), *installed_gpu(device), *kernel_libraries()))


_X86_SETS = "sse4_1 avx avx2 fma f16c avx_vnni amx_tile amx_int8 amx_bf16"
_X86_512_SETS = "avx512f avx512bw avx512cd avx512dq avx512vl avx512_vnni avx512_bf16"
_ARM_SETS = "asimd asimdhp asimddp i8mm bf16 sve sve2"
_INSTRUCTION_SETS = frozenset(f"{_X86_SETS} {_X86_512_SETS} {_ARM_SETS}".split(" "))


def _cpu_flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    return set((_field(info, "flags") or _field(info, "Features")).split())


def _field(path: Path, name: str) -> str:
    """Return the first value of `name : value` lines in a file of the kernel, "" where there is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name), "")
