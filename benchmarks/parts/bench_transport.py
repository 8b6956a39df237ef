"""What gRPC carries between two processes on this machine, by the size of a chunk.

    python -m pytest benchmarks/parts/bench_transport.py

`chunk_server.py` answers over a socket of the loopback interface with chunks of the protocol that hold bytes and no
images, so nothing but the transport is measured. Times are on the clock, since two processes take part; the processor
time of the receiving one, which is the bottleneck, stands beside them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from metered import Metered

from kaem.protocol import kaem_pb2, kaem_pb2_grpc

_IMAGE = 3136
_SIZES = (_IMAGE, 65_536, 262_144, 1_048_576, 3_145_728)
_CARRIED = 16 << 20
_MOST_MESSAGES = 1000


@pytest.fixture(scope="module")
def stub():
    server = Path(__file__).with_name("chunk_server.py")
    with subprocess.Popen(
        [sys.executable, server], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        with grpc.insecure_channel(f"127.0.0.1:{process.stdout.readline().strip()}") as channel:
            yield kaem_pb2_grpc.SamplerStub(channel)
        process.communicate(timeout=30)


@pytest.mark.parametrize("size", _SIZES)
def bench_stream(benchmark, amount, stub, size):
    """One stream of many chunks."""
    messages = min(_MOST_MESSAGES, _CARRIED // size)
    request = kaem_pb2.SampleRequest(seed=size, count=messages)
    receive = Metered(lambda: sum(len(chunk.data) for chunk in stub.StreamSamples(request)))
    benchmark.group, benchmark.name = "a stream", f"{messages} chunks of {size:,} bytes"
    assert benchmark(receive) == messages * size
    benchmark.extra_info["receiver's cpu, s/GB"] = 1e9 * receive.seconds / (messages * size)
    amount(messages * size / 1e6, "MB")
    amount(messages, "messages")


@pytest.mark.parametrize("size", [_IMAGE, 1_048_576])
def bench_call(benchmark, amount, stub, size):
    """A call of its own for every chunk, one after the other."""
    request = kaem_pb2.SampleRequest(seed=size, count=1)
    receive = Metered(lambda: len(stub.Sample(request).data))
    benchmark.group, benchmark.name = "a call", f"{size:,} bytes"
    assert benchmark(receive) == size
    benchmark.extra_info["receiver's cpu, s/GB"] = 1e9 * receive.seconds / size
    amount(size / 1e6, "MB")
    amount(1, "messages")
