#!/usr/bin/env bash
# Regenerate the gRPC code from kaem/protocol/*.proto; with --check, fail if the committed code differs instead.
# Needs grpcio-tools (in the dev extra), whose version decides the oldest protobuf the code runs with.
set -euo pipefail
shopt -s extglob
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
    --python_out="$output" --pyi_out="$output" --grpc_python_out="$output" kaem/protocol/!(inference).proto

# Stubs of the Open Inference Protocol are for its clients, who have their own. Those register the same names: ours go
# into a descriptor pool of their own, so that a process may import both.
"$python" -m grpc_tools.protoc --proto_path=. \
    --python_out="$output" --pyi_out="$output" kaem/protocol/inference.proto
"$python" - "$output/kaem/protocol/inference_pb2.py" <<'EOF'
import pathlib, sys

path = pathlib.Path(sys.argv[1])
shared, own = "_descriptor_pool.Default()", "_descriptor_pool.DescriptorPool()"
code = path.read_text("utf-8")
assert code.count(shared) == 1, f"{path}: the generator has changed"
path.write_text(code.replace(shared, own), "utf-8")
EOF

if [[ "$output" != . ]]; then
    for generated in "$output"/kaem/protocol/*; do
        diff -u "kaem/protocol/$(basename "$generated")" "$generated" || {
            echo "error: the generated code is out of date (hint: run $0)" >&2
            exit 1
        }
    done
fi
