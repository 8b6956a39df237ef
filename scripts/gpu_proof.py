"""The steps of `scripts/gpu_proof.sh`: every command as a user would type it, its time, and what it said.

One step that fails does not keep the others from running; the exit status is 1 if any has failed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results-gpu.md"
KAEM = (sys.executable, "-c", "from cli.main import main; main()")
_STREAMS = 4


class Proof:
    """What has been run so far.

    Args:
        device: Device that is tried, such as `cuda:0`; `cpu` tries the script itself.
        out: Folder of logs, results and what the steps make.
    """

    def __init__(self, device: str, out: Path) -> None:
        self.device = device
        self.is_gpu = device != "cpu"
        self.out = out
        self.lines: list[str] = []
        self.failed: list[str] = []

    def run(self, name: str, *words: str, limit_s: float, interrupt_s: float | None = None) -> str:
        """Run a command, keep its log in `NAME.log`, and return what it wrote.

        Args:
            name: Name of the step.
            words: Command line.
            limit_s: Seconds after which it has failed.
            interrupt_s: Seconds after which it is interrupted, as by Ctrl-C, which is no failure.
        """
        print(f"{name}: {' '.join(words[-6:])}", flush=True)
        began = time.perf_counter()
        log = self.out / f"{name}.log"
        with log.open("w") as file:
            process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
            try:
                status = process.wait(interrupt_s or limit_s)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT if interrupt_s else signal.SIGTERM)
                try:
                    status = process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    status = process.wait()
                status = 0 if interrupt_s and status in (0, 130) else status or 124
        text = log.read_text(errors="replace")
        taken = time.perf_counter() - began
        if status != 0:
            self.failed.append(name)
            print(text[-3000:], flush=True)
        self.lines.append(f"| {name} | {'done' if status == 0 else f'FAILED ({status})'} | {taken:.0f} |")
        return text


def main() -> None:
    """Run all steps and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-proof"))
    parser.add_argument("--seconds", type=float, default=60.0, help="of training")
    given = parser.parse_args()
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    proof = Proof(given.device, out)
    began = time.perf_counter()
    # The sweep first: it writes the page that the others add to, and it is what a short lease should not miss.
    tests = (sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider")
    sweep = proof.run("sweep", *tests, "tests/gpu/test_sweep.py", limit_s=150) if proof.is_gpu else ""
    suite = proof.run("suite", *tests, "--deselect", "tests/gpu/test_sweep.py", limit_s=150)
    trained = _train(proof, given.seconds)
    served = _export_and_serve(proof) if trained else []
    page = [
        *_head(proof, sweep),
        "",
        "## Steps",
        "",
        f"The whole took {time.perf_counter() - began:.0f} s. The suite: {_last(suite)}.",
        "",
        "| step | result | seconds |",
        "|---|---|---|",
        *proof.lines,
        *trained,
        *served,
    ]
    text = "\n".join(page) + "\n"
    (out / "results-gpu.md").write_text(text, encoding="utf-8")
    if proof.is_gpu:
        RESULTS.write_text(text, encoding="utf-8")
        for path in (RESULTS, RESULTS.with_suffix(".json")):
            if path.is_file() and path.parent != out:
                shutil.copy(path, out)
    print(text)
    sys.exit(1 if proof.failed else 0)


def _head(proof: Proof, sweep: str) -> list[str]:
    """Return the page that the sweep wrote, or a title where it wrote none."""
    if sweep and "sweep" not in proof.failed and RESULTS.is_file():
        return RESULTS.read_text(encoding="utf-8").rstrip().splitlines()
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return [f"# Trial of the proof on {proof.device}", "", f"- date: {today}", f"- Python: {platform.python_version()}"]


def _last(text: str) -> str:
    return text.strip().splitlines()[-1].strip("= ") if text.strip() else "nothing"


def _train(proof: Proof, seconds: float) -> list[str]:
    """Train the SVHN preset for a while on images that are made up, and return what it reached, or nothing."""
    data = proof.out / "blobs.npz"
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (4608, 3, 4, 4), dtype=np.uint8)
    images = np.ascontiguousarray(coarse.repeat(8, -1).repeat(8, -2).transpose(0, 2, 3, 1))
    np.savez(data, images_train=images[:4096], images_test=images[4096:])
    log = proof.run(
        "training",
        *KAEM,
        *("train", "svhn", "--data", str(data), "--out", str(proof.out / "svhn"), "--force", "--updates", "1000000"),
        *("--set", f"training.device={proof.device}", "--set", "refit.kind=none"),
        limit_s=seconds + 60,
        interrupt_s=seconds,
    )
    checkpoint = proof.out / "svhn" / "ckpt.pt"
    if not checkpoint.is_file():
        proof.failed.append("training")
        return []
    from kaem_train.checkpoint import read_checkpoint

    updates = read_checkpoint(checkpoint).step
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "numpy"))
    return [
        "",
        "## Training",
        "",
        f"`kaem train svhn` for {seconds:.0f} s on {proof.device}, its start included, on 4,096 images that are made "
        f"up: {updates} updates of the preset's batch ({packages}).",
        f"It ended with: `{_last(log)[:200]}`",
    ]


def _export_and_serve(proof: Proof) -> list[str]:
    """Export what was trained, measure its certificate on the device, serve it and read several streams at once."""
    checkpoint, model = proof.out / "svhn" / "ckpt.pt", proof.out / "model.onnx"
    exported = (str(checkpoint), "-o", str(model), "--image-type", "uint8")
    proof.run("export", *KAEM, "export", *exported, limit_s=90)
    if not model.is_file():
        return []
    verified = proof.run(
        "verify", *KAEM, "verify", str(model), "--checkpoint", str(checkpoint), "--device", proof.device, limit_s=90
    )
    (proof.out / "address").write_text("")
    with (proof.out / "address").open("w") as address, (proof.out / "server.log").open("w") as log:
        serve = ("serve", str(model), "--port", "0", "--device", proof.device)
        server = subprocess.Popen((*KAEM, *serve), stdout=address, stderr=log, cwd=ROOT, env=os.environ.copy())
    try:
        lines = _read_streams(proof, server)
    finally:
        server.terminate()
        server.wait(60)
    return ["", "## The certificate on this device", "", "```", verified.strip(), "```", *lines]


def _read_streams(proof: Proof, server: subprocess.Popen[bytes]) -> list[str]:
    limit = time.monotonic() + 60
    while not (target := (proof.out / "address").read_text().strip()):
        if server.poll() is not None or time.monotonic() > limit:
            proof.failed.append("server")
            print((proof.out / "server.log").read_text()[-3000:], flush=True)
            return []
        time.sleep(0.1)
    num = 200_000 if proof.is_gpu else 2_000
    bench = proof.run(
        "streams", sys.executable, "-m", "scripts.gpu_streams", target, str(num), str(_STREAMS), limit_s=90
    )
    try:
        found = json.loads(_last(bench))
    except json.JSONDecodeError:
        return []
    return [
        "",
        "## The server",
        "",
        f"{_STREAMS} streams of {num:,} 8-bit images each from one server on {proof.device}, one client process a "
        f"stream: {found['images_per_s']:,.0f} images/s together. "
        f"A call of one image, alone: median {found['one_ms']:.2f} ms.",
    ]


if __name__ == "__main__":
    main()
