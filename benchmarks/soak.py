"""Minutes of mixed load on one server: does its memory grow, does anything fail, is it empty afterwards?

    python benchmarks/soak.py --minutes 20 --out runs/soak        # writes soak.md and soak.json there

At the same time and over and over: streams that are read to their end, one-sample calls, streams that are left in their
middle, readers that dawdle, and connections that are opened for one call. Every complete answer is compared with the
first answer to the same request, so bytes that change are found. The slope of the resident memory is a straight line
through the means of ten equal parts of the time after the first quarter, with a 95 % interval of that line's slope. A
server whose memory grows with its calls shows a slope that an interval around zero does not hold; minutes cannot show
less than some MB an hour, which is what the interval says.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import json
import random
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import psutil
from serving import served, write_generator

from kaem.bench.environment import describe_machine
from kaem.protocol import kaem_pb2, kaem_pb2_grpc

_PARTIAL = (("kaem-partial", "true"),)
_PARTS = 10
_T_95 = 2.306  # two-sided quantile of Student's t, 8 degrees of freedom: ten parts, a line
_SEEDS = 8
_GAUGES = ("kaem_inflight_streams", "kaem_queue_samples", "kaem_queue_bytes")


class Soak:
    """What all actors share: whether it is over, and what they counted."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.is_over = threading.Event()
        self.done: collections.Counter[str] = collections.Counter()
        self.failed: collections.Counter[str] = collections.Counter()
        self.samples = 0
        self._digests: dict[tuple[int, int], str] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def stub(self) -> Iterator[kaem_pb2_grpc.SamplerStub]:
        """Open a connection."""
        with grpc.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            yield kaem_pb2_grpc.SamplerStub(channel)

    def count(self, what: str, samples: int = 0) -> None:
        """Note that something succeeded."""
        with self._lock:
            self.done[what] += 1
            self.samples += samples

    def compare(self, seed: int, count: int, content: bytes) -> None:
        """Compare an answer with the first one to the same request."""
        digest = hashlib.sha256(content).hexdigest()
        with self._lock:
            if self._digests.setdefault((seed, count), digest) != digest:
                self.failed["other bytes than before"] += 1

    def act(self, what: str, action: Callable[[Soak, kaem_pb2_grpc.SamplerStub, random.Random], int]) -> None:
        """Repeat an action until the end."""
        rng = random.Random(what)  # noqa: S311  # a load, not a secret
        with self.stub() as stub:
            while not self.is_over.is_set():
                try:
                    self.count(what, action(self, stub, rng))
                except grpc.RpcError as error:
                    with self._lock:
                        self.failed[f"{what}: {error.code().name}"] += 1
                    self.is_over.wait(0.2)


def read_stream(soak: Soak, stub: kaem_pb2_grpc.SamplerStub, rng: random.Random) -> int:
    """Read a stream to its end."""
    seed, count = rng.randrange(_SEEDS), rng.choice((1, 100, 1000))
    request = kaem_pb2.SampleRequest(seed=seed, count=count, max_chunk_rows=64)
    soak.compare(seed, count, b"".join(chunk.data for chunk in stub.StreamSamples(request, timeout=300)))
    return count


def ask_for_one(soak: Soak, stub: kaem_pb2_grpc.SamplerStub, rng: random.Random) -> int:
    """Ask for one sample."""
    seed = rng.randrange(_SEEDS)
    soak.compare(seed, 1, stub.Sample(kaem_pb2.SampleRequest(seed=seed, count=1), timeout=300).data)
    return 1


def leave(soak: Soak, stub: kaem_pb2_grpc.SamplerStub, rng: random.Random) -> int:
    """Begin a stream without end and leave it."""
    call = stub.StreamSamples(kaem_pb2.SampleRequest(count=1 << 60), metadata=_PARTIAL)
    received = sum(next(call).count for _ in range(rng.randrange(1, 4)))
    call.cancel()
    return received


def dawdle(soak: Soak, stub: kaem_pb2_grpc.SamplerStub, rng: random.Random) -> int:
    """Read a stream without end far slower than it is made, for some seconds."""
    call = stub.StreamSamples(kaem_pb2.SampleRequest(count=1 << 60), metadata=_PARTIAL)
    received = 0
    for _ in range(rng.randrange(2, 10)):
        received += next(call).count
        if soak.is_over.wait(0.5):
            break
    call.cancel()
    return received


def reconnect(soak: Soak, stub: kaem_pb2_grpc.SamplerStub, rng: random.Random) -> int:
    """Ask over a connection of its own."""
    with soak.stub() as own:
        return ask_for_one(soak, own, rng)


