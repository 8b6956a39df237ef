"""What serving costs: a server against the same model called in this process, and small requests beside a huge one.

    python benchmarks/serving.py                    # a generator of 30 MFLOP, uint8 images of 3x32x32
    python benchmarks/serving.py --model model.onnx --rounds 20

Everything runs on the cores this process may use: the server, its clients, and the local sampler in turn. Turns are
short and alternate, so that a busy machine slows all alike, and ratios are medians of the rounds' ratios. Processor
time per image is reported beside wall time: it is what a busy machine distorts least. Prints Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.experimental
import numpy as np
import psutil

import kaem
from kaem.bench.environment import describe_machine
from kaem.protocol import kaem_pb2, kaem_pb2_grpc

_BULK = 1_000_000
_CHUNK_ROWS = 64  # of a stream: images are counted chunk by chunk, so large ones would blur a short turn
_SETTLE_S = 0.5
_PARTIAL = (("kaem-partial", "true"),)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="an artifact; by default one with random weights is made")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    parser.add_argument("--streams", type=int, default=4, help="that fill the batches")
    parser.add_argument("--callers", type=int, default=64, help="that ask for one sample each")
    parser.add_argument("--requests", type=int, default=300, help="of one sample beside the bulk job")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.model or write_generator(Path(folder) / "generator.onnx")
        with served(path) as server, kaem.load(path) as local:
            print(f"serving, {datetime.date.today()}, {', '.join(f'{k} {v}' for k, v in describe_machine().items())}\n")
            print(f"model {local.manifest.name}, {local.manifest.image_type} {local.manifest.image_shape}; ", end="")
            print(f"milliseconds of a batch by its rows, as the server measured them: {server.table}\n")
            throughput(local, server, options)
            first_chunk(local, server, options.rounds)
            beside_bulk(server, options.requests)


@dataclass
class Served:
    """A server process, its addresses, and the costs it has measured."""

    process: psutil.Process
    address: str
    table: dict[int, float]
    http_address: str = ""

    def processor_s(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system


@contextlib.contextmanager
def served(path: Path, *options: str) -> Iterator[Served]:
    command = [sys.executable, "-m", "cli.main", "serve", str(path), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            address = process.stdout.readline().strip().removeprefix("grpc://")
            http_address = line = ""
            while "milliseconds of a batch" not in line:
                line = next(process.stderr)
                http_address = line.rpartition(" at ")[2].strip() if "/healthz" in line else http_address
            table = {int(rows): float(ms) for rows, ms in re.findall(r"(\d+): ([\d.]+)", line.partition("rows: ")[2])}
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield Served(psutil.Process(process.pid), address, table, http_address)
        finally:
            process.terminate()


@contextlib.contextmanager
def stub_of(server: Served) -> Iterator[kaem_pb2_grpc.SamplerStub]:
    with grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield kaem_pb2_grpc.SamplerStub(channel)


class Load:
    """Clients that keep a server's batches full until told to stop.

    Args:
        server: Whom they ask.
        streams: How many read one endless stream each.
        callers: How many ask for one sample after the other.
    """

    def __init__(self, server: Served, *, streams: int = 0, callers: int = 0) -> None:
        self.images = 0
        self._is_over = False
        self._lock = threading.Lock()
        targets = [self._stream] * streams + [self._call] * callers
        self._threads = [
            threading.Thread(target=target, args=(server, number)) for number, target in enumerate(targets)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        while not self.images:
            time.sleep(0.01)
        time.sleep(_SETTLE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        for thread in self._threads:
            thread.join()

    def _stream(self, server: Served, seed: int) -> None:
        with stub_of(server) as stub:
            request = kaem_pb2.SampleRequest(seed=seed, count=1 << 60, max_chunk_rows=_CHUNK_ROWS)
            call = stub.StreamSamples(request, metadata=_PARTIAL)
            for chunk in call:
                self._count(chunk.count)
                if self._is_over:
                    break
            call.cancel()

    def _call(self, server: Served, seed: int) -> None:
        with stub_of(server) as stub:
            while not self._is_over:
                self._count(stub.Sample(kaem_pb2.SampleRequest(seed=seed, count=1)).count)

    def _count(self, images: int) -> None:
        with self._lock:
            self.images += images


def throughput(local: kaem.Sampler, server: Served, options: argparse.Namespace) -> None:
    """Images per second of wall time and milliseconds of processor time per image, in turns."""
    ways = {
        f"{options.streams} streams": {"streams": options.streams},
        f"{options.callers} callers, one sample each": {"callers": options.callers},
    }
    here = psutil.Process()
    rates: dict[str, list[float]] = {"local": [], **{way: [] for way in ways}}
    costs: dict[str, list[float]] = {name: [] for name in rates}
    rows = 2 * max(server.table)
    for _ in range(options.rounds):
        began, before, images = time.perf_counter(), sum(here.cpu_times()[:2]), 0
        while time.perf_counter() - began < options.seconds:
            images += len(local.sample(rows, 0, images))
        rates["local"].append(images / (time.perf_counter() - began))
        costs["local"].append(1e3 * (sum(here.cpu_times()[:2]) - before) / images)
        for way, load in ways.items():
            with Load(server, **load) as clients:
                began, before, images = time.perf_counter(), server.processor_s(), clients.images
                time.sleep(options.seconds)
                images = clients.images - images
                rates[way].append(images / (time.perf_counter() - began))
                costs[way].append(1e3 * (server.processor_s() - before) / images)
    print("| way | images/s | of local | processor ms an image, without clients | local's, relative |")
    print("|---|---|---|---|---|")
    for way, seen in rates.items():
        share = statistics.median(a / b for a, b in zip(seen, rates["local"], strict=True))
        saved = statistics.median(b / a for a, b in zip(costs[way], costs["local"], strict=True))
        rate, cost = statistics.median(seen), statistics.median(costs[way])
        print(f"| {way} | {rate:.0f} | {share:.2f} | {cost:.3f} | {saved:.2f} |")
    print()


def first_chunk(local: kaem.Sampler, server: Served, rounds: int) -> None:
    """One sample and one chunk of an idle server, the same computed here, and the bare transport, in turns.

    The client reads in the thread that asks (`SingleThreadedUnaryStream`); with its default, gRPC's Python client adds
    two hops between threads to every first message. The second table shows what that costs.
    """
    row_bytes = local.manifest.image_bytes
    print(
        "| rows | local ms p1, p50 | bare gRPC ms p1, p50 | first chunk ms p1, p50 | less local p50 | less both p50 |"
    )
    print("|---|---|---|---|---|---|")
    with bare(row_bytes) as address, direct_stub(address) as transport, direct_stub(server.address) as stub:
        for rows in (1, 16):
            here, wire, there = [], [], []
            for number in range(20 * rounds):
                request = kaem_pb2.SampleRequest(count=rows, start_index=number)
                here.append(_timed_ms(lambda rows=rows, at=number: local.sample(rows, 0, at)))
                wire.append(_first_ms(transport, request))
                there.append(_first_ms(stub, request))
            cells = (f"{np.percentile(seen, 1):.2f} {np.percentile(seen, 50):.2f}" for seen in (here, wire, there))
            beyond = np.percentile(there, 50) - np.percentile(here, 50)
            print(f"| {rows} | {' | '.join(cells)} | {beyond:.2f} | {beyond - np.percentile(wire, 50):.2f} |")
    print("\n| client | first chunk of one row, ms p1, p50 | of the first, median of pairs |")
    print("|---|---|---|")
    with direct_stub(server.address) as direct, stub_of(server) as default:
        seen = {"reads in the asking thread": [], "gRPC's default": []}
        for number in range(20 * rounds):
            for ask, taken in zip((direct, default), seen.values(), strict=True):
                taken.append(_first_ms(ask, kaem_pb2.SampleRequest(count=1, start_index=number)))
        first = next(iter(seen.values()))
        for name, taken in seen.items():
            ratio = statistics.median(a / b for a, b in zip(taken, first, strict=True))
            print(f"| {name} | {np.percentile(taken, 1):.2f} {np.percentile(taken, 50):.2f} | {ratio:.2f} |")
    print()


def _first_ms(stub: kaem_pb2_grpc.SamplerStub, request: kaem_pb2.SampleRequest) -> float:
    began = time.perf_counter()
    call = stub.StreamSamples(request)
    next(call)
    taken = 1e3 * (time.perf_counter() - began)
    for _ in call:  # to its end, so that nothing is cancelled while the next one is timed
        pass
    return taken


@contextlib.contextmanager
def direct_stub(address: str) -> Iterator[kaem_pb2_grpc.SamplerStub]:
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        (grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1),
    ]
    with grpc.insecure_channel(address, options=options) as channel:
        yield kaem_pb2_grpc.SamplerStub(channel)


@contextlib.contextmanager
def bare(row_bytes: int) -> Iterator[str]:
    script = Path(__file__).parent / "peers" / "bare_server.py"
    with subprocess.Popen([sys.executable, str(script), str(row_bytes)], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def beside_bulk(server: Served, requests: int) -> None:
    """Latency of one sample beside a job of a million, in batches of that job."""
    with stub_of(server) as stub, stub_of(server) as bulk_stub:
        alone = [
            _timed_ms(lambda at=at: stub.Sample(kaem_pb2.SampleRequest(count=1, start_index=at))) for at in range(50)
        ]
        bulk = bulk_stub.StreamSamples(kaem_pb2.SampleRequest(seed=1, count=_BULK), metadata=_PARTIAL)
        images, is_over = [next(bulk).count], threading.Event()

        def read() -> None:
            for chunk in bulk:
                images.append(chunk.count)
                if is_over.is_set():
                    return

        reader = threading.Thread(target=read)
        reader.start()
        began, before = time.perf_counter(), sum(images)
        beside = [
            _timed_ms(lambda at=at: stub.Sample(kaem_pb2.SampleRequest(count=1, start_index=at)))
            for at in range(requests)
        ]
        rate = (sum(images) - before) / (time.perf_counter() - began)
        is_over.set()
        reader.join()
        bulk.cancel()
    batch_ms = 1e3 * max(server.table) / rate
    p50, p99 = np.percentile(beside, (50, 99))
    print(f"one sample, idle server: p50 {statistics.median(alone):.2f} ms")
    print(
        f"one sample beside a job of {_BULK}: p50 {p50:.1f} ms, p99 {p99:.1f} ms, {requests} requests; the job runs at "
        f"{rate:.0f} images/s, so {batch_ms:.1f} ms a batch: "
        f"p50 is {p50 / batch_ms:.2f}, p99 {p99 / batch_ms:.2f} of it"
    )


def _timed_ms(call: object) -> float:
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)


def write_generator(path: Path, *, noise_dim: int = 100) -> Path:
    """Write a convolutional generator with random weights: 100 -> 256x4x4 -> 128x8x8 -> 64x16x16 -> 3x32x32, uint8."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from kaem.artifact import MANIFEST_KEY, Manifest, fingerprint, write_manifest

    random = np.random.default_rng(0)
    channels = (256, 128, 64, 3)
    weights = {"first": random.normal(size=(noise_dim, 256 * 16)) / 10, "scale": np.array(255.0)}
    nodes = [
        helper.make_node("Identity", ["uniform"], ["latent"]),
        helper.make_node("MatMul", ["latent", "first"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["x0"]),
    ]
    for layer, (before, after) in enumerate(itertools.pairwise(channels)):
        weights[f"w{layer}"] = random.normal(size=(before, after, 4, 4)) / np.sqrt(4 * before)
        nodes.append(helper.make_node("Relu", [f"x{layer}"], [f"r{layer}"]))
        inputs, outputs = [f"r{layer}", f"w{layer}"], [f"x{layer + 1}"]
        nodes.append(
            helper.make_node("ConvTranspose", inputs, outputs, kernel_shape=[4, 4], strides=[2, 2], pads=[1, 1, 1, 1])
        )
    nodes += [
        helper.make_node("Sigmoid", ["x3"], ["unit"]),
        helper.make_node("Mul", ["unit", "scale"], ["scaled"]),
        helper.make_node("Round", ["scaled"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["image"], to=TensorProto.UINT8),
    ]
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    initializers.append(numpy_helper.from_array(np.array([-1, 256, 4, 4]), "shape"))
    graph = helper.make_graph(
        nodes,
        "generator",
        [helper.make_tensor_value_info("uniform", TensorProto.FLOAT, ["N", noise_dim])],
        [
            helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 3, 32, 32]),
            helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["N", noise_dim]),
        ],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    manifest = Manifest(
        family="kaem",
        name="random-generator",
        noise_dim=noise_dim,
        latent_dim=noise_dim,
        image_shape=(3, 32, 32),
        image_type="uint8",
        graph_fingerprint=fingerprint(model.SerializeToString(deterministic=True)),
    )
    helper.set_model_props(model, {MANIFEST_KEY: write_manifest(manifest)})
    path.write_bytes(model.SerializeToString())
    return path


if __name__ == "__main__":
    main()
