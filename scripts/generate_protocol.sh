#!/usr/bin/env bash
# Regenerate the gRPC code from kaem/protocol/*.proto; with --check, fail if the committed code differs instead.
# Needs grpcio-tools (in the dev extra), whose version decides the oldest protobuf the code runs with.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python}
output=.
if [[ "${1:-}" == "--check" ]]; then
    output=$(mktemp -d)
    trap 'rm -rf "$output"' EXIT
elif [[ $# -gt 0 ]]; then
    echo "usage: $0 [--check]" >&2
    exit 2
fi

"$python" -m grpc_tools.protoc --proto_path=. \
    --python_out="$output" --pyi_out="$output" --grpc_python_out="$output" kaem/protocol/*.proto

if [[ "$output" != . ]]; then
    for generated in "$output"/kaem/protocol/*; do
        diff -u "kaem/protocol/$(basename "$generated")" "$generated" || {
            echo "error: the generated code is out of date (hint: run $0)" >&2
            exit 1
        }
    done
fi
