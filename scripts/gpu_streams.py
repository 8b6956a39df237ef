"""Read several streams of one server at once, a process each, and print images a second and the time of one image.

usage: python -m scripts.gpu_streams ADDRESS NUM STREAMS
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
import time

import kaem


def read_stream(target: str, num: int, seed: int) -> int:
    """Return how many images of one seed came."""
    with kaem.connect(target) as sampler:
        return sum(len(chunk.images) for chunk in sampler.stream(num, seed))


def main() -> None:
    """Measure, and print one line of JSON."""
    target, num, streams = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with kaem.connect(target) as sampler:
        taken = []
        for seed in range(200):
            began = time.perf_counter()
            sampler.sample(1, seed)
            taken.append(time.perf_counter() - began)
    with multiprocessing.get_context("spawn").Pool(streams) as pool:
        pool.starmap(read_stream, [(target, 1, seed) for seed in range(streams)])  # processes up, modules loaded
        began = time.perf_counter()
        came = pool.starmap(read_stream, [(target, num, seed) for seed in range(streams)])
        elapsed = time.perf_counter() - began
    if came != [num] * streams:
        raise SystemExit(f"{came} images came instead of {num} each")
    print(json.dumps({"images_per_s": sum(came) / elapsed, "one_ms": 1e3 * statistics.median(taken)}))


if __name__ == "__main__":
    main()
