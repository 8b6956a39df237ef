#!/usr/bin/env bash
# From real images to streamed samples: the public commands in a row, as you would type them.
set -euo pipefail
cd "$(dirname "$0")/.."

server=""
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true' EXIT
step() { printf '\n\033[1m$ %s\033[0m\n' "$*" >&2; "$@"; }

mkdir -p demo

# 1. Train on the 1,797 real handwritten digits that scikit-learn embeds.
step kaem train digits --out demo --force

# 2. Compile the checkpoint to one ONNX file, and prove it.
step kaem export demo/ckpt.pt -o demo/model.onnx
step kaem verify demo/model.onnx --checkpoint demo/ckpt.pt

# 3. Serve it. The server prints its address once it is ready.
printf '\n\033[1m$ kaem serve demo/model.onnx --port 0 &\033[0m\n' >&2
: > demo/address
kaem serve demo/model.onnx --port 0 > demo/address &
server=$!
until [ -s demo/address ]; do
    kill -0 "$server" 2>/dev/null || { echo "the server did not start" >&2; exit 1; }
    sleep 0.1
done

# 4. Stream 4,096 samples from it; the contact sheet shows the first 256.
step kaem sample "$(cat demo/address)" -n 4096 --seed 7 -o demo/samples.npy -o demo/samples.png

# 5. Measure the model, in this process and through the server.
step kaem bench demo/model.onnx "$(cat demo/address)" --launches 6 --seconds 0.5

kill "$server" && wait "$server" && server=""

cat >&2 <<END

Made in demo/:
  ckpt.pt        the trained model (kaem train ... --resume continues it)
  model.onnx     one self-contained file; any program that runs ONNX can sample from it
  samples.npy    4,096 images, float32 (4096, 1, 8, 8)
  samples.png    a contact sheet of the first 256: look at it
  tensorboard/   the training curves (tensorboard --logdir demo)

Try next (source .venv/bin/activate first):
  kaem sample demo/model.onnx -n 64 --seed 1 -o grid.png
  kaem info demo/model.onnx
  kaem serve demo/model.onnx
END
