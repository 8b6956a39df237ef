#!/usr/bin/env bash
# Prove on a machine with an NVIDIA GPU, in under 8 minutes, what a CPU cannot show, and write benchmarks/results-gpu.md:
# the suite, a sweep of batch sizes and precisions, a minute of training, the certificate on the GPU, a server with streams.
# The machine needs Python with torch (CUDA); what else is missing may come from a folder of scripts/gpu_bundle.sh.
#   usage: scripts/gpu_proof.sh [BUNDLE]
#   PYTHON=python3   the Python that has torch
#   DEVICE=cuda:0    cpu tries the script itself where there is no GPU
#   OUT=FOLDER       also gets the results and every log
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} device=${DEVICE:-cuda:0} out=${OUT:-runs/gpu-proof} bundle=${1:-}
mkdir -p "$out"
site=$(mktemp -d) && trap 'rm -rf "$site"' EXIT

if [ -n "$bundle" ]; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$bundle"/wheels/*.whl || exit 2
    if [ -f "$bundle/ort/ort_py.tar.xz" ]; then
        "$python" - "$bundle/ort" "$site" <<'P' || exit 2
import lzma, pathlib, re, shutil, sys, tarfile
source, site = map(pathlib.Path, sys.argv[1:])
tarfile.open(source / "ort_py.tar.xz").extractall(site, filter="data")
with lzma.open(source / "cuda_lite.so.xz") as packed, (site / "onnxruntime/capi/libonnxruntime_providers_cuda.so").open("wb") as to:
    shutil.copyfileobj(packed, to)
version = re.search(r'__version__ = "([^"]+)"', (site / "onnxruntime/__init__.py").read_text())[1]
about = site / f"onnxruntime_gpu-{version}.dist-info"  # its own stayed in the wheel
about.mkdir()
(about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: {version}\n")
P
    else
        for wheel in "$bundle"/ort/*.whl; do
            [ ! -f "$wheel" ] || "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$wheel" || exit 2
        done
    fi
fi
export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}" CUDA_MODULE_LOADING=LAZY PYTHONUNBUFFERED=1
export KAEM_CACHE_DIR="$site/cache" ORT_DISABLE_TELEMETRY=1

"$python" -m scripts.gpu_proof --device "$device" --out "$out"
