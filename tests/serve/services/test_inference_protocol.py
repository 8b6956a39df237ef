"""The Open Inference Protocol, asked by an unmodified tritonclient over real sockets."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status as RichStatus
from hypothesis import given, settings
from hypothesis import strategies as st
from live_server import Backend, FolderServer, LiveServer, stub_of
from model_folder import bytes_of, put
from triton_client import (
    DIM,
    SERVICE,
    Code,
    Infer,
    Stream,
    connected,
    expected,
    is_last,
    target_of,
    triton,
    uniform_input,
)

import kaem
from kaem import noise
from kaem.protocol import inference_pb2, kaem_pb2
from kaem.validation import NUM_INDICES

model_config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2")
service_pb2 = triton.service_pb2
InferenceServerException = pytest.importorskip("tritonclient.utils").InferenceServerException


@pytest.fixture(scope="module")
def server():
    with LiveServer(Backend(image_shape=(3, 8, 8), noise_dim=DIM)) as live:
        yield live


@pytest.fixture(scope="module")
def client(server):
    with connected(server) as client:
        yield client


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def test_our_messages_are_those_of_the_protocol_field_by_field():
    def compare(ours, theirs):
        for field in ours.fields:
            other = theirs.fields_by_name[field.name]
            assert (field.number, field.type, field.is_repeated) == (other.number, other.type, other.is_repeated)
            assert getattr(field.containing_oneof, "name", None) == getattr(other.containing_oneof, "name", None)
            if field.message_type is not None:
                assert field.message_type.full_name == other.message_type.full_name
            if field.enum_type is not None:
                for value in field.enum_type.values:
                    assert other.enum_type.values_by_name[value.name].number == value.number
        for nested in ours.nested_types:
            compare(nested, theirs.nested_types_by_name[nested.name])

    for name, message in inference_pb2.DESCRIPTOR.message_types_by_name.items():
        theirs = service_pb2.DESCRIPTOR.message_types_by_name.get(name)
        compare(message, theirs or model_config_pb2.DESCRIPTOR.message_types_by_name[name])
    methods = inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    others = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    assert len(methods) == 9
    for name, method in methods.items():
        assert method.input_type.full_name == others[name].input_type.full_name
        assert method.output_type.full_name == others[name].output_type.full_name
        assert (method.client_streaming, method.server_streaming) == (
            others[name].client_streaming,
            others[name].server_streaming,
        )


def test_health_and_metadata(server, client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("fake")
    assert client.is_model_ready("fake", "1")
    assert not client.is_model_ready("fake", "2")
    assert not client.is_model_ready("other")
    told = client.get_server_metadata()
    assert (told.name, told.version) == ("kaem", kaem.__version__)
    assert "statistics" in told.extensions
    model = client.get_model_metadata("fake")
    assert (model.name, list(model.versions)) == ("fake", ["1"])
    assert [(i.name, i.datatype, list(i.shape)) for i in model.inputs] == [("uniform", "FP32", [-1, DIM])]
    assert [(o.name, o.datatype, list(o.shape)) for o in model.outputs] == [("image", "FP32", [-1, 3, 8, 8])]


def test_config_says_decoupled_and_how_batches_are_made(server, client):
    config = client.get_model_config("fake").config
    assert config.model_transaction_policy.decoupled
    limits = server.server.models.get("").info.limits
    assert config.max_batch_size == limits.max_decode_rows
    assert config.parameters["max_sample_rows"].string_value == str(limits.max_sample_rows)
    assert config.parameters["numerics_id"].string_value == server.backend.numerics_id
    assert list(config.dynamic_batching.preferred_batch_size) == list(server.scheduler.costs.sizes)
    assert (config.input[0].data_type, list(config.input[0].dims)) == (model_config_pb2.TYPE_FP32, [DIM])
    assert config.input[0].optional
    assert list(config.output[0].dims) == [3, 8, 8]
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_CPU


@given(
    seed=st.integers(0, NUM_INDICES - 1),
    start=st.integers(0, NUM_INDICES - 16),
    count=st.integers(1, 16),
)
@settings(max_examples=15, deadline=None)
def test_infer_by_seed_is_kaem_v1_byte_for_byte(server, client, seed, start, count):
    result = client.infer(
        "fake", [], request_id="r", parameters={"seed": str(seed), "start": str(start), "count": count}
    )
    with stub_of(server.address) as stub:
        chunk = stub.Sample(kaem_pb2.SampleRequest(seed=seed, start_index=start, count=count), timeout=10)
    answer = result.get_response()
    assert answer.raw_output_contents[0] == chunk.data
    assert (answer.model_name, answer.model_version, answer.id) == ("fake", "1", "r")
    assert answer.parameters["numerics_id"].string_param == chunk.numerics_id
    assert answer.parameters["start"].uint64_param == start
    assert result.as_numpy("image").shape == (count, 3, 8, 8)


def test_infer_equals_the_local_sampler(artifact_path):
    with kaem.load(artifact_path) as local, LiveServer(local) as live, connected(live) as client:
        name = local.manifest.name
        result = client.infer(name, [], parameters={"seed": 7, "start": 5, "count": 9})
        assert result.as_numpy("image").tobytes() == local.sample(9, 7, 5).tobytes()
        uniform = noise.uniforms(1, 0, 6, local.manifest.noise_dim)
        result = client.infer(name, [uniform_input(uniform)], outputs=[triton.InferRequestedOutput("image")])
        assert result.as_numpy("image").tobytes() == local.decode(uniform).tobytes()


def test_latent_vectors_come_beside_the_images_where_they_are_asked_for(artifact_path):
    both = [triton.InferRequestedOutput("latent"), triton.InferRequestedOutput("image")]
    with kaem.load(artifact_path) as local, LiveServer(local) as live, connected(live) as client:
        name, dim = local.manifest.name, local.manifest.noise_dim
        tensors = client.get_model_metadata(name).outputs
        assert [(tensor.name, list(tensor.shape)) for tensor in tensors] == [
            ("image", [-1, 1, 8, 8]),
            ("latent", [-1, 5]),
        ]
        uniform = noise.uniforms(7, 3, 300, dim)
        result = client.infer(name, [], outputs=both, parameters={"seed": 7, "start": 3, "count": 300})
        assert result.as_numpy("latent").tobytes() == local.latents(uniform).tobytes()
        assert result.as_numpy("image").tobytes() == local.decode(uniform).tobytes()
        result = client.infer(name, [uniform_input(uniform[:9])], outputs=both[:1])
        assert result.as_numpy("latent").tobytes() == local.latents(uniform[:9]).tobytes()
        assert result.as_numpy("image") is None
        with Stream(live.address) as stream:
            count = 2 * (1 << 20) // (4 * (64 + 5)) + 1
            stream.ask(model=name, outputs=both, seed=7, count=count)
            stream.ask(model=name, seed=8)  # which shares batches and gets images alone
            parts = [stream.result()]
            while sum(map(is_last, parts)) < 2:
                parts.append(stream.result())
        alone = [part for part in parts if part.get_output("latent") is None]
        latents = np.concatenate([part.as_numpy("latent") for part in parts if part.get_output("latent")])
        assert latents.tobytes() == local.latents(noise.uniforms(7, 0, count, dim)).tobytes()
        assert [part.as_numpy("image").tobytes() for part in alone] == [local.sample(1, 8).tobytes()]
        with pytest.raises(InferenceServerException, match="do not fit in one answer"):
            client.infer(name, [], outputs=both, parameters={"seed": 7, "count": (1 << 20) // (4 * 64)})


def test_an_engine_that_keeps_its_latents_offers_none(client):
    with pytest.raises(InferenceServerException, match="no output named 'latent'"):
        client.infer("fake", [], outputs=[triton.InferRequestedOutput("latent")], parameters={"seed": 1})


def test_a_uint8_model_answers_uint8():
    with LiveServer(Backend(image_type="uint8")) as live, connected(live) as client:
        result = client.infer("fake", [], parameters={"seed": 3, "count": 4})
        np.testing.assert_array_equal(result.as_numpy("image"), expected(live.backend, 3, 0, 4))
        assert result.get_output("image").datatype == "UINT8"


def test_a_tensor_may_also_come_as_a_list_of_values(server, channel):
    uniform = noise.uniforms(1, 0, 2, DIM)
    tensor = Infer.InferInputTensor(name="uniform", datatype="FP32", shape=[2, DIM])
    tensor.contents.fp32_contents.extend(uniform.ravel().tolist())
    answer = ask(channel, Infer(model_name="fake", inputs=[tensor]))
    np.testing.assert_array_equal(
        np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(2, 3, 8, 8), server.backend.decode(uniform)
    )


def ask(channel, request, method="ModelInfer", answer=inference_pb2.ModelInferResponse, **options):
    call = channel.unary_unary(f"{SERVICE}/{method}", lambda message: message.SerializeToString(), answer.FromString)
    return call(request, timeout=10, **options)


def tensor(shape=(1, DIM), *, datatype="FP32", name="uniform"):
    return Infer.InferInputTensor(name=name, datatype=datatype, shape=shape)


ROW = noise.uniforms(1, 0, 1, DIM).tobytes()


def by_seed(**values):
    request = Infer(model_name="fake")
    for name, value in values.items():
        kind = {int: "int64_param", str: "string_param", bool: "bool_param", float: "double_param"}[type(value)]
        setattr(request.parameters[name], kind, value)
    return request


def by_tensor(*tensors, raw=(ROW,), **fields):
    return Infer(model_name="fake", inputs=tensors or [tensor()], raw_input_contents=raw, **fields)


Output = Infer.InferRequestedOutputTensor
WRONG = [
    (Infer(model_name="other"), "NOT_FOUND", "model_name", "no model named 'other'"),
    (Infer(model_name="fake", id="i" * 2000), "INVALID_ARGUMENT", "id", "the id has 2000 characters"),
    (Infer(model_name="fake", model_version="2"), "NOT_FOUND", "model_version", "no version 2"),
    (Infer(model_name="fake", model_version="x1"), "INVALID_ARGUMENT", "model_version", "version is 'x1'"),
    (by_seed(), "INVALID_ARGUMENT", "parameters[seed]", "no seed"),
    (by_seed(count=3), "INVALID_ARGUMENT", "parameters[seed]", "no seed"),
    (by_seed(seed=-1), "INVALID_ARGUMENT", "parameters[seed]", "seed is -1"),
    (by_seed(seed=str(NUM_INDICES)), "INVALID_ARGUMENT", "parameters[seed]", "outside"),
    (by_seed(seed="9" * 10000), "INVALID_ARGUMENT", "parameters[seed]", "seed is '999"),
    (by_seed(seed="seven"), "INVALID_ARGUMENT", "parameters[seed]", "seed is 'seven'"),
    (by_seed(seed=1.0), "INVALID_ARGUMENT", "parameters[seed]", "seed is '1.0'"),
    (by_seed(seed=True), "INVALID_ARGUMENT", "parameters[seed]", "seed is 'True'"),
    (by_seed(seed=1, start=-2), "INVALID_ARGUMENT", "parameters[start]", "start is -2"),
    (by_seed(seed=1, count=0), "INVALID_ARGUMENT", "parameters[count]", "num is 0"),
    (by_seed(seed=1, count=10**6), "INVALID_ARGUMENT", "parameters[count]", "do not fit in one answer"),
    (by_seed(seed=1, start=str(NUM_INDICES - 1), count=2), "OUT_OF_RANGE", "parameters[count]", "passes 2^64"),
    (by_seed(sede=1), "INVALID_ARGUMENT", "parameters[sede]", "unknown parameter 'sede'"),
    (by_seed(seed=1, priority=3), "INVALID_ARGUMENT", "parameters[priority]", "priority is 3"),
    (by_seed(seed=1, timeout=-1), "INVALID_ARGUMENT", "parameters[timeout]", "timeout is -1"),
    (
        by_seed(seed=1, expected_numerics_id="sha256:0"),
        "FAILED_PRECONDITION",
        "parameters[expected_numerics_id]",
        "sha256:0 is expected",
    ),
    (by_tensor(tensor((0, DIM)), raw=[b""]), "INVALID_ARGUMENT", "inputs[0].shape", "shape [0, 5]"),
    (by_tensor(tensor((-1, DIM))), "INVALID_ARGUMENT", "inputs[0].shape", "shape [-1, 5]"),
    (by_tensor(tensor((DIM,))), "INVALID_ARGUMENT", "inputs[0].shape", "shape [5]"),
    (by_tensor(tensor([1] * 100000)), "INVALID_ARGUMENT", "inputs[0].shape", "shape [1, 1"),
    (by_tensor(tensor((1 << 62, DIM))), "INVALID_ARGUMENT", "inputs[0].shape", "rows; at most"),
    (by_tensor(tensor((1, DIM + 1))), "INVALID_ARGUMENT", "inputs[0].shape", "takes [N, 5]"),
    (by_tensor(tensor(datatype="FP64")), "INVALID_ARGUMENT", "inputs[0].datatype", "takes FP32"),
    (by_tensor(tensor(name="noise")), "INVALID_ARGUMENT", "inputs[0].name", "no input named 'noise'"),
    (by_tensor(raw=[ROW[:-1]]), "INVALID_ARGUMENT", "raw_input_contents[0]", "has 19 bytes"),
    (by_tensor(raw=[ROW, ROW]), "INVALID_ARGUMENT", "raw_input_contents", "2 raw contents for 1 input"),
    (by_tensor(raw=[]), "INVALID_ARGUMENT", "inputs[0].contents", "has 0 values"),
    (by_tensor(tensor(), tensor()), "INVALID_ARGUMENT", "inputs", "2 inputs"),
    (Infer(model_name="fake", raw_input_contents=[ROW]), "INVALID_ARGUMENT", "inputs", "0 inputs"),
    (
        by_tensor(raw=[np.full(DIM, np.nan, "<f4").tobytes()]),
        "INVALID_ARGUMENT",
        "raw_input_contents[0]",
        "a uniform is nan",
    ),
    (
        by_tensor(parameters={"seed": inference_pb2.InferParameter(int64_param=1)}),
        "INVALID_ARGUMENT",
        "inputs",
        "both a tensor and samples",
    ),
    (by_tensor(outputs=[Output(name="picture")]), "INVALID_ARGUMENT", "outputs[0].name", "no output named 'picture'"),
    (
        by_tensor(outputs=[Output(name="image"), Output(name="image")]),
        "INVALID_ARGUMENT",
        "outputs[1].name",
        "asked for twice",
    ),
    (
        by_tensor(
            outputs=[Output(name="image", parameters={"classification": inference_pb2.InferParameter(int64_param=1)})]
        ),
        "INVALID_ARGUMENT",
        "outputs[0].parameters",
        "'classification'",
    ),
]


@pytest.mark.parametrize(("request_", "code", "field", "text"), WRONG, ids=[case[3] for case in WRONG])
def test_a_wrong_request_gets_its_status_its_field_and_names_the_value(channel, request_, code, field, text):
    with pytest.raises(grpc.RpcError) as caught:
        ask(channel, request_)
    assert caught.value.code().name == code
    assert text in caught.value.details()
    assert violations(caught.value) == [(field, caught.value.details())]


def violations(error):
    metadata = {entry.key: entry.value for entry in error.trailing_metadata()}
    for detail in RichStatus.FromString(metadata["grpc-status-details-bin"]).details:
        told = BadRequest()
        if detail.Unpack(told):
            return [(violation.field, violation.description) for violation in told.field_violations]
    return []


@pytest.mark.parametrize("method", ["ModelMetadata", "ModelConfig", "ModelStatistics"])
def test_questions_about_unknown_models_are_not_found(channel, method):
    request, answer = getattr(inference_pb2, f"{method}Request"), getattr(inference_pb2, f"{method}Response")
    for asked, code, field in (
        (request(name="other"), Code.NOT_FOUND, "name"),
        (request(name="fake", version="2"), Code.NOT_FOUND, "version"),
        (request(name="fake", version="one"), Code.INVALID_ARGUMENT, "version"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            ask(channel, asked, method, answer)
        assert caught.value.code() is code
        assert violations(caught.value)[0][0] == field


@pytest.mark.parametrize("method", [*inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name])
def test_bytes_that_are_no_message_get_a_fixed_text(channel, method):
    garbage = b"\xff\xff\xff\xff"
    with pytest.raises(grpc.RpcError) as caught:
        if method == "ModelStreamInfer":
            list(channel.stream_stream(f"{SERVICE}/{method}")(iter([garbage]), timeout=10))
        else:
            channel.unary_unary(f"{SERVICE}/{method}")(garbage, timeout=10)
    assert caught.value.code() is Code.INTERNAL
    assert caught.value.details() == "the request is not a valid protobuf message of this method"


def test_what_triton_has_and_we_do_not_is_unimplemented(client):
    with pytest.raises(InferenceServerException) as caught:
        client.get_system_shared_memory_status()
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


def test_a_bug_leaks_nothing_but_a_request_id(channel, monkeypatch, caplog):
    def broken(*_, **__):
        raise ZeroDivisionError("secret of the handler")

    monkeypatch.setattr("serve.services.inference_protocol.service.images_answer", broken)
    with pytest.raises(grpc.RpcError) as caught:
        ask(channel, by_seed(seed=1))
    assert caught.value.code() is Code.INTERNAL
    assert caught.value.details().startswith("internal error, request ")
    assert "secret" not in str(caught.value.trailing_metadata())
    assert "secret of the handler" in caplog.text
    with Stream(target_of(channel)) as stream:
        stream.ask(seed=1)
        _, error = stream.get()
        assert error.message().startswith("[INTERNAL] internal error, request ")


@pytest.mark.parametrize("how", ["timeout", "deadline"])
def test_a_time_that_cannot_be_kept_is_refused_and_not_let_in(server, client, how):
    before = list(server.server.observer.admitted)
    options = {"timeout": 1} if how == "timeout" else {"client_timeout": 1e-6}
    with pytest.raises(InferenceServerException) as caught:
        client.infer("fake", [], parameters={"seed": 1, "count": 300}, **options)
    assert caught.value.status() in ("StatusCode.RESOURCE_EXHAUSTED", "StatusCode.DEADLINE_EXCEEDED")
    assert server.server.observer.admitted == before


def test_priority_chooses_the_class(server, client):
    for priority, count, is_bulk in ((0, 1, False), (2, 1, True), (1, 300, False), (0, 300, True)):
        client.infer("fake", [], parameters={"seed": 1, "count": count}, priority=priority)
        assert server.server.observer.admitted[-1] == (is_bulk, count)


def test_statistics_count_requests_of_every_protocol():
    with (
        LiveServer(Backend()) as live,
        triton.InferenceServerClient(live.address) as client,
        stub_of(live.address) as ours,
    ):
        before = client.get_inference_statistics("fake").model_stats[0]
        assert before.execution_count == 0
        client.infer("fake", [], parameters={"seed": 1, "count": 3})
        ours.Sample(kaem_pb2.SampleRequest(seed=1, count=4), timeout=10)
        with Stream(live.address) as stream:
            for seed in range(2):
                stream.ask(seed=seed)
                stream.result()
        live.backend.error = ValueError("broken")
        with pytest.raises(InferenceServerException):
            client.infer("fake", [], parameters={"seed": 1})
        (told,) = client.get_inference_statistics().model_stats
    assert (told.name, told.version) == ("fake", "1")
    assert (told.inference_count, told.execution_count) == (9, 4)
    stats = told.inference_stats
    assert (stats.success.count, stats.fail.count, stats.queue.count) == (4, 1, 5)
    assert stats.success.ns > stats.compute_infer.ns > 0
    assert stats.compute_input.count == stats.compute_output.count == stats.compute_infer.count == 4
    assert sum(batch.compute_infer.count for batch in told.batch_stats) == 4
    assert told.last_inference > 1e12


def test_versions_are_named_listed_and_counted_apart(tmp_path):
    folder = tmp_path / "models"
    old, new = (put(folder / "digits" / str(version) / "model.onnx", version) for version in (3, 10))
    with FolderServer(folder) as live, connected(live) as client:
        assert list(client.get_model_metadata("digits").versions) == ["3", "10"]
        for version, path, found in (("", new, "10"), ("10", new, "10"), ("3", old, "3"), ("03", old, "3")):
            result = client.infer("digits", [], model_version=version, parameters={"seed": 7, "count": 2})
            assert result.get_response().model_version == found
            assert result.as_numpy("image").tobytes() == bytes_of(path, 2, 7)
        assert client.is_model_ready("digits", "3")
        for version in ("4", "4" * 5000):
            assert not client.is_model_ready("digits", version)
            with pytest.raises(InferenceServerException, match="no version 4") as caught:
                client.infer("digits", [], model_version=version, parameters={"seed": 7})
            assert caught.value.status() == "StatusCode.NOT_FOUND"
        told = client.get_inference_statistics().model_stats
        assert [(model.version, model.inference_count) for model in told] == [("3", 4), ("10", 4)]
