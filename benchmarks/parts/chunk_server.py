"""A gRPC server whose chunks hold bytes and no images: a process of its own, until its standard input is closed."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import grpc

from kaem.protocol import kaem_pb2, kaem_pb2_grpc


class Bytes(kaem_pb2_grpc.SamplerServicer):
    """Answers with chunks of `seed` bytes each."""

    def Sample(self, request, context):  # noqa: N802
        return kaem_pb2.Chunk(start_index=0, count=1, data=bytes(request.seed))

    def StreamSamples(self, request, context):  # noqa: N802
        data = bytes(request.seed)
        for index in range(request.count):
            yield kaem_pb2.Chunk(start_index=index, count=1, data=data)


def main() -> None:
    server = grpc.server(ThreadPoolExecutor(2))
    kaem_pb2_grpc.add_SamplerServicer_to_server(Bytes(), server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()
    server.stop(0).wait()


if __name__ == "__main__":
    main()
