"""Reflection as a client uses it that knows nothing: it calls the server with what it was told alone."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection_pb2
from live_server import Backend, LiveServer

from kaem import noise

VERSIONS = ("v1", "v1alpha")
SERVICES = {
    "kaem.v1.Sampler",
    "inference.GRPCInferenceService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
}


@pytest.fixture(scope="module")
def server():
    with LiveServer(Backend()) as live:
        yield live


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def ask(channel, version, **questions):
    call = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    (answer,) = call(iter([reflection_pb2.ServerReflectionRequest(**questions)]), timeout=10)
    return answer


def learn(channel, version, service):
    """The descriptor of a service, in a pool that holds nothing but what the server told."""
    answer = ask(channel, version, file_containing_symbol=service)
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(content)
        for content in answer.file_descriptor_response.file_descriptor_proto
    ]
    pool = descriptor_pool.DescriptorPool()
    for file in sorted(files, key=lambda file: len(file.dependency)):
        pool.Add(file)
    return pool.FindServiceByName(service)


@pytest.mark.parametrize("version", VERSIONS)
def test_it_lists_every_service_and_describes_each(channel, version):
    answer = ask(channel, version, list_services="")
    assert {service.name for service in answer.list_services_response.service} == SERVICES
    for name in SERVICES:
        assert learn(channel, version, name).methods


@pytest.mark.parametrize("version", VERSIONS)
def test_an_inference_can_be_made_from_what_it_tells(server, channel, version):
    method = learn(channel, version, "inference.GRPCInferenceService").methods_by_name["ModelInfer"]
    request, answer = map(message_factory.GetMessageClass, (method.input_type, method.output_type))
    asked = request(model_name="fake")
    asked.parameters["seed"].int64_param = 7
    call = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer", request.SerializeToString, answer.FromString
    )
    images = np.frombuffer(call(asked, timeout=10).raw_output_contents[0], "<f4").reshape(1, 1, 2, 2)
    np.testing.assert_array_equal(images, server.backend.decode(noise.uniforms(7, 0, 1, 3)))


def test_version_1_describes_itself_well_enough_to_be_asked(channel):
    method = learn(channel, "v1", "grpc.reflection.v1.ServerReflection").methods_by_name["ServerReflectionInfo"]
    assert method.input_type.full_name == "grpc.reflection.v1.ServerReflectionRequest"
    request, answer = map(message_factory.GetMessageClass, (method.input_type, method.output_type))
    call = channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", request.SerializeToString, answer.FromString
    )
    (told,) = call(iter([request(list_services="")]), timeout=10)
    assert {service.name for service in told.list_services_response.service} == SERVICES


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_not_there_is_not_found(channel, version):
    for question in (
        {"file_containing_symbol": "kaem.v2.Sampler"},
        {"file_by_filename": "nothing.proto"},
        {"all_extension_numbers_of_type": "kaem.v2.Nothing"},
    ):
        assert ask(channel, version, **question).error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert not ask(channel, version, all_extension_numbers_of_type="kaem.v1.Chunk").HasField("error_response")
