"""What ONNX Runtime's CUDA provider has kernels for, and where it puts the nodes of a model, without a GPU.

    python scripts/cuda_kernels.py table tests/kaem_export/cuda_kernels.json
    python scripts/cuda_kernels.py place model.onnx ...

Needs gcc, readelf, and an environment of its own with `onnxruntime-gpu`, `onnx` and `numpy` (it overwrites the files
of `onnxruntime`). ONNX Runtime registers its kernels and assigns nodes before anything runs on the device; so
stand-ins for the CUDA libraries, whose functions all return success, are enough to load it. Nothing is computed.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from importlib import metadata
from pathlib import Path
from typing import Any

OPSET = 21
TYPES = ("float", "float16", "double", "int64", "int32", "int8", "uint8", "bool")
PROVIDERS = ("libonnxruntime_providers_cuda.so", "libonnxruntime_providers_tensorrt.so")
READY = "KAEM_STAND_INS"

# Functions whose results are looked at; every other one only says that it succeeded.
ANSWERS = {
    "cudaGetDeviceCount": "int cudaGetDeviceCount(int *n) { *n = 1; return 0; }",
    "cudaGetDevice": "int cudaGetDevice(int *n) { *n = 0; return 0; }",
    "cudaMemGetInfo": "int cudaMemGetInfo(size_t *a, size_t *b) { *a = *b = (size_t)64 << 30; return 0; }",
    "cudaMalloc": "int cudaMalloc(void **p, size_t n) { *p = aligned_alloc(256, (n + 511) / 256 * 256); return 0; }",
    "cudaFree": "int cudaFree(void *p) { free(p); return 0; }",
    "cudaMallocHost": "int cudaMallocHost(void **p, size_t n) { *p = malloc(n); return 0; }",
    "cudaHostAlloc": "int cudaHostAlloc(void **p, size_t n, unsigned f) { *p = malloc(n); return 0; }",
    "cudaFreeHost": "int cudaFreeHost(void *p) { free(p); return 0; }",
    "cudaMemcpy": "int cudaMemcpy(void *d, void *s, size_t n, int k) { memcpy(d, s, n); return 0; }",
    "cudaMemcpyAsync": "int cudaMemcpyAsync(void *d, void *s, size_t n, int k, void *t) { memcpy(d, s, n); return 0; }",
    "cudaGetErrorString": 'char *cudaGetErrorString(int e) { return "stand-in"; }',
    "cudaGetErrorName": 'char *cudaGetErrorName(int e) { return "stand-in"; }',
    # Total memory, warp size, threads per block and compute capability 9.0 where CUDA 13 keeps them.
    "cudaGetDeviceProperties": 'int cudaGetDeviceProperties(char *p, int d) { memset(p, 0, 700); strcpy(p, "none");'
    " *(size_t *)(p + 288) = (size_t)64 << 30; *(int *)(p + 308) = 32; *(int *)(p + 320) = 1024;"
    " *(int *)(p + 360) = 9; return 0; }",
}
UNVERSIONED = {
    "libcuda.so.1": ["cuTensorMapEncodeTiled"],
    "libnvinfer.so.10": ["createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
                         "getInferLibVersion", "getPluginRegistry"],
    "libnvonnxparser.so.10": ["createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL"],
}  # fmt: skip


def make_stand_ins(folder: Path) -> None:
    """Compile one library for each that the providers are linked against."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        sys.exit("onnxruntime-gpu is not installed here")
    wanted: dict[str, set[str]] = defaultdict(set)
    for library, names in UNVERSIONED.items():
        wanted[library].update(names)
    for provider in PROVIDERS:
        path = str(Path(spec.origin).parent / "capi" / provider)
        for line in _run("readelf", "--wide", "--dynamic", path).splitlines():
            if "(NEEDED)" in line and ("[libcu" in line or "[libnv" in line):
                wanted[line.partition("[")[2].partition("]")[0]].update()
        for line in _run("readelf", "--wide", "--dyn-syms", path).splitlines():
            words = line.split()
            if len(words) >= 8 and words[6] == "UND":
                name, _, library = words[7].partition("@")
                if library.startswith("lib"):
                    wanted[library].add(name)
    for library, names in wanted.items():
        source = "".join(ANSWERS.get(name, f"long {name}(void) {{ return 0; }}") + "\n" for name in sorted(names))
        (folder / "source.c").write_text(f"#include <stdlib.h>\n#include <string.h>\n{source}")
        (folder / "versions").write_text(f"{library} {{ global: *; }};\n")
        flags = ("-w", "-fno-builtin", "-shared", "-fPIC", f"-Wl,-soname,{library}")
        _run(
            "gcc", *flags, f"-Wl,--version-script={folder}/versions", "-o", f"{folder}/{library}", f"{folder}/source.c"
        )


def write_table(path: Path) -> None:
    """Write the types of every CUDA kernel for ONNX's own operators in `OPSET`."""
    import onnx
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kernels: dict[str, list[dict[str, list[str]]]] = defaultdict(list)
    for kernel in state.get_all_opkernel_def():
        if kernel.provider != "CUDAExecutionProvider" or kernel.domain != "":
            continue
        try:
            since = onnx.defs.get_schema(kernel.op_name, OPSET).since_version
        except onnx.defs.SchemaError:
            continue
        first, last = kernel.version_range
        if first <= since <= last:
            named = {name: _types(types) for name, types in sorted(kernel.type_constraints.items())}
            kernels[kernel.op_name].append(named)
    table = {
        "onnxruntime-gpu": metadata.version("onnxruntime-gpu"),
        "opset": OPSET,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "kernels": {name: kernels[name] for name in sorted(kernels)},
    }
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in table.items() if name != "kernels"]
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in table["kernels"].items())
    path.write_text("{\n" + ",\n".join([*lines, f'"kernels": {{\n{rows}\n}}']) + "\n}\n")
    print(f"{len(kernels)} operators -> {path}")


def place(paths: list[str]) -> int:
    """Open models as `kaem.load(..., provider="cuda")` does, which fails if a node has no CUDA kernel."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from kaem.engines.session import open_session
    from kaem.errors import BackendError

    failures = 0
    for path in paths:
        try:
            session = open_session(Path(path).read_bytes(), "cuda", source=path)
            print(f"{path}: all nodes on {session.get_providers()[0]}")
        except BackendError as error:
            failures += 1
            print(f"{path}: {error.message}")
    return min(failures, 1)


def _types(types: list[str]) -> list[str]:
    return [name for name in TYPES if f"tensor({name})" in types]


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main(arguments: list[str]) -> int:
    """Run a command of the docstring, with the stand-ins on the loader's path."""
    match arguments:
        case ["table", path] if os.environ.get(READY):
            write_table(Path(path))
            return 0
        case ["place", *paths] if os.environ.get(READY) and paths:
            return place(paths)
        case ["table", _] | ["place", _, *_]:
            with tempfile.TemporaryDirectory() as folder:
                make_stand_ins(Path(folder))
                environment: dict[str, Any] = {**os.environ, "LD_LIBRARY_PATH": folder, READY: "1"}
                command = [sys.executable, __file__, *arguments]
                return subprocess.run(command, env=environment, check=False).returncode
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
