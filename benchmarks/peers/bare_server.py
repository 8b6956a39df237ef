"""The least a gRPC server of the same library can do: answer the same bytes at once. It takes the transport's time."""

from __future__ import annotations

import asyncio
import sys

import grpc

from kaem.protocol import kaem_pb2

ROW_BYTES = int(sys.argv[1])


async def main() -> None:
    """Serve StreamSamples until terminated; print the address."""

    async def stream_samples(request: kaem_pb2.SampleRequest, context: grpc.aio.ServicerContext) -> None:
        await context.write(kaem_pb2.Chunk(count=request.count, data=bytes(request.count * ROW_BYTES)))

    method = grpc.unary_stream_rpc_method_handler(
        stream_samples, kaem_pb2.SampleRequest.FromString, kaem_pb2.Chunk.SerializeToString
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("kaem.v1.Sampler", {"StreamSamples": method}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


asyncio.run(main())
