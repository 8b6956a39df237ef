"""Worker processes of one model: real ones, killed and stopped as it happens."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import psutil
import pytest
from artifacts import write_changed, write_small_artifact
from grpc_health.v1 import health_pb2, health_pb2_grpc
from live_server import LAUNCH, server_process
from onnx import numpy_helper

import kaem
from kaem import noise
from kaem.errors import ArtifactError, BackendError, RequestError
from serve.devices import device_pool as fleets
from serve.devices import worker_assignment, worker_process
from serve.devices.device_pool import DevicePool, pause_s
from serve.devices.devices import parse_devices
from serve.devices.worker_process import Worker
from serve.statuses import RefusedError

Status = health_pb2.HealthCheckResponse
TWO = parse_devices("cpu,cpu")
ROWS = 16


def wait_until(is_true, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def processes_of(server):
    return psutil.Process(server.process.pid).children()


def uniforms(seed, rows=ROWS):
    return noise.uniforms(seed, 0, rows, 5)


@pytest.fixture(scope="module")
def local(artifact_path):
    with kaem.load(artifact_path) as sampler:
        yield sampler


@pytest.fixture(scope="module")
def server(artifact_path):
    with server_process(artifact_path, "--port", "0", "--device", "cpu,cpu", "--max-batch", "32") as server:
        yield server
        workers = processes_of(server)
        assert len(workers) == 2
        server.kill()
        assert not psutil.wait_procs(workers, timeout=30)[1]  # they end with their server, even if it is killed


class Alive:
    """A fleet that is kept alive, and what it said of its devices."""

    def __init__(self, path, devices=TWO):
        self.changes = []
        self._changed = threading.Condition()
        self.device_pool = DevicePool(path, devices, workers=1)
        self.first = [engine.decode(uniforms(0)) for engine in self.device_pool.engines]
        self.device_pool.keep_alive((ROWS,), self._note)

    def _note(self, *change):
        with self._changed:
            self.changes.append(change)
            self._changed.notify_all()

    def wait(self, is_true):
        """Until something holds that changes with the devices."""
        with self._changed:
            assert self._changed.wait_for(is_true, 60)

    def wait_whole(self):
        self.wait(lambda: not self.changes or self.changes[-1][1:] == (True, len(self.device_pool.engines)))

    def pid(self, number):
        return self.device_pool._seats[number].worker.process.pid

    def kill(self, number, how=signal.SIGKILL):
        os.kill(self.pid(number), how)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.device_pool.close()


@pytest.fixture(scope="module")
def alive(artifact_path):
    with pytest.MonkeyPatch.context() as patch, Alive(artifact_path) as alive:
        patch.setattr(fleets, "pause_s", lambda failures: 0.0)
        yield alive


@pytest.fixture
def whole(alive):
    """The same, with all its devices and nothing said."""
    alive.wait_whole()
    alive.changes.clear()
    return alive


def test_processes_behind_one_port_give_the_bytes_of_a_local_sampler_under_its_id(server, local):
    assert len(processes_of(server)) == 2
    with kaem.connect(server.target) as remote:
        assert remote.numerics_id == local.numerics_id
        assert remote.sample(200, 7, 3).tobytes() == local.sample(200, 7, 3).tobytes()
        streamed = b"".join(chunk.images.tobytes() for chunk in remote.stream(20_000, 8))
        given = uniforms(9, 50)
        assert remote.decode(given).tobytes() == local.decode(given).tobytes()
    assert streamed == local.sample(20_000, 8).tobytes()


def _statuses(watch):
    statuses = []
    with contextlib.suppress(grpc.RpcError):
        statuses.extend(message.status for message in watch)
    return statuses


def test_a_worker_killed_in_the_middle_of_a_stream_costs_no_row_and_comes_back(server, local):
    num = 60_000
    victim = processes_of(server)[0]
    with (
        kaem.connect(server.target) as remote,
        grpc.insecure_channel(server.target.removeprefix("grpc://")) as channel,
        ThreadPoolExecutor(1) as pool,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=120)
        seen = pool.submit(_statuses, watch)
        stream = remote.stream(num, 1)
        parts = [next(stream).images]
        victim.kill()
        parts.extend(chunk.images for chunk in stream)
        assert np.concatenate(parts).tobytes() == local.sample(num, 1).tobytes()
        wait_until(lambda: len(processes_of(server)) == 2 and victim not in processes_of(server))
        watch.cancel()
        assert seen.result(timeout=30) == [Status.SERVING]  # all the time


def test_with_every_worker_killed_the_server_says_so_holds_its_streams_and_goes_on(server, local):
    num = 60_000
    with kaem.connect(server.target) as remote, grpc.insecure_channel(server.target.removeprefix("grpc://")) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=120)
        assert next(watch).status == Status.SERVING
        stream = remote.stream(num, 2)
        parts = [next(stream).images]
        for worker in processes_of(server):
            worker.kill()
        assert next(watch).status == Status.NOT_SERVING
        assert next(watch).status == Status.SERVING
        parts.extend(chunk.images for chunk in stream)
        watch.cancel()
    assert np.concatenate(parts).tobytes() == local.sample(num, 2).tobytes()


def test_lost_workers_leave_nothing_behind(whole):
    files = psutil.Process().num_fds()
    for turn, number in enumerate((0, 1), start=1):
        whole.kill(number)
        whole.wait(lambda turn=turn: len(whole.changes) == 2 * turn)
    assert psutil.Process().num_fds() == files
    assert not [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE]


def test_shared_memory_is_as_large_as_the_largest_batch(whole, local):
    worker = whole.device_pool._seats[0].worker
    for seed in range(50):
        whole.device_pool.engines[0].decode(uniforms(seed))
    size = os.fstat(worker._memory).st_size
    assert size <= ROWS * (4 * 5 + local.manifest.image_bytes) + 64


def test_batches_are_right_while_devices_come_and_go(whole, local):
    """The lanes of both devices compute for as long as a third thread kills one worker after the other."""
    expected = {seed: local.decode(uniforms(seed)).tobytes() for seed in range(8)}
    done = threading.Event()

    def compute(engine):
        rounds = 0
        while not done.is_set() or rounds < 50:
            seed = rounds % 8
            assert engine.decode(uniforms(seed)).tobytes() == expected[seed]
            rounds += 1
        return rounds

    with ThreadPoolExecutor(2) as pool:
        lanes = [pool.submit(compute, engine) for engine in whole.device_pool.engines]
        try:
            for number in (0, 1, 1):
                whole.wait_whole()
                before = len(whole.changes)
                whole.kill(number)
                whole.wait(lambda before=before: len(whole.changes) > before)
        finally:
            done.set()
        assert all(lane.result(timeout=120) for lane in lanes)
    whole.wait(lambda: len(whole.changes) == 6)
    assert {name for name, _, _ in whole.changes} == {"cpu:0", "cpu:1"}


def test_uniforms_that_are_none_end_no_worker(whole):
    pids = [whole.pid(number) for number in range(2)]
    with pytest.raises(RequestError, match="a uniform is 7"):
        whole.device_pool.engines[0].decode(np.full((ROWS, 5), 7, np.float32))
    for engine in whole.device_pool.engines:
        engine.decode(uniforms(0))
    assert [whole.pid(number) for number in range(2)] == pids
    assert not whole.changes


def test_an_idle_worker_that_dies_is_noticed_and_replaced(whole):
    whole.kill(1)
    whole.wait(lambda: len(whole.changes) == 2)
    assert whole.changes == [("cpu:1", False, 1), ("cpu:1", True, 2)]


def test_idle_workers_that_are_stopped_are_noticed_and_replaced(whole, local):
    stopped = [whole.pid(number) for number in range(2)]
    for number in range(2):
        whole.kill(number, signal.SIGSTOP)
    whole.wait(lambda: len(whole.changes) == 4)  # nothing asked them for a batch
    whole.wait_whole()
    lost = sorted(device for device, is_up, _ in whole.changes if not is_up)
    assert lost == ["cpu:0", "cpu:1"]
    assert not any(psutil.pid_exists(pid) for pid in stopped)
    assert whole.device_pool.engines[0].decode(uniforms(4)).tobytes() == local.decode(uniforms(4)).tobytes()


def test_a_worker_that_is_stopped_for_a_moment_goes_on(whole, monkeypatch):
    monkeypatch.setattr(worker_process, "_STOPPED_LOOK_S", 0.2)
    monkeypatch.setattr(worker_process, "_STOPPED_LOOKS", 1 << 30)
    pid = whole.pid(0)
    whole.kill(0, signal.SIGSTOP)
    time.sleep(1.0)
    whole.kill(0, signal.SIGCONT)
    whole.device_pool.engines[0].decode(uniforms(5))
    assert (whole.pid(0), whole.changes) == (pid, [])


def test_a_worker_that_hangs_is_replaced(whole, local, monkeypatch):
    monkeypatch.setattr(worker_process, "_PATIENCE_S", 0.05)
    hanging = whole.pid(0)
    whole.kill(0, signal.SIGSTOP)
    assert whole.device_pool.engines[0].decode(uniforms(3)).tobytes() == local.decode(uniforms(3)).tobytes()
    whole.wait(lambda: len(whole.changes) == 2)
    assert whole.pid(0) != hanging
    assert not psutil.pid_exists(hanging)


def test_a_worker_that_is_stopped_before_it_is_ready_is_not_waited_for(artifact_path):
    model = worker_process.ModelMemory(artifact_path, artifact_path.read_bytes())
    worker = Worker(model, TWO[0], 1)
    try:
        worker.process.send_signal(signal.SIGSTOP)
        with pytest.raises(worker_process.WorkerLostError, match="was stopped before it was ready"):
            worker.greet()
    finally:
        worker.end()
        worker.release()
        model.close()


def test_signals_for_the_whole_group_end_no_worker(whole):
    pids = [whole.pid(number) for number in range(2)]
    for pid in pids:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(pid, number)
    for engine in whole.device_pool.engines:
        engine.decode(uniforms(0))
    assert [whole.pid(number) for number in range(2)] == pids
    assert not whole.changes


def test_a_drain_completes_streams_and_ends_the_workers(artifact_path, local):
    with server_process(artifact_path, "--port", "0", "--device", "cpu,cpu", "--max-batch", "32") as server:
        workers = processes_of(server)
        with kaem.connect(server.target) as remote:
            stream = remote.stream(40_000, 3)
            parts = [next(stream).images]
            for one in (psutil.Process(server.process.pid), *workers):  # as systemd does
                one.terminate()
            parts.extend(chunk.images for chunk in stream)
        assert server.process.wait(timeout=60) == 0
        assert not psutil.wait_procs(workers, timeout=10)[1]
    assert np.concatenate(parts).tobytes() == local.sample(40_000, 3).tobytes()


@pytest.fixture(scope="module")
def only_eights(tmp_path_factory):
    """A model whose graph fails for any number of rows but 8."""
    import onnx

    path = write_small_artifact(tmp_path_factory.mktemp("eights") / "eights.onnx")
    model = onnx.load(path)
    (shape,) = [tensor for tensor in model.graph.initializer if tensor.name == "shape"]
    shape.CopyFrom(numpy_helper.from_array(np.array([8, 1, 8, 8], np.int64), "shape"))
    return write_changed(path, model)


def test_a_batch_that_ends_one_worker_after_the_other_is_given_up(only_eights):
    with DevicePool(only_eights, TWO, workers=1) as device_pool:
        engine, other = device_pool.engines
        images = engine.decode(uniforms(0, 8))
        np.testing.assert_array_equal(other.decode(uniforms(0, 8)), images)
        device_pool.keep_alive((8,), lambda *_: None)
        with pytest.raises(BackendError, match=r"a batch of 7 rows ended 3 workers; cpu:\d: its engine failed"):
            engine.decode(uniforms(0, 7))
        np.testing.assert_array_equal(engine.decode(uniforms(0, 8)), images)


def test_before_the_server_serves_a_lost_worker_is_an_error(only_eights):
    failure = pytest.raises(BackendError, match="cpu:1: its engine failed: ONNX Runtime failed on 7 rows")
    with DevicePool(only_eights, TWO, workers=1) as device_pool, failure:
        device_pool.engines[1].decode(uniforms(0, 7))


class Changeling(Worker):
    """A real worker, of which some say that they compute otherwise."""

    otherwise = ()
    started = 0

    def greet(self, *is_wanted):
        super().greet(*is_wanted)
        if Changeling.started in Changeling.otherwise:
            self.numerics_id = "sha256:other"
        Changeling.started += 1


@pytest.fixture
def changeling(monkeypatch):
    monkeypatch.setattr(fleets, "Worker", Changeling)
    monkeypatch.setattr(Changeling, "started", 0)
    return lambda *numbers: monkeypatch.setattr(Changeling, "otherwise", numbers)


def test_processes_that_are_not_wanted_any_more_are_ended_before_they_are_ready(artifact_path):
    before = psutil.Process().children()
    with pytest.raises(BackendError, match="not needed any more"):
        DevicePool(artifact_path, TWO, workers=1, is_wanted=lambda: False)
    assert psutil.Process().children() == before


def test_devices_with_other_numerics_ids_are_refused(artifact_path, changeling):
    before = psutil.Process().children()
    changeling(1)
    with pytest.raises(BackendError, match="cpu:1 computes with numerics id sha256:other, the first") as caught:
        DevicePool(artifact_path, TWO, workers=1)
    assert "its own server" in caught.value.hint
    assert psutil.Process().children() == before


def test_a_device_that_comes_back_with_other_bits_stays_out(artifact_path, changeling, caplog, monkeypatch):
    changeling(2, 3)
    monkeypatch.setattr(fleets, "pause_s", lambda failures: 0.01)
    with caplog.at_level(logging.ERROR), Alive(artifact_path) as alive:
        alive.kill(0)
        alive.wait(lambda: len(alive.changes) == 2)  # the third attempt is an honest one
        assert caplog.text.count("cpu:0 cannot be started again: its numerics id is sha256:other now") == 2
        assert alive.changes == [("cpu:0", False, 1), ("cpu:0", True, 2)]
        seat = alive.device_pool._seats[0]
        seat.firsts = {rows: (uniform, b"other") for rows, (uniform, _) in seat.firsts.items()}
        caplog.clear()
        alive.kill(0)
        wait_until(lambda: "its images of a batch of 16 are others now" in caplog.text)


def test_devices_that_compute_other_bits_under_one_id_are_refused(artifact_path):
    with DevicePool(artifact_path, TWO, workers=1) as device_pool:
        device_pool.engines[0].decode(uniforms(0))
        device_pool.engines[1].decode(uniforms(1))  # as if the same noise had become other images
        with pytest.raises(BackendError, match="cpu:0 and cpu:1 compute other bits under the same numerics id"):
            device_pool.keep_alive((ROWS,), lambda *_: None)


def test_who_waits_for_a_device_that_does_not_come_back_is_refused_after_a_while_or_when_the_server_stops(
    artifact_path, monkeypatch
):
    monkeypatch.setattr(worker_assignment, "_HOLD_S", 0.05)
    monkeypatch.setattr(fleets, "pause_s", lambda failures: 60.0)
    with Alive(artifact_path, TWO[:1]) as alive, ThreadPoolExecutor(1) as pool:
        alive.kill(0)
        with pytest.raises(RefusedError) as caught:
            alive.device_pool.engines[0].decode(uniforms(0))
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert alive.changes == [("cpu:0", False, 0)]
        monkeypatch.setattr(worker_assignment, "_HOLD_S", 30.0)
        waiting = pool.submit(alive.device_pool.engines[0].decode, uniforms(0))
        wait_until(lambda: alive.device_pool._assignment._queue)
        alive.device_pool.give_up()
        with pytest.raises(RefusedError):
            waiting.result(timeout=20)


def test_pauses_grow_from_nothing_to_half_a_minute():
    pauses = [pause_s(failures) for failures in range(40)]
    assert pauses[:4] == [0.0, 0.5, 1.0, 2.0]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 30.0


def test_a_gpu_that_is_not_there_ends_in_one_clear_error_and_nothing_else_computes(artifact_path):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    done = subprocess.run(
        [*LAUNCH, artifact_path, "--port", "0", "--device", "cuda:0,cuda:1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr
    assert "has no CUDAExecutionProvider" in " ".join(done.stderr.split())


def test_an_engine_file_that_is_missing_is_named_where_it_should_be(artifact_path):
    with pytest.raises(ArtifactError, match=re.escape(str(artifact_path.with_suffix(".engine")))) as caught:
        DevicePool(artifact_path, parse_devices("tensorrt:0"))
    assert "--target tensorrt" in caught.value.hint


def test_a_model_that_is_none_is_named_by_its_path(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ArtifactError) as caught:
        DevicePool(tmp_path / "model.onnx", TWO)
    assert caught.value.message.startswith(f"{tmp_path / 'model.onnx'} is not a usable ONNX model")
    with pytest.raises(ArtifactError, match="no model file at"):
        DevicePool(tmp_path / "missing.onnx", TWO)
