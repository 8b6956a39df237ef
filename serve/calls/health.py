"""grpc.health.v1 with Check and Watch, whose open Watch streams can be ended by the server itself.

The stock servicer cannot end them, and one load balancer's Watch would hold every shutdown for the whole grace.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import grpc
from grpc_health.v1 import health_pb2

from kaem.errors import RequestError
from serve.calls.interceptor import Context, Malformed, Reception, tolerant, well_formed
from serve.statuses import RefusedError

SERVICE = "grpc.health.v1.Health"
_Response = health_pb2.HealthCheckResponse


class Health:
    """One state shared by a set of names, NOT_SERVING until told otherwise, and names that are worse off.

    Args:
        names: Every name that has a health from the start: "", services.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = set(names)
        self._down: set[str] = set()  # NOT_SERVING, whatever the others are
        self._is_serving = False
        self._is_ended = False
        self._changed = asyncio.Event()

    def set_serving(self, is_serving: bool) -> None:
        """Set the state of all names and tell the watchers."""
        self._is_serving = is_serving
        self._notify()

    def add(self, name: str) -> None:
        """Give a name a health from now on."""
        if name not in self._names:
            self._names.add(name)
            self._notify()

    def remove(self, name: str) -> None:
        """Know a name no more."""
        if name in self._names:
            self._names.remove(name)
            self._down.discard(name)
            self._notify()

    def set_up(self, name: str, is_up: bool) -> None:
        """Let a name say NOT_SERVING while the others serve, or no longer."""
        if is_up == (name in self._down):
            (self._down.discard if is_up else self._down.add)(name)
            self._notify()

    def end_watches(self) -> None:
        """Complete every open Watch stream, and any opened later, after its current state was sent."""
        self._is_ended = True
        self._notify()

    def handler(self, reception: Reception) -> grpc.GenericRpcHandler[object, object]:
        """Return the methods; built by hand so that requests are read tolerantly."""
        read, write = tolerant(health_pb2.HealthCheckRequest), _Response.SerializeToString
        methods = {
            "Check": grpc.unary_unary_rpc_method_handler(
                reception.answered(f"/{SERVICE}/Check", self.check), read, write
            ),
            "Watch": grpc.unary_stream_rpc_method_handler(
                reception.answered(f"/{SERVICE}/Watch", reception.lasting(self.watch)), read, write
            ),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def check(self, request: health_pb2.HealthCheckRequest | Malformed, context: Context) -> object:
        """Answer the state of a name; NOT_FOUND for an unknown one."""
        name = well_formed(request).service
        if name not in self._names:
            error = RequestError(f"no service or model named {name!r}")
            raise RefusedError(grpc.StatusCode.NOT_FOUND, error, field="service")
        return _Response(status=self._status(name))

    async def watch(self, request: health_pb2.HealthCheckRequest | Malformed, context: Context) -> None:
        """Send the state of a name now and whenever it changes; SERVICE_UNKNOWN for an unknown one."""
        name = well_formed(request).service
        sent = None
        while True:
            changed, status = self._changed, self._status(name)
            if status != sent:
                await context.write(_Response(status=status))
                sent = status
            if self._is_ended:
                return
            await changed.wait()

    def _status(self, name: str) -> int:
        if name not in self._names:
            return int(_Response.SERVICE_UNKNOWN)
        return int(_Response.SERVING if self._is_serving and name not in self._down else _Response.NOT_SERVING)

    def _notify(self) -> None:
        previous, self._changed = self._changed, asyncio.Event()
        previous.set()
