#!/usr/bin/env bash
# Make the folder that scripts/gpu_proof.sh needs on a machine that reaches no package registry.
#   usage: scripts/gpu_bundle.sh OUT [ORT_FOLDER] [PYTHON=3.12]
# OUT/wheels holds the small packages that an environment with torch, scipy and scikit-learn usually lacks.
# ORT_FOLDER holds onnxruntime-gpu for that machine, either its wheel or `ort_py.tar.xz` beside `cuda_lite.so.xz`, a build
# of which only the kernels of one GPU were kept; OUT/ort becomes a copy. Without it the other machine must have its own.
set -euo pipefail
out=${1:?usage: scripts/gpu_bundle.sh OUT [ORT_FOLDER] [PYTHON]}; ort=${2:-}; python=${3:-3.12}
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$out/wheels"
names=(cryptography cffi pycparser diffusers googleapis-common-protos grpcio-health-checking grpcio-reflection
    opentelemetry-api opentelemetry-sdk opentelemetry-proto opentelemetry-semantic-conventions
    opentelemetry-exporter-otlp-proto-grpc opentelemetry-exporter-otlp-proto-common
    starlette uvicorn tritonclient python-rapidjson)
platforms=()
for glibc in 2_34 2_28 2_27 2_17 2014 1; do platforms+=(--platform "manylinux${glibc/#2_/_2_}_x86_64"); done
for name in "${names[@]}"; do
    "${PIP:-$root/.venv/bin/pip}" download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --python-version "$python" --implementation cp "${platforms[@]}" -c "$root/constraints.txt" -d "$out/wheels" "$name"
done
if [ -n "$ort" ]; then mkdir -p "$out/ort" && cp "$ort"/* "$out/ort/"; fi
du -sh "$out"