ACTORS = {
    "streams read": (read_stream, 3),
    "one-sample calls": (ask_for_one, 3),
    "streams left": (leave, 2),
    "slow readers": (dawdle, 3),
    "connections": (reconnect, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="an artifact; by default one with random weights is made")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--out", type=Path, default=Path("runs/soak"), help="folder of soak.md and soak.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.model or write_generator(Path(folder) / "generator.onnx")
        report = run(path, 60 * options.minutes)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "soak.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = to_markdown(report)
    (options.out / "soak.md").write_text(text, encoding="utf-8")
    print(text)
    sys.exit(1 if report["failed"] or any(report["left"].values()) else 0)


def run(path: Path, seconds: float) -> dict:
    """Load a server for so long; return what was seen."""
    machine = describe_machine()
    with served(path, "--http-port", "0") as server:
        soak = Soak(server.address)
        threads = [
            threading.Thread(target=soak.act, args=(name, action))
            for name, (action, number) in ACTORS.items()
            for _ in range(number)
        ]
        for thread in threads:
            thread.start()
        memory = [(time.monotonic(), server.process.memory_info().rss / 1e6)]
        began, period = memory[0][0], min(1.0, seconds / 200)
        middle: dict[str, int] = {}
        while time.monotonic() - began < seconds:
            soak.is_over.wait(period)
            memory.append((time.monotonic(), server.process.memory_info().rss / 1e6))
            if not middle and time.monotonic() - began > seconds / 4:
                middle = holdings(server.process)
        end = holdings(server.process)
        soak.is_over.set()
        for thread in threads:
            thread.join()
        left = gauges(server.http_address)
    slope, half = slope_of([(at - began, mb) for at, mb in memory if at - began > seconds / 4])
    return {
        "format": "kaem-soak",
        "machine": machine,
        "seconds": seconds,
        "actors": {name: number for name, (_, number) in ACTORS.items()},
        "done": dict(soak.done),
        "samples": soak.samples,
        "failed": dict(soak.failed),
        "memory_mb": {"first": memory[0][1], "last": memory[-1][1], "most": max(mb for _, mb in memory)},
        "slope_mb_per_hour": {"value": slope, "low": slope - half, "high": slope + half},
        "held_after_a_quarter": middle,
        "held_at_the_end": end,
        "left": left,
        "resident": [[round(at - began, 2), round(mb, 2)] for at, mb in memory],
    }


def holdings(process: psutil.Process) -> dict[str, int]:
    """Return what else a server could leak."""
    return {"threads": process.num_threads(), "files": process.num_fds()}


def gauges(http_address: str, timeout_s: float = 20.0) -> dict[str, float]:
    """Return the gauges that must be zero once nobody asks, after giving them some seconds to get there."""
    deadline = time.monotonic() + timeout_s
    straight = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        with straight.open(f"{http_address}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        found = {name: float(value) for name, _, value in (line.partition(" ") for line in lines) if name in _GAUGES}
        if not any(found.values()) or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def slope_of(memory: list[tuple[float, float]]) -> tuple[float, float]:
    """Return the slope in MB an hour and half its 95 % interval.

    Args:
        memory: (seconds, MB).
    """
    parts = [np.mean(part, axis=0) for part in np.array_split(np.array(memory), _PARTS)]
    at, mb = np.array(parts).T
    centred = at - at.mean()
    slope = float((centred * mb).sum() / (centred**2).sum())
    residual = mb - mb.mean() - slope * centred
    error = float(np.sqrt((residual**2).sum() / (_PARTS - 2) / (centred**2).sum()))
    return 3600 * slope, 3600 * _T_95 * error


def to_markdown(report: dict) -> str:
    """Return the report for people."""
    memory, slope = report["memory_mb"], report["slope_mb_per_hour"]
    lines = [
        f"**A soak of {report['seconds'] / 60:.1f} minutes**",
        "",
        "| load | clients | completed |",
        "|---|---|---|",
        *(f"| {name} | {number} | {report['done'].get(name, 0)} |" for name, number in report["actors"].items()),
        "",
        f"- {report['samples']} samples received; failures: {report['failed'] or 'none'}",
        f"- resident memory: {memory['first']:.0f} MB at first, {memory['last']:.0f} MB at last, "
        f"{memory['most']:.0f} MB at most; slope after the first quarter {slope['value']:+.1f} MB/hour "
        f"(95 %: {slope['low']:+.1f} to {slope['high']:+.1f})",
        f"- after a quarter {report['held_after_a_quarter']}, at the end {report['held_at_the_end']}",
        f"- once nobody asked any more: {report['left']}",
        "",
        f"Machine: {', '.join(f'{name} {value}' for name, value in report['machine'].items())}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
