"""Server reflection: the stock answers, given with our manners when a request is malformed or an answer fails."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

import grpc
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from serve.calls import Context, Malformed, Reception, tolerant, well_formed

SERVICE = reflection.SERVICE_NAME
_METHOD = "ServerReflectionInfo"


def handler(names: Iterable[str], reception: Reception) -> grpc.GenericRpcHandler[object, object]:
    """Return the method that describes services; built by hand so that requests are read tolerantly.

    Args:
        names: Full names of the services.
        reception: Surrounds the calls.
    """
    servicer = reflection.aio.ReflectionServicer(names)  # type: ignore[attr-defined]  # public by its documentation

    async def describe(requests: AsyncIterator[ServerReflectionRequest | Malformed], context: Context) -> None:
        valid = (well_formed(request) async for request in requests)
        async for answer in servicer.ServerReflectionInfo(valid, context):
            await context.write(answer)

    read = tolerant(ServerReflectionRequest)
    method = grpc.stream_stream_rpc_method_handler(
        reception.identified(f"/{SERVICE}/{_METHOD}", describe), read, ServerReflectionResponse.SerializeToString
    )
    return grpc.method_handlers_generic_handler(SERVICE, {_METHOD: method})
