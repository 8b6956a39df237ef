"""The server beside PyTriton and Mosec: the same ONNX file, the same uniforms, the same callers, in turns.

    python benchmarks/peer_servers.py                         # makes their environments first, in a cache folder
    python benchmarks/peer_servers.py --rounds 3 --seconds 1 --peers mosec

Every server gets rows of uniforms and answers uint8 images; `callers` threads each wait for their answer before they
ask again (a closed loop), with 1 and with 64 rows a request. All servers run all the time, on the cores that this
process may use, and have their turns one after the other in every round; ratios are medians of the rounds' ratios. The
images of all are compared with those of a local session first. PyTriton and Mosec run with ONNX Runtime's and their own
defaults, batching what waits without a delay, as this server does. Prints Markdown.

PyTriton 0.7 loads its model on CPython 3.11.2 but not on 3.11.7; name one that works with --pytriton-python. A peer
that cannot be installed or does not start is named with its reason and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import grpc
import numpy as np
from serving import served, write_generator

import kaem
from kaem import noise
from kaem.bench.environment import describe_machine
from kaem.protocol import kaem_pb2, kaem_pb2_grpc

_PEERS = Path(__file__).parent / "peers"
_PACKAGES = {"pytriton": "nvidia-pytriton", "mosec": "mosec"}
_MAX_BATCH = 256
_START_S = 90.0
_SETTLE = 3

Ask = Callable[[np.ndarray], bytes]
"""Rows of uniforms, shape (N, D) -> the bytes of N images; for one thread."""


class PeerError(Exception):
    """A peer cannot take part; says why."""


@dataclass
class Contestant:
    """A running server.

    Attributes:
        name: With its version.
        connect: Returns a function that asks it, and must be called by each thread that does.
    """

    name: str
    connect: Callable[[], Ask]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="an artifact with uint8 images; by default one is made")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn")
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64], help="of a request")
    parser.add_argument("--peers", nargs="*", choices=list(_PACKAGES), default=list(_PACKAGES))
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "kaem" / "peers")
    parser.add_argument("--pytriton-python", default="/usr/bin/python3", help="an interpreter that PyTriton works on")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = options.model or write_generator(folder / "generator.onnx")
        server = stack.enter_context(served(path))
        contestants = [Contestant(f"kaem {kaem.__version__}", lambda: _ask_kaem(server.address))]
        for peer in options.peers:
            try:
                interpreter = options.pytriton_python if peer == "pytriton" else sys.executable
                python = environment_of(peer, options.environments, interpreter)
                contestants.append(stack.enter_context(peer_server(peer, python, path, folder)))
            except PeerError as error:
                print(f"{peer} is left out: {error}\n", flush=True)
        with kaem.load(path) as local:
            check_images(local, contestants)
            dim = local.manifest.noise_dim
        facts = describe_machine().items()
        print(f"{options.callers} callers in a closed loop; {', '.join(f'{k} {v}' for k, v in facts)}\n")
        print("| rows a request | server | images/s | of kaem's | p50 ms | p99 ms | p99 of kaem's |")
        print("|---|---|---|---|---|---|---|")
        for rows in options.rows:
            compare(contestants, rows, dim, options)


def compare(contestants: list[Contestant], rows: int, dim: int, options: argparse.Namespace) -> None:
    """Print one row for each contestant."""
    rates: dict[str, list[float]] = {one.name: [] for one in contestants}
    p50s: dict[str, list[float]] = {one.name: [] for one in contestants}
    p99s: dict[str, list[float]] = {one.name: [] for one in contestants}
    for turn in range(options.rounds):
        ordered = contestants[turn % len(contestants) :] + contestants[: turn % len(contestants)]
        for one in ordered:
            rate, latencies = closed_loop(one, rows, dim, options.callers, options.seconds)
            rates[one.name].append(rate)
            p50s[one.name].append(float(np.percentile(latencies, 50)))
            p99s[one.name].append(float(np.percentile(latencies, 99)))
    own = contestants[0].name
    for name, seen in rates.items():
        share = statistics.median(a / b for a, b in zip(seen, rates[own], strict=True))
        late = statistics.median(a / b for a, b in zip(p99s[name], p99s[own], strict=True))
        p50, p99 = statistics.median(p50s[name]), statistics.median(p99s[name])
        print(f"| {rows} | {name} | {statistics.median(seen):.0f} | {share:.2f} | {p50:.2f} | {p99:.2f} | {late:.2f} |")


def closed_loop(one: Contestant, rows: int, dim: int, callers: int, seconds: float) -> tuple[float, list[float]]:
    """Let callers ask for so long; return images a second and the milliseconds of every request."""
    taken: list[list[float]] = [[] for _ in range(callers)]
    errors: list[BaseException] = []
    ready = threading.Barrier(callers + 1)
    is_over = threading.Event()

    def call(number: int) -> None:
        try:
            ask, uniform = one.connect(), noise.uniforms(number, 0, rows, dim)
            for _ in range(_SETTLE):
                ask(uniform)
            ready.wait(timeout=60)
            while not is_over.is_set():
                began = time.perf_counter()
                ask(uniform)
                taken[number].append(1e3 * (time.perf_counter() - began))
        except BaseException as error:
            errors.append(error)
            ready.abort()

    threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    with contextlib.suppress(threading.BrokenBarrierError):
        ready.wait(timeout=60)
    began = time.perf_counter()
    is_over.wait(seconds)
    is_over.set()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    latencies = [ms for part in taken for ms in part]
    return rows * len(latencies) / (time.perf_counter() - began), latencies


def check_images(local: kaem.Sampler, contestants: list[Contestant]) -> None:
    """Every server must answer the images of the same rows, up to rounding.

    Raises:
        SystemExit: One does not.
    """
    uniform = noise.uniforms(7, 0, 5, local.manifest.noise_dim)
    right = local.decode(uniform).astype(int)
    for one in contestants:
        images = np.frombuffer(one.connect()(uniform), np.uint8).reshape(right.shape)
        if np.abs(images.astype(int) - right).max() > 1:
            sys.exit(f"{one.name} answers other images")


def environment_of(peer: str, folder: Path, interpreter: str) -> Path:
    """Return the interpreter of a peer's own environment, which is made if there is none.

    Raises:
        PeerError: It cannot be installed.
    """
    python = folder / peer / "bin" / "python"
    pin = f"onnxruntime=={metadata.version('onnxruntime')}"  # the same kernels for all
    if not python.exists():
        print(f"making an environment for {peer} in {folder / peer}", file=sys.stderr, flush=True)
        done = subprocess.run(
            [interpreter, "-m", "venv", str(folder / peer)], check=False, capture_output=True, text=True
        )
        if done.returncode:
            raise PeerError(f"{interpreter} cannot make an environment: {done.stderr.strip()[-300:]}")
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", _PACKAGES[peer], pin]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise PeerError(f"pip cannot install {_PACKAGES[peer]}: {done.stderr.strip()[-300:]}")
    return python


@contextlib.contextmanager
def peer_server(peer: str, python: Path, model: Path, folder: Path) -> Iterator[Contestant]:
    """Run a peer and wait until it answers.

    Raises:
        PeerError: It does not.
    """
    port = _free_ports(3)
    if peer == "pytriton":
        words = [str(_PEERS / "pytriton_server.py"), str(model), str(port), str(_MAX_BATCH)]
    else:
        words = [str(_PEERS / "mosec_server.py"), "--address", "127.0.0.1", "--port", str(port), "--timeout", "60000"]
    ask = _ask_pytriton if peer == "pytriton" else _ask_mosec
    environment = {
        **{key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "OMP_NUM_THREADS")},
        "ORT_DISABLE_TELEMETRY": "1",
        "PEER_MODEL": str(model),
        "PEER_MAX_BATCH": str(_MAX_BATCH),
        "PATH": f"{python.parent}:{os.environ['PATH']}",
    }
    log = folder / f"{peer}.log"
    with log.open("w") as lines:
        process = subprocess.Popen([str(python), *words], stdout=lines, stderr=lines, env=environment)
    try:
        with kaem.load(model) as sampler:
            dim = sampler.manifest.noise_dim
        deadline = time.monotonic() + _START_S
        while True:
            try:
                ask(port)(noise.uniforms(0, 0, 1, dim))
                break
            except Exception as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise PeerError(f"it does not start: {log.read_text()[-600:].strip() or error}") from None
                time.sleep(0.5)
        command = [str(python), "-m", "pip", "show", _PACKAGES[peer]]
        said = subprocess.run(command, check=False, capture_output=True, text=True).stdout
        version = next((line.split()[1] for line in said.splitlines() if line.startswith("Version:")), "?")
        yield Contestant(f"{peer} {version}", lambda: ask(port))
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
        process.kill()
        process.wait()


def _ask_kaem(address: str) -> Ask:
    channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
    stub = kaem_pb2_grpc.SamplerStub(channel)

    def ask(uniform: np.ndarray) -> bytes:
        request = kaem_pb2.DecodeRequest(count=len(uniform), uniform=uniform.tobytes())
        return stub.Decode(request, timeout=60).data

    return ask


def _ask_pytriton(port: int) -> Ask:
    from tritonclient import grpc as triton

    client = triton.InferenceServerClient(f"127.0.0.1:{port}")
    wanted = [triton.InferRequestedOutput("image")]

    def ask(uniform: np.ndarray) -> bytes:
        given = triton.InferInput("uniform", list(uniform.shape), "FP32")
        given.set_data_from_numpy(uniform)
        answer = client.infer("model", [given], outputs=wanted, client_timeout=60)
        return answer.get_response().raw_output_contents[0]

    return ask


def _ask_mosec(port: int) -> Ask:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(uniform: np.ndarray) -> bytes:
        connection.request("POST", "/inference", uniform.tobytes())
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise OSError(f"HTTP {answer.status}: {content[:200]!r}")
        return content

    return ask


def _free_ports(num: int) -> int:
    """Return the first of `num` neighbouring free ports."""
    while True:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError, OverflowError):
            first = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            for port in range(first + 1, first + num):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return first


if __name__ == "__main__":
    main()
