"""grpc.health.v1 with Check and Watch, whose open Watch streams can be ended by the server itself.

The stock servicer cannot end them, and one load balancer's Watch would hold every shutdown for the whole grace.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serve.calls import Context

SERVICE = "grpc.health.v1.Health"
_Response = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the base is untyped
    """One state shared by a fixed set of names; NOT_SERVING until told otherwise.

    Args:
        names: Every name that has a health: "", services, models.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._is_serving = False
        self._is_ended = False
        self._changed = asyncio.Event()

    def set_serving(self, is_serving: bool) -> None:
        """Set the state of all names and tell the watchers."""
        self._is_serving = is_serving
        self._notify()

    def end_watches(self) -> None:
        """Complete every open Watch stream, and any opened later, after its current state was sent."""
        self._is_ended = True
        self._notify()

    async def Check(  # noqa: N802  (gRPC's name)
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """Answer the state of a name; NOT_FOUND for an unknown one."""
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service or model named {request.service!r}")
        return _Response(status=self._status(request.service))

    async def Watch(  # noqa: N802  (gRPC's name)
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> None:
        """Send the state of a name now and whenever it changes; SERVICE_UNKNOWN for an unknown one."""
        sent = None
        while True:
            changed, status = self._changed, self._status(request.service)
            if status != sent:
                await context.write(_Response(status=status))
                sent = status
            if self._is_ended:
                return
            await changed.wait()

    def _status(self, name: str) -> int:
        if name not in self._names:
            return int(_Response.SERVICE_UNKNOWN)
        return int(_Response.SERVING if self._is_serving else _Response.NOT_SERVING)

    def _notify(self) -> None:
        previous, self._changed = self._changed, asyncio.Event()
        previous.set()
