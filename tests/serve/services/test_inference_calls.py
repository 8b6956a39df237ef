"""Requests of the Open Inference Protocol as calls: who may ask, what counts, and that nothing odd breaks a server."""

from __future__ import annotations

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live_server import Backend, LiveServer, server_of
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from kaem.protocol import inference_pb2
from serve.monitoring.tracing import Tracing

SERVICE = "/inference.GRPCInferenceService"
STREAM = f"{SERVICE}/ModelStreamInfer"
ALICE, BOB, CAROL = "alice-" + "a" * 26, "bob-" + "b" * 28, "carol-" + "c" * 26
Code = grpc.StatusCode
Infer = inference_pb2.ModelInferRequest


def bearer(token):
    return (("authorization", f"Bearer {token}"),)


def by_seed(seed, count=1, model="fake"):
    request = Infer(model_name=model, id=str(seed))
    request.parameters["seed"].int64_param = seed
    request.parameters["count"].int64_param = count
    return request


def ask(channel, request, method="ModelInfer", **options):
    answer = getattr(inference_pb2, f"{method}Response")
    call = channel.unary_unary(f"{SERVICE}/{method}", lambda message: message.SerializeToString(), answer.FromString)
    return call(request, timeout=10, **options)


def converse(channel, requests, **options):
    call = channel.stream_stream(
        STREAM, lambda message: message.SerializeToString(), inference_pb2.ModelStreamInferResponse.FromString
    )
    return call(iter(requests), timeout=20, **options)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    path.write_text(f"alice {ALICE} rate=10 concurrency=1\nbob {BOB} models=faces\ncarol {CAROL}\n")
    path.chmod(0o600)
    with LiveServer(Backend(), token_file=str(path)) as live, grpc.insecure_channel(live.address) as channel:
        live.channel = channel
        yield live


def test_health_needs_no_token_and_everything_else_does(guarded):
    channel = guarded.channel
    assert ask(channel, inference_pb2.ServerLiveRequest(), "ServerLive").live
    assert ask(channel, inference_pb2.ServerReadyRequest(), "ServerReady").ready
    for method in ("ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig", "ModelStatistics", "ModelInfer"):
        with pytest.raises(grpc.RpcError) as caught:
            ask(channel, getattr(inference_pb2, f"{method}Request")(), method)
        assert caught.value.code() is Code.UNAUTHENTICATED, method


def test_a_stream_without_a_token_is_turned_away_at_its_door_and_counted(guarded):
    call = converse(guarded.channel, [])
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert caught.value.code() is Code.UNAUTHENTICATED
    assert guarded.server.observer.ended[-1] == (STREAM, "UNAUTHENTICATED")


def test_a_token_reaches_its_models_only(guarded):
    channel, options = guarded.channel, {"metadata": bearer(BOB)}
    with pytest.raises(grpc.RpcError) as caught:
        ask(channel, by_seed(1), **options)
    assert caught.value.code() is Code.PERMISSION_DENIED
    (answer,) = converse(channel, [by_seed(1)], **options)
    assert answer.error_message.startswith("[PERMISSION_DENIED] 'bob' may not use model 'fake'")
    assert not ask(channel, inference_pb2.ModelStatisticsRequest(), "ModelStatistics", **options).model_stats
    told = ask(channel, inference_pb2.ModelStatisticsRequest(), "ModelStatistics", metadata=bearer(CAROL))
    assert [model.name for model in told.model_stats] == ["fake"]


def test_limits_of_a_token_hold_for_each_request_of_a_stream(guarded):
    """Otherwise one open stream would be a way around them."""
    answers = converse(guarded.channel, [by_seed(1, count=300), by_seed(2), by_seed(3)], metadata=bearer(ALICE))
    by_id = {answer.infer_response.id: answer.error_message for answer in answers}
    assert by_id["1"] == ""
    for seed in ("2", "3"):
        assert by_id[seed].startswith("[RESOURCE_EXHAUSTED] 'alice' has ")
    with pytest.raises(grpc.RpcError) as caught:
        ask(guarded.channel, by_seed(4), metadata=bearer(ALICE))
    assert caught.value.code() is Code.RESOURCE_EXHAUSTED
    assert "has used its 10 samples a second" in caught.value.details()


