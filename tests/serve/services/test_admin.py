"""The admin service: who reaches it, what it does, and `kaem admin`, which calls it."""

from __future__ import annotations

import asyncio
import json
import stat

import grpc
import pytest
from live_server import PARTIAL, FolderServer, server_process, stub_of
from model_folder import code_of, command, id_of, put, served, states

import kaem
from kaem.client.admin import Admin
from kaem.errors import ArtifactError, ConfigError, RemoteError, RequestError
from kaem.protocol import admin_pb2, admin_pb2_grpc, kaem_pb2
from serve.services.admin_port import AdminPort
from serve.settings import ServeSettings

SampleRequest = kaem_pb2.SampleRequest


def test_the_admin_socket_is_for_its_owner_only_and_the_data_port_is_none(tmp_path):
    path = put(tmp_path / "m.onnx", 1)
    address = tmp_path / "admin.sock"
    with served(path, tmp_path) as (live, _, admin):
        assert stat.S_IMODE(address.lstat().st_mode) == 0o600
        assert admin.list()
        requests = {
            "ListModels": admin_pb2.ListModelsRequest(),
            "ReloadModels": admin_pb2.ReloadModelsRequest(),
            "LoadModel": admin_pb2.LoadModelRequest(name="small"),
            "UnloadModel": admin_pb2.UnloadModelRequest(name="small"),
            "Drain": admin_pb2.DrainRequest(),
        }
        with grpc.insecure_channel(live.address) as data:
            for method, request in requests.items():
                call = getattr(admin_pb2_grpc.AdminStub(data), method)
                assert code_of(lambda call=call, request=request: call(request, timeout=10)) is (
                    grpc.StatusCode.UNIMPLEMENTED
                )
        with stub_of(f"unix:{address}") as stub:
            assert code_of(lambda: stub.Sample(SampleRequest(count=1), timeout=10)) is grpc.StatusCode.UNIMPLEMENTED
        garbage = admin._channel.unary_unary("/kaem.admin.v1.Admin/LoadModel")
        assert code_of(lambda: garbage(b"\xff\xff\xff", timeout=10)) is grpc.StatusCode.INTERNAL
        with pytest.raises(ConfigError, match="a server is listening on"):
            live.run(AdminPort(f"unix:{address}", _no_service()).start())
        with Admin(live.address) as wrong, pytest.raises(RemoteError, match="is no admin socket"):
            wrong.list()
    assert not address.exists()
    with Admin(f"unix:{address}") as gone, pytest.raises(RemoteError, match="no server answers"):
        gone.list()


def _no_service():
    return grpc.method_handlers_generic_handler("none", {})


def test_an_admin_port_of_this_machine_does_as_well(tmp_path):
    path = put(tmp_path / "m.onnx", 1)
    with FolderServer(path, admin="127.0.0.1:0") as live, Admin(live.server.library.admin_address) as admin:
        assert live.server.library.admin_address.startswith("127.0.0.1:")
        assert states(admin.list()) == [("small", 1, "STATE_READY", True)]


@pytest.mark.parametrize(
    "address", ["unix:", "unix:" + "x" * 108, "0.0.0.0:1", "example.com:1", "/run/x", "127.0.0.1:70000", "grpc://::1:1"]
)
def test_an_admin_address_that_others_reach_or_that_is_none_is_refused(address):
    with pytest.raises(ConfigError, match=r"^admin: "):
        ServeSettings(admin=address)
    with pytest.raises(ConfigError):
        Admin(address)


def test_a_socket_that_a_killed_server_left_is_taken_over_and_any_other_file_is_not(tmp_path):
    path = put(tmp_path / "m.onnx", 1)
    address = f"unix:{tmp_path}/admin.sock"
    with server_process(path, "--port", "0", "--max-batch", "4", "--admin", address) as server:
        server.kill()
    assert (tmp_path / "admin.sock").is_socket()
    with served(path, tmp_path) as (_, _, admin):
        assert admin.list()
    (tmp_path / "admin.sock").write_text("precious")
    with pytest.raises(ConfigError, match="is no socket"):
        FolderServer(path, admin=address)
    assert (tmp_path / "admin.sock").read_text() == "precious"
    with pytest.raises(ConfigError, match="cannot listen on"):
        FolderServer(path, admin=f"unix:{tmp_path}/none/admin.sock")


def test_the_command_lists_reloads_unloads_loads_and_drains(tmp_path):
    folder, address = tmp_path / "models", f"unix:{tmp_path}/admin.sock"
    put(folder / "x" / "1" / "model.onnx", 1)

    def admin(name, *words):
        return command("admin", name, address, *words)

    with server_process(folder, "--port", "0", "--max-batch", "4", "--admin", address) as server:
        put(folder / "x" / "2" / "model.onnx", 2)
        assert admin("reload").count("ready") == 2
        known = [json.loads(line) for line in admin("list", "--json").splitlines()]
        assert [(m["name"], m["version"], m["state"], m["is_default"]) for m in known] == [
            ("x", "1", "STATE_READY", False),
            ("x", "2", "STATE_READY", True),
        ]
        assert "unloaded" in admin("unload", "x", "--version", "2")
        with pytest.raises(RequestError, match="no file of version 7 of model 'x'"):
            admin("load", "x", "--version", "7")
        (folder / "x" / "2" / "model.onnx").write_bytes(b"damaged")
        with pytest.raises(ArtifactError, match=str(folder / "x" / "2" / "model.onnx")):
            admin("load", "x")
        assert "version 2: " in admin("list")
        with kaem.connect(server.target) as sampler:
            assert sampler.numerics_id == id_of(folder / "x" / "1" / "model.onnx")
        admin("drain")
        assert server.process.wait(timeout=60) == 0
    with pytest.raises(RemoteError, match="no server answers"):
        admin("list")


def test_nothing_is_changed_while_a_server_shuts_down(tmp_path):
    path = put(tmp_path / "m.onnx", 1)
    with served(path, tmp_path) as (live, stub, admin):
        stream = stub.StreamSamples(SampleRequest(count=10**9), timeout=60, metadata=PARTIAL)
        next(stream)
        drain = live.start(live.server.drain())
        live.run(_closed(live.server.gate))
        with pytest.raises(RemoteError, match="is shutting down"):
            admin.reload()
        assert [m.running_requests for m in admin.list()] == [1]
        stream.cancel()
        drain.result(timeout=30)


async def _closed(gate):
    while gate.closed_because is None:
        await asyncio.sleep(0)
