from __future__ import annotations

import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st

from kaem.client.addresses import Target
from kaem.client.failure import failure_from_status
from kaem.errors import RemoteError, RequestError

HERE, SECURE = Target("s:1"), Target("s:1", is_secure=True)


def details(*messages):
    """The trailer as grpcio-status, which servers use, writes it."""
    status = status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message="busy")
    for message in messages:
        packed = any_pb2.Any()
        packed.Pack(message)
        status.details.append(packed)
    return dict(rpc_status.to_status(status).trailing_metadata)


def retry_info(seconds):
    delay = duration_pb2.Duration()
    delay.FromNanoseconds(round(seconds * 1e9))
    return error_details_pb2.RetryInfo(retry_delay=delay)


def read(code, trailers=(), text="busy", target=HERE):
    return failure_from_status(code, text, dict(trailers).items(), target=target)


@pytest.mark.parametrize("code", ["UNAVAILABLE", "CANCELLED", "INTERNAL", "UNKNOWN"])
def test_what_may_pass_is_worth_asking_again(code):
    failure = read(code)
    assert (failure.may_pass, failure.wait_s) == (True, None)


def test_an_exhausted_server_is_asked_again_only_if_it_sends_retry_info():
    assert not read("RESOURCE_EXHAUSTED").may_pass
    assert not read("RESOURCE_EXHAUSTED", {"grpc-retry-pushback-ms": "100"}).may_pass
    assert not read("RESOURCE_EXHAUSTED", details(error_details_pb2.QuotaFailure())).may_pass
    failure = read("RESOURCE_EXHAUSTED", details(error_details_pb2.QuotaFailure(), retry_info(0.25)))
    assert (failure.may_pass, failure.wait_s) == (True, 0.25)


def test_pushback_goes_before_retry_info():
    trailers = details(retry_info(2)) | {"grpc-retry-pushback-ms": "300"}
    assert read("RESOURCE_EXHAUSTED", trailers).wait_s == 0.3


@pytest.mark.parametrize("text", ["-1", "-100", "", "soon", "1.5", "1e3", "٣", "9" * 30])
def test_a_pushback_that_is_no_time_forbids_to_ask_again(text):
    trailers = details(retry_info(2)) | {"grpc-retry-pushback-ms": text}
    for code in ("UNAVAILABLE", "CANCELLED", "RESOURCE_EXHAUSTED"):
        failure = read(code, trailers)
        assert (failure.may_pass, failure.wait_s) == (False, None)


@given(st.binary(max_size=60))
def test_details_that_are_none_say_nothing(content):
    failure = read("UNAVAILABLE", {"grpc-status-details-bin": content})
    assert failure.may_pass
    assert failure.wait_s is None or failure.wait_s >= 0


@pytest.mark.parametrize("code", ["DATA_LOSS", "NOT_FOUND", "FAILED_PRECONDITION", "UNAUTHENTICATED"])
def test_other_failures_are_final_at_this_server_alone(code):
    failure = read(code, {"grpc-retry-pushback-ms": "100"})
    assert (failure.may_pass, failure.is_everywhere, failure.wait_s) == (False, False, None)


@pytest.mark.parametrize("code", ["INTERNAL", "UNKNOWN"])
def test_what_proxies_say_of_a_lost_server_passes_and_what_a_server_says_of_itself_does_not(code):
    assert read(code).may_pass
    failure = read(code, {"kaem-error": "BackendError", "grpc-retry-pushback-ms": "100"})
    assert (failure.may_pass, failure.is_everywhere, failure.wait_s) == (False, False, None)


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "OUT_OF_RANGE"])
def test_a_request_that_is_wrong_is_wrong_everywhere(code):
    failure = read(code)
    assert failure.is_everywhere
    assert isinstance(failure.error, RequestError)


def test_words_of_a_handshake_count_only_where_there_was_one():
    text = "Tls handshake failed: CERTIFICATE_VERIFY_FAILED"
    assert read("UNAVAILABLE", text=text).may_pass
    failure = read("UNAVAILABLE", text=text, target=SECURE)
    assert not failure.may_pass
    assert isinstance(failure.error, RemoteError)


@pytest.mark.parametrize(
    ("code", "words"),
    [("UNAUTHENTICATED", "did not accept the token"), ("PERMISSION_DENIED", "does not allow this with the token")],
)
def test_a_token_that_is_refused_is_said_so(code, words):
    assert read(code).error.message == f"s:1 {words}: busy"
