"""Several models on several devices: reloads with processes of their own, and what a model without a device costs."""

from __future__ import annotations

import grpc
import psutil
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from live_server import PARTIAL
from model_folder import bytes_of, code_of, id_of, put, served, states, watching
from scraping import Scrape, get
from tritonclient.utils import InferenceServerException

from kaem.errors import ArtifactError
from kaem.protocol import kaem_pb2
from serve.devices import device_pool as fleets

SampleRequest, Status = kaem_pb2.SampleRequest, health_pb2.HealthCheckResponse


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A server of the models x and y on two devices, its stub, its admin, and its folder."""
    folder = tmp_path_factory.mktemp("models")
    put(folder / "x.onnx", 1)
    put(folder / "y.onnx", 2)
    with served(folder, tmp_path_factory.mktemp("admin"), device="cpu,cpu", max_batch=256, http_port=0) as (
        live,
        stub,
        admin,
    ):
        yield live, stub, admin, folder


def processes_of(live, name):
    [entry] = [entry for entry in live.server.library.catalog if entry.name == name]
    return [psutil.Process(seat.worker.process.pid) for seat in entry.running.model.device_pool._seats]


def children():
    return {child.pid for child in psutil.Process().children()}


def lose(live, name):
    """End all processes of a model."""
    with watching(live, f"kaem.model/{name}") as watch:
        assert next(watch).status == Status.SERVING
        for process in processes_of(live, name):
            process.kill()
        assert next(watch).status == Status.NOT_SERVING


def ask(stub, name):
    return stub.Sample(SampleRequest(model=name, count=3), timeout=20)


def test_a_reload_starts_processes_aside_and_the_old_ones_end_after_their_streams(setting):
    live, stub, admin, folder = setting
    path = folder / "x.onnx"
    num = 120_000  # 30 MB, which no transport takes for a reader that does not read
    old_id, old_bytes = id_of(path), bytes_of(path, num, 3)
    before, old = children(), processes_of(live, "x")
    stream = stub.StreamSamples(SampleRequest(model="x", seed=3, count=num), timeout=60, metadata=PARTIAL)
    first = next(stream)
    put(path, 3)
    assert states(admin.reload())[-1] == ("x", 1, "STATE_DRAINING", False)
    new = processes_of(live, "x")
    assert children() == before | {process.pid for process in new}
    chunk = ask(stub, "x")
    assert (chunk.numerics_id, chunk.data) == (id_of(path), bytes_of(path, 3, 0))
    old[0].kill()
    chunks = [first, *stream]
    assert {chunk.numerics_id for chunk in chunks} == {old_id}
    assert b"".join(chunk.data for chunk in chunks) == old_bytes
    live.drained()
    assert children() == before - {process.pid for process in old} | {process.pid for process in new}


def test_a_reload_that_fails_leaves_no_process_and_what_was_served(setting):
    live, stub, admin, folder = setting
    before, answer, whole = children(), ask(stub, "y"), (folder / "y.onnx").read_bytes()
    (folder / "y.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError) as caught:
        admin.reload()
    assert str(folder / "y.onnx") in caught.value.message
    assert children() == before
    assert ask(stub, "y") == answer
    put(folder / "y.onnx", 2)
    admin.reload()
    live.drained()


def test_a_model_without_a_device_costs_no_other_and_a_reload_helps_it(setting, monkeypatch):
    live, stub, admin, _ = setting
    monkeypatch.setattr(fleets, "pause_s", lambda failures: 600.0)  # they do not come back by themselves
    url = live.server.http_address
    expected = {name: ask(stub, name).data for name in "xy"}
    with triton.InferenceServerClient(live.address) as client, grpc.insecure_channel(live.address) as channel:

        def health(name):
            request = health_pb2.HealthCheckRequest(service=name)
            return health_pb2_grpc.HealthStub(channel).Check(request, timeout=10).status == Status.SERVING

        def devices():
            scrape = Scrape(url)
            return [scrape("kaem_device_up", model=name, device=f"cpu:{at}") for name in "xy" for at in range(2)]

        assert devices() == [1, 1, 1, 1]
        losses = Scrape(url)("kaem_device_losses_total", model="x", device="cpu:1")
        lose(live, "x")
        assert devices() == [0, 0, 1, 1]
        assert (health("kaem.model/y"), health("")) == (True, True)
        assert (client.is_model_ready("x"), client.is_model_ready("y"), client.is_server_ready()) == (False, True, True)
        with pytest.raises(grpc.RpcError, match="model 'x' has lost its devices") as caught:
            ask(stub, "x")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "grpc-retry-pushback-ms" in [key for key, _ in caught.value.trailing_metadata()]
        assert ask(stub, "y").data == expected["y"]
        assert Scrape(url)("kaem_device_losses_total", model="x", device="cpu:1") == losses + 1
        assert get(f"{url}/readyz")[0] == 200
        lose(live, "y")
        assert code_of(lambda: ask(stub, "y")) is grpc.StatusCode.UNAVAILABLE
        assert (health(""), client.is_server_ready(), Scrape(url)("kaem_ready")) == (False, False, 0)
        status, text = get(f"{url}/readyz")
        assert (status, "has lost its devices" in text) == (503, True)
        for name in "xy":
            admin.load(name)
            assert ask(stub, name).data == expected[name]
            assert (health(f"kaem.model/{name}"), health("")) == (True, True)
        assert devices() == [1, 1, 1, 1]
        live.drained()


def test_the_server_of_one_model_says_not_serving_with_it(setting, monkeypatch):
    live, _, admin, _ = setting
    monkeypatch.setattr(fleets, "pause_s", lambda failures: 600.0)
    admin.unload("y", 1)
    with watching(live, "") as watch:
        assert next(watch).status == Status.SERVING
        lose(live, "x")
        assert next(watch).status == Status.NOT_SERVING
        admin.load("y")
        assert next(watch).status == Status.SERVING
    admin.load("x")
    live.drained()


def test_processes_offer_no_latent_vectors_and_say_so(setting):
    live, *_ = setting
    with triton.InferenceServerClient(live.address) as client:
        outputs = client.get_model_metadata("x").outputs
        assert [output.name for output in outputs] == ["image"]
        wanted = [triton.InferRequestedOutput("latent")]
        with pytest.raises(InferenceServerException, match="no output named 'latent'") as caught:
            client.infer("x", [], outputs=wanted, parameters={"seed": 1})
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
