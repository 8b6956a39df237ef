"""A server process of a folder: a new model takes over while clients are answered, a damaged one changes nothing."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
from artifacts import write_small_artifact
from live_server import server_process, stub_of
from model_folder import bytes_of, id_of, put

from kaem.client.admin import Admin
from kaem.protocol import admin_pb2, admin_pb2_grpc
from kaem.protocol.kaem_pb2 import SampleRequest


def test_reloads_under_load_fail_no_call_and_a_damaged_file_changes_nothing(tmp_path, saw):
    path = put(tmp_path / "models" / "x.onnx", 0)
    socket = f"unix:{tmp_path}/admin"
    known = {id_of(path): bytes_of(path, 300, 2)}
    is_over, met = threading.Event(), []

    def stream(stub):
        while not is_over.is_set():
            chunks = list(stub.StreamSamples(SampleRequest(seed=2, count=300, max_chunk_rows=7), timeout=60))
            [numerics_id] = {chunk.numerics_id for chunk in chunks}
            assert b"".join(chunk.data for chunk in chunks) == known[numerics_id]
            met.append(numerics_id)

    with (
        server_process(path.parent, "--port", "0", "--admin", socket) as server,
        stub_of(server.target.removeprefix("grpc://")) as stub,
        ThreadPoolExecutor(3) as pool,
    ):
        admin = Admin(socket)
        callers = [pool.submit(stream, stub) for _ in range(3)]
        try:
            for seed in (1, 2):
                new = write_small_artifact(tmp_path / f"{seed}.onnx", seed=seed)
                known[id_of(new)] = bytes_of(new, 300, 2)
                new.rename(path)
                admin.reload()
                assert stub.Sample(SampleRequest(count=1), timeout=60).numerics_id == id_of(path)
            last, whole = id_of(path), path.read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
            with grpc.insecure_channel(socket) as channel:
                code = None
                try:
                    admin_pb2_grpc.AdminStub(channel).ReloadModels(admin_pb2.ReloadModelsRequest(), timeout=60)
                except grpc.RpcError as error:
                    code = error.code()
            assert code is grpc.StatusCode.FAILED_PRECONDITION
            assert stub.Sample(SampleRequest(count=1), timeout=60).numerics_id == last
        finally:
            is_over.set()
        for caller in callers:
            caller.result(timeout=120)
        admin.close()
    assert set(met) <= set(known)
    saw(
        f"two reloads beside {len(met)} streams of {len(set(met))} models: no error, each whole and of one model; "
        "a damaged file FAILED_PRECONDITION to the admin, the last model still served"
    )
