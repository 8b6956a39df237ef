"""Server reflection, v1 and v1alpha: the stock answers, given with our call options when a request is malformed.

The two versions differ in the name of their package alone, so one implementation answers both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from kaem.protocol import inference_pb2
from serve.calls.interceptor import Context, Malformed, Reception, tolerant, well_formed

ALPHA_SERVICE = reflection.SERVICE_NAME
SERVICE = ALPHA_SERVICE.replace("v1alpha", "v1")
_METHOD = "ServerReflectionInfo"


def handlers(names: Iterable[str], reception: Reception) -> tuple[grpc.GenericRpcHandler[object, object], ...]:
    """Return the methods that describe services; built by hand so that requests are read tolerantly.

    Args:
        names: Full names of the services.
        reception: Surrounds the calls.
    """
    pools = _Pools([inference_pb2.DESCRIPTOR.pool, _pool_of_v1(), descriptor_pool.Default()])
    servicer = reflection.aio.ReflectionServicer(names, pools)  # type: ignore[attr-defined]  # public as documented

    async def describe(requests: AsyncIterator[ServerReflectionRequest | Malformed], context: Context) -> None:
        valid = (well_formed(request) async for request in requests)
        async for answer in servicer.ServerReflectionInfo(valid, context):
            await context.write(answer)

    def handler(service: str) -> grpc.GenericRpcHandler[object, object]:
        method = grpc.stream_stream_rpc_method_handler(
            reception.identified(f"/{service}/{_METHOD}", reception.lasting(describe)),
            tolerant(ServerReflectionRequest),
            ServerReflectionResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(service, {_METHOD: method})

    return handler(SERVICE), handler(ALPHA_SERVICE)


class _Pools:
    """Several descriptor pools asked one after the other, as far as reflection asks."""

    def __init__(self, pools: Sequence[descriptor_pool.DescriptorPool]) -> None:
        self._pools = pools

    def __getattr__(self, name: str) -> Any:
        def find(*arguments: Any) -> Any:
            for pool in self._pools[:-1]:
                try:
                    return getattr(pool, name)(*arguments)
                except KeyError:
                    continue
            return getattr(self._pools[-1], name)(*arguments)

        return find


def _pool_of_v1() -> descriptor_pool.DescriptorPool:
    """Return a pool that knows version 1, for which there is no package: version 1alpha under its other name."""
    alpha = reflection_pb2.DESCRIPTOR.serialized_pb
    described = FileDescriptorProto.FromString(alpha)
    described.name, described.package = described.name.replace("v1alpha", "v1"), "grpc.reflection.v1"
    for message in described.message_type:
        for field in filter(lambda field: field.type_name, message.field):
            field.type_name = field.type_name.replace(".v1alpha.", ".v1.")
    for method in described.service[0].method:
        method.input_type = method.input_type.replace(".v1alpha.", ".v1.")
        method.output_type = method.output_type.replace(".v1alpha.", ".v1.")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(described)
    return pool
