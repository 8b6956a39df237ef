"""What gRPC carries between two processes on this machine, by the size of a chunk.

    python benchmarks/transport.py
    python benchmarks/transport.py --sizes 65536,1048576 --megabytes 64

A server of its own streams chunks of the protocol that hold bytes and no images, so nothing but the transport is
measured: processor time and megabytes a second of the receiving process, sizes interleaved. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

import grpc

from kaem.bench.cells import figure
from kaem.bench.environment import describe_machine
from kaem.bench.statistics import median_estimate
from kaem.protocol import kaem_pb2, kaem_pb2_grpc


class Bytes(kaem_pb2_grpc.SamplerServicer):
    """Streams `count` chunks of `seed` bytes each."""

    def StreamSamples(self, request, context):  # noqa: N802
        data = bytes(request.seed)
        for index in range(request.count):
            yield kaem_pb2.Chunk(start_index=index, count=1, data=data)


def serve(pipe: Connection) -> None:
    """Serve until the pipe says something; send the port first."""
    server = grpc.server(ThreadPoolExecutor(2))
    kaem_pb2_grpc.add_SamplerServicer_to_server(Bytes(), server)
    pipe.send(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    pipe.recv()
    server.stop(0).wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="3136,65536,262144,1048576,3145728", help="bytes of a chunk")
    parser.add_argument("--megabytes", type=int, default=32, help="carried in every round, at most 5,000 messages")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.sizes.split(",")]
    wall: dict[int, list[float]] = {size: [] for size in sizes}
    cpu: dict[int, list[float]] = {size: [] for size in sizes}
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,))
    process.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{ours.recv()}") as channel:
            stub = kaem_pb2_grpc.SamplerStub(channel)
            for _ in range(arguments.rounds):
                for size in random.sample(sizes, len(sizes)):
                    num = max(4, min(5000, (arguments.megabytes << 20) // size))
                    begin, cpu_begin = time.perf_counter(), time.process_time()
                    received = sum(len(chunk.data) for chunk in stub.StreamSamples(request(size, num)))
                    assert received == size * num
                    wall[size].append((time.perf_counter() - begin) / received)
                    cpu[size].append((time.process_time() - cpu_begin) / received)
    finally:
        ours.send("stop")
        process.join()
    machine = describe_machine()
    print(", ".join(f"{name} {machine[name]}" for name in ("date", "processor", "load before", "grpcio", "protobuf")))
    print(
        "\n| chunk, bytes | MB/s | messages/s | receiver's cpu, s/GB | its 95 % interval |\n|---:|---:|---:|---:|---|"
    )
    for size in sizes:
        speed, cost = 1 / median_estimate(wall[size]).value, median_estimate([1e9 * one for one in cpu[size]])
        between = "too few rounds" if cost.low is None else f"{figure(cost.low)} to {figure(cost.high)}"
        print(f"| {size:,} | {figure(speed / 1e6)} | {figure(speed / size)} | {figure(cost.value)} | {between} |")


def request(size: int, num: int) -> kaem_pb2.SampleRequest:
    return kaem_pb2.SampleRequest(seed=size, count=num)


if __name__ == "__main__":
    main()