def test_a_server_that_does_not_let_calls_in_says_so_to_everybody():
    with LiveServer(Backend()) as live, grpc.insecure_channel(live.address) as channel:
        live.server.gate.close("is loading its model")
        assert ask(channel, inference_pb2.ServerLiveRequest(), "ServerLive").live
        assert not ask(channel, inference_pb2.ServerReadyRequest(), "ServerReady").ready
        assert not ask(channel, inference_pb2.ModelReadyRequest(name="fake"), "ModelReady").ready
        for call in (lambda: ask(channel, by_seed(1)), lambda: list(converse(channel, [by_seed(1)]))):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() is Code.UNAVAILABLE


class TracedServer(LiveServer):
    async def _make(self, backend, settings):
        self.spans = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.spans))
        return server_of(backend, settings, Tracing(provider))


def test_every_request_of_a_stream_has_its_own_span_in_the_trace_of_its_client():
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with TracedServer(Backend()) as live, grpc.insecure_channel(live.address) as channel:
        requests = [by_seed(1, count=5), by_seed(2, count=7), by_seed(3, model="other")]
        answers = list(converse(channel, requests, metadata=(("traceparent", f"00-{trace}-{parent}-01"),)))
        assert len(answers) == 3
        spans = live.spans.get_finished_spans()
    roots = [span for span in spans if span.name == STREAM[1:]]
    assert sorted((span.attributes["rpc.response.status_code"], span.attributes["kaem.samples"]) for span in roots) == [
        ("NOT_FOUND", 0),
        ("OK", 5),
        ("OK", 7),
    ]
    assert {f"{span.context.trace_id:032x}" for span in roots} == {trace}
    assert len({span.attributes["kaem.request_id"] for span in roots}) == 3
    served = {span.context.span_id for span in roots if span.attributes["rpc.response.status_code"] == "OK"}
    assert {span.parent.span_id for span in spans if span.name == "compute"} == served


@pytest.fixture(scope="module")
def open_channel():
    with LiveServer(Backend()) as live, grpc.insecure_channel(live.address) as channel:
        yield channel


parameters = st.dictionaries(
    st.sampled_from(["seed", "start", "count", "priority", "timeout", "expected_numerics_id", "x"]),
    st.one_of(
        st.builds(inference_pb2.InferParameter, int64_param=st.integers(-(1 << 63), (1 << 63) - 1)),
        st.builds(inference_pb2.InferParameter, int64_param=st.integers(-2, 4)),
        st.builds(inference_pb2.InferParameter, uint64_param=st.integers(0, (1 << 64) - 1)),
        st.builds(inference_pb2.InferParameter, string_param=st.text(max_size=30)),
        st.builds(inference_pb2.InferParameter, double_param=st.floats()),
        st.builds(inference_pb2.InferParameter, bool_param=st.booleans()),
        st.builds(inference_pb2.InferParameter),
    ),
    max_size=4,
)
tensors = st.builds(
    Infer.InferInputTensor,
    name=st.sampled_from(["uniform", "image", ""]),
    datatype=st.sampled_from(["FP32", "FP64", "BYTES", ""]),
    shape=st.lists(st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(0, 4), max_size=4) | st.just([2, 3]),
    contents=st.none()
    | st.builds(inference_pb2.InferTensorContents, fp32_contents=st.lists(st.floats(width=32), max_size=6)),
)
requests = st.builds(
    Infer,
    model_name=st.sampled_from(["fake", "", "other"]),
    model_version=st.sampled_from(["", "1", "2", "-1", "x", "９", "1" * 400]),
    parameters=parameters,
    inputs=st.lists(tensors, max_size=2),
    outputs=st.lists(
        st.builds(Infer.InferRequestedOutputTensor, name=st.sampled_from(["image", "latent", "x"])), max_size=2
    ),
    raw_input_contents=st.lists(st.binary(max_size=30) | st.binary(min_size=24, max_size=24), max_size=2),
)


REASONS = {
    Code.OK,
    Code.INVALID_ARGUMENT,
    Code.NOT_FOUND,
    Code.OUT_OF_RANGE,
    Code.FAILED_PRECONDITION,
    Code.RESOURCE_EXHAUSTED,  # a timeout that cannot be kept
    Code.DEADLINE_EXCEEDED,
}


@given(request=requests)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_is_asked_is_answered_or_refused_for_a_reason(open_channel, request):
    code, answer = Code.OK, None
    try:
        answer = ask(open_channel, request)
    except grpc.RpcError as error:
        code = error.code()
    assert code in REASONS
    if answer is not None:
        assert [len(content) for content in answer.raw_output_contents] == [16 * answer.outputs[0].shape[0]]
