"""What a server does with more calls than it can answer: goodput, and how many of those let in are late.

    python benchmarks/overload.py MODEL.onnx

The server has one processor, the load another. Capacity is the best of closed loops of 4, 16 and 32 callers; then calls
come at random moments at 1, 2 and 3 times that rate, with a deadline each, whatever became of those before. The closed
loop is repeated after each load, and shares are those of the mean of before and after: a machine that others share
changes its speed within minutes. A call is good if it is answered in time, late if it was let in and was not, and
refused otherwise.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from kaem.protocol import kaem_pb2

ROOT = Path(__file__).parents[1]
_CALLERS = (4, 16, 32)
_PIN = shutil.which("taskset") or "taskset"


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 64, 512])
    parser.add_argument("--times", type=float, nargs="*", default=[1.0, 2.0, 3.0], help="of the capacity")
    parser.add_argument("--deadline", type=float, default=0.2, help="seconds of each call")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load")
    parser.add_argument("--server-options", default="", help="of kaem serve, for comparison")
    given = parser.parse_args()
    command = [sys.executable, "-m", "cli.main", "serve", str(given.model.resolve()), "--port", "0"]
    command += given.server_options.split()
    with subprocess.Popen(
        [_PIN, "-c", "0", *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    ) as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip().removeprefix("grpc://")
        try:
            print(f"{datetime.datetime.now(datetime.UTC).date()}, {_processor()}, {os.cpu_count()} processors\n")
            print("| rows | load | calls/s | good/s | of capacity | late if let in | refused in (p50, p99) | OK p99 |")
            print("|---|---|---|---|---|---|---|---|")
            for rows in given.rows:
                _measure(address, rows, given)
        finally:
            server.terminate()


def _measure(address: str, rows: int, given: argparse.Namespace) -> None:
    request = kaem_pb2.SampleRequest(count=rows, encoding=kaem_pb2.ENCODING_UINT8, seed=3).SerializeToString().hex()
    common = {"address": address, "request": request, "timeout_s": given.deadline}

    def closed_loop(callers: int) -> float:
        found = _offer({**common, "callers": callers, "seconds": 3.0, "settle_s": 1.0})
        return found["in_time"] / found["seconds"]

    before, callers = max((closed_loop(callers), callers) for callers in _CALLERS)
    for times in given.times:
        found = _offer({**common, "rate": times * before, "seconds": given.seconds})
        after = closed_loop(callers)
        capacity, before = (before + after) / 2, after
        seconds, let_in = found["seconds"], max(1, found["in_time"] + found["late"])
        good = found["in_time"] / seconds
        print(
            f"| {rows} | {times:g} x | {found['sent'] / seconds:,.0f} | {good:,.0f} | {100 * good / capacity:.0f} % | "
            f"{100 * found['late'] / let_in:.1f} % | {_quantiles(found['refused_ms'])} | "
            f"{_quantile(found['ok_ms'], 0.99):.0f} ms |",
            flush=True,
        )


def _offer(load: dict[str, object]) -> dict[str, object]:
    words = json.dumps({"method": "/kaem.v1.Sampler/Sample", **load})
    done = subprocess.run(
        [_PIN, "-c", "1", sys.executable, str(Path(__file__).with_name("open_loop.py")), words],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


def _quantiles(values: list[float]) -> str:
    return f"{statistics.median(values):.1f}, {_quantile(values, 0.99):.0f} ms" if values else "none"


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))] if values else float("nan")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
