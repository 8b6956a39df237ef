"""Folders of small real models, and what tests of servers of them have in common."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from artifacts import write_small_artifact
from grpc_health.v1 import health_pb2, health_pb2_grpc
from live_server import FolderServer, stub_of
from typer.testing import CliRunner

import kaem
from cli.main import app
from kaem.client.admin import Admin
from kaem.protocol import admin_pb2


def put(path: Path, seed: int) -> Path:
    """Write an artifact and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_small_artifact(path.with_suffix(".part"), seed=seed).rename(path)
    return path


def bytes_of(path: Path, num: int, seed: int, start: int = 0) -> bytes:
    with kaem.load(path, workers=1) as sampler:
        return sampler.sample(num, seed, start).tobytes()


def id_of(path: Path) -> str:
    with kaem.load(path, workers=1) as sampler:
        return sampler.numerics_id


@contextmanager
def served(folder: Path, tmp_path: Path, **settings):
    """A server of a folder, its stub, and its admin."""
    address = f"unix:{tmp_path}/admin.sock"
    with (
        FolderServer(folder, admin=address, **settings) as live,
        stub_of(live.address) as stub,
        Admin(address) as admin,
    ):
        yield live, stub, admin


@contextmanager
def watching(live, name):
    with grpc.insecure_channel(live.address) as channel:
        request = health_pb2.HealthCheckRequest(service=name)
        call = health_pb2_grpc.HealthStub(channel).Watch(request, timeout=60)
        yield call
        call.cancel()


def code_of(call):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code()


def command(*words):
    """Run `kaem` in this process; return what it printed."""
    result = CliRunner().invoke(app, words)
    if result.exception is not None:
        raise result.exception
    return result.output


def states(models):
    return [(m.name, m.version, admin_pb2.State.Name(m.state), m.is_default) for m in models]
