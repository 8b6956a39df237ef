"""Models and versions on a real server: named, replaced under load, corrupt, removed."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import threading
import urllib.request
import weakref
from concurrent import futures

import grpc
import pytest
from artifacts import write_small_artifact
from grpc_health.v1 import health_pb2
from live_server import LAUNCH, PARTIAL, FolderServer, stub_of
from model_folder import bytes_of, code_of, command, id_of, put, served, states, watching

import kaem
from kaem.errors import ArtifactError, RequestError
from kaem.protocol import admin_pb2, admin_pb2_grpc, kaem_pb2

SampleRequest, Status = kaem_pb2.SampleRequest, health_pb2.HealthCheckResponse


def metrics_of(live):
    with urllib.request.urlopen(f"{live.server.http_address}/metrics") as answer:  # noqa: S310  # our own address
        return answer.read().decode().splitlines()


def test_a_request_names_a_model_and_a_version_and_gets_the_newest_otherwise(tmp_path):
    folder = tmp_path / "models"
    paths = {
        ("digits", 1): put(folder / "digits" / "1" / "model.onnx", 1),
        ("digits", 10): put(folder / "digits" / "10" / "model.onnx", 2),
        ("faces", 1): put(folder / "faces.onnx", 3),
    }
    with FolderServer(folder) as live, stub_of(live.address) as stub:
        for (name, version), path in paths.items():
            with kaem.connect(live.target, model=name, version=version) as sampler:
                assert sampler.numerics_id == id_of(path)
                assert sampler.sample(3, 7).tobytes() == bytes_of(path, 3, 7)
                assert b"".join(c.images.tobytes() for c in sampler.stream(50, 1)) == bytes_of(path, 50, 1)
        newest = stub.GetModel(kaem_pb2.GetModelRequest(model="digits"), timeout=10)
        assert (newest.version, newest.numerics_id) == (10, id_of(paths["digits", 10]))
        chunk = stub.Sample(SampleRequest(model="digits", version=1, count=2), timeout=10)
        assert chunk.numerics_id == id_of(paths["digits", 1])
        for request in (SampleRequest(count=1), SampleRequest(model="digits", version=2, count=1)):
            assert code_of(lambda request=request: stub.Sample(request, timeout=10)) is grpc.StatusCode.NOT_FOUND
        with pytest.raises(RequestError, match="no version 3 of model 'digits'"):
            kaem.connect(live.target, model="digits", version=3)
        with pytest.raises(RequestError, match="version is -1"):
            kaem.connect(live.target, version=-1)
        out = str(tmp_path / "out.npy")
        command("sample", live.target, "--model", "digits", "--model-version", "1", "-n", "4", "-o", out)
        assert (tmp_path / "out.npy").read_bytes().endswith(bytes_of(paths["digits", 1], 4, 0))


def test_a_replaced_model_completes_its_streams_byte_for_byte_and_is_released(tmp_path):
    folder = tmp_path / "models"
    path = put(folder / "x.onnx", 1)
    old_id, old_bytes = id_of(path), bytes_of(path, 5000, 3)
    with served(folder, tmp_path, http_port=0) as (live, stub, admin):
        [entry] = live.server.library.catalog
        engine = weakref.ref(entry.running.opened.engines[0])
        scheduler = weakref.ref(live.scheduler)
        del entry
        lanes = [thread for thread in threading.enumerate() if thread.name.startswith("kaem-batch")]
        stream = stub.StreamSamples(SampleRequest(seed=3, count=5000, max_chunk_rows=4), timeout=60, metadata=PARTIAL)
        first = next(stream)
        put(path, 2)
        after = admin.reload()
        assert states(after) == [("x", 1, "STATE_READY", True), ("x", 1, "STATE_DRAINING", False)]
        assert [m.running_requests for m in after] == [0, 1]
        assert "kaem_models_draining 1.0" in metrics_of(live)
        new_id = id_of(path)
        assert [m.numerics_id for m in after] == [new_id, old_id]
        chunk = stub.Sample(SampleRequest(seed=3, count=5), timeout=10)
        assert (chunk.numerics_id, chunk.data) == (new_id, bytes_of(path, 5, 3))
        wants_old = SampleRequest(count=1, expected_numerics_id=old_id)
        assert code_of(lambda: stub.Sample(wants_old, timeout=10)) is grpc.StatusCode.FAILED_PRECONDITION
        chunks = [first, *stream]
        assert {chunk.numerics_id for chunk in chunks} == {old_id}
        assert b"".join(chunk.data for chunk in chunks) == old_bytes
        live.drained()
        assert "kaem_models_draining 0.0" in metrics_of(live)
        assert states(admin.list()) == [("x", 1, "STATE_READY", True)]
        assert not any(thread.is_alive() for thread in lanes)
        gc.collect()
        assert (engine(), scheduler()) == (None, None)


def test_hot_reload_under_load_fails_no_call_and_every_reply_names_one_model(tmp_path):
    folder = tmp_path / "models"
    path = put(folder / "x.onnx", 0)
    known = {id_of(path): (bytes_of(path, 40, 1), bytes_of(path, 300, 2))}
    is_over, met = threading.Event(), set()

    def check(chunks, stream):
        [numerics_id] = {chunk.numerics_id for chunk in chunks}
        met.add(numerics_id)
        assert b"".join(chunk.data for chunk in chunks) == known[numerics_id][stream]

    def ask_for_one(stub):
        for at in range(10**6):
            if is_over.is_set():
                return at
            index = at % 40
            chunk = stub.Sample(SampleRequest(seed=1, start_index=index, count=1), timeout=30)
            met.add(chunk.numerics_id)
            assert chunk.data == known[chunk.numerics_id][0][index * 256 : index * 256 + 256]
        return None

    def stream(stub):
        for at in range(10**6):
            if is_over.is_set():
                return at
            check(list(stub.StreamSamples(SampleRequest(seed=2, count=300, max_chunk_rows=7), timeout=30)), 1)
        return None

    with served(folder, tmp_path) as (live, stub, admin), futures.ThreadPoolExecutor(4) as pool:
        try:
            callers = [pool.submit(ask_for_one, stub) for _ in range(2)] + [pool.submit(stream, stub) for _ in range(2)]
            for seed in (1, 2, 3):
                new = write_small_artifact(tmp_path / f"{seed}.onnx", seed=seed)
                known[id_of(new)] = (bytes_of(new, 40, 1), bytes_of(new, 300, 2))
                new.rename(path)
                admin.reload()
                numerics_id = next(m.numerics_id for m in admin.list() if m.is_default)
                check([stub.Sample(SampleRequest(seed=1, count=40), timeout=30)], 0)
                assert numerics_id in met
        finally:
            is_over.set()
        assert all(caller.result(timeout=60) >= 1 for caller in callers)
        live.drained()
        assert len(met) >= 3
        assert {code for method, code in live.server.observer.ended if "Sampler" in method} == {"OK"}


def _flipped(content, other):
    """A model with one bit of its weights flipped, which ONNX Runtime opens without a word."""
    place = next(place for place in range(len(content)) if content[place] != other[place])
    return content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :]


DAMAGES = {
    "empty": lambda whole, other: b"",
    "text": lambda whole, other: b"not a model",
    "half": lambda whole, other: whole[: len(whole) // 2],
    "flipped": _flipped,
    "mixed": lambda whole, other: other[: len(whole) // 2] + whole[len(whole) // 2 :],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_a_corrupt_new_file_keeps_the_old_model_and_says_why(tmp_path, caplog, damage):
    path = put(tmp_path / "models" / "x.onnx", 1)
    content = damage(path.read_bytes(), put(tmp_path / "y.onnx", 2).read_bytes())
    with served(path.parent, tmp_path) as (live, stub, admin):
        before = stub.Sample(SampleRequest(count=3), timeout=10)
        path.write_bytes(content)
        reload = admin_pb2_grpc.AdminStub(admin._channel).ReloadModels
        code = code_of(lambda: reload(admin_pb2.ReloadModelsRequest(), timeout=30))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        with pytest.raises(ArtifactError) as caught:
            admin.load("x")
        assert str(path) in caught.value.message
        [model] = admin.list()
        assert (model.state, str(path) in model.error) == (admin_pb2.STATE_READY, True)
        assert stub.Sample(SampleRequest(count=3), timeout=10) == before
        assert live.server.observer.failed_loads == [("x", 1)] * 2
        assert f"model 'x' version 1 is not loaded: {caught.value.message}" in caplog.text
        put(path, 1)
        assert not admin.reload()[0].error


def test_health_and_metrics_follow_what_is_loaded(tmp_path):
    folder = tmp_path / "models"
    put(folder / "x" / "1" / "model.onnx", 1)
    path = put(folder / "y.onnx", 2)
    with served(folder, tmp_path, http_port=0) as (live, stub, admin):

        def infos():
            return [line for line in metrics_of(live) if line.startswith("kaem_model_info{")]

        assert len(infos()) == 2
        with watching(live, "kaem.model/y") as watch, watching(live, "") as server:
            assert (next(watch).status, next(server).status) == (Status.SERVING, Status.SERVING)
            path.unlink()
            admin.reload()
            assert next(watch).status == Status.SERVICE_UNKNOWN
            assert code_of(lambda: stub.Sample(SampleRequest(model="y", count=1), timeout=10)) is (
                grpc.StatusCode.NOT_FOUND
            )
            [info] = infos()
            assert 'model="x"' in info
            assert 'version="1"' in info
            put(path, 2)
            admin.reload()
            assert next(watch).status == Status.SERVING
            path.write_bytes(b"damaged")
            with pytest.raises(ArtifactError):
                admin.reload()
            assert len(infos()) == 2
            lines = metrics_of(live)
            assert 'kaem_model_loads_total{model="y",outcome="failed"} 1.0' in lines
            assert 'kaem_model_loads_total{model="y",outcome="loaded"} 2.0' in lines


def test_polling_finds_new_models_by_itself(tmp_path):
    folder = tmp_path / "models"
    put(folder / "x.onnx", 1)
    with FolderServer(folder, poll_models=0.01) as live, watching(live, "kaem.model/y") as watch:
        assert next(watch).status == Status.SERVICE_UNKNOWN
        put(folder / "y" / "3" / "model.onnx", 2)
        assert next(watch).status == Status.SERVING
        with kaem.connect(live.target, model="y") as sampler:
            assert sampler.numerics_id == id_of(folder / "y" / "3" / "model.onnx")


@pytest.mark.parametrize("device", [None, "cpu,cpu"])
def test_a_file_that_is_overwritten_in_place_is_served_whole_or_not_at_all(tmp_path, device):
    """By polls and by reloads, whatever moment of the writing they meet."""
    path = put(tmp_path / "models" / "x.onnx", 1)
    versions = [path.read_bytes(), put(tmp_path / "y.onnx", 2).read_bytes()]
    known = {id_of(p): bytes_of(p, 2, 5) for p in (path, tmp_path / "y.onnx")}
    reload = admin_pb2.ReloadModelsRequest()
    with served(path.parent, tmp_path, poll_models=0.02, device=device) as (_, stub, admin):
        for new in (*versions[::-1], versions[1]):
            with path.open("r+b") as file:
                for place in range(0, len(new), len(new) // 6):
                    file.write(new[place : place + len(new) // 6])
                    file.flush()
                    with contextlib.suppress(grpc.RpcError):
                        admin_pb2_grpc.AdminStub(admin._channel).ReloadModels(reload, timeout=60)
                    chunk = stub.Sample(SampleRequest(count=2, seed=5), timeout=60)
                    assert chunk.data == known[chunk.numerics_id]
        admin.reload()
        assert stub.Sample(SampleRequest(count=1), timeout=60).numerics_id == id_of(path)


def test_one_file_is_version_1_under_its_own_name_or_another_and_can_be_replaced(tmp_path):
    path = put(tmp_path / "m.onnx", 1)
    for name in (None, "other"):
        with served(path, tmp_path, **({"name": name} if name else {})) as (live, stub, admin):
            [model] = admin.list()
            assert (model.name, model.version, model.is_default) == (name or "small", 1, True)
            put(path, 5)
            [model] = [m for m in admin.load(name or "small") if m.state == admin_pb2.STATE_READY]
            assert model.numerics_id == id_of(path) == stub.Sample(SampleRequest(count=1), timeout=10).numerics_id
            live.drained()
            admin.unload(name or "small", 1)
            assert states(admin.list())[0][2] == "STATE_UNLOADED"
        put(path, 1)


def test_a_corrupt_model_refuses_the_start_and_is_named(tmp_path):
    folder = tmp_path / "models"
    put(folder / "good.onnx", 1)
    bad = folder / "bad" / "2" / "model.onnx"
    bad.parent.mkdir(parents=True)
    bad.write_bytes(b"\0" * 100)
    done = subprocess.run(
        [*LAUNCH, str(folder), "--port", "0", "--max-batch", "2"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert str(bad) in done.stderr
    assert "Traceback" not in done.stderr
