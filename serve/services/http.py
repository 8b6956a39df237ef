"""The small HTTP port: `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever restarts and routes.

It runs in the event loop of the server, so `/healthz` fails to answer exactly when that loop is stuck. Requests are
read and answered by uvicorn; connections come to it through `serve.services.http_connections`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable, Iterator

import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from kaem.errors import ConfigError
from serve.address import bare_host, check_address, format_address, listen
from serve.services.http_connections import BACKLOG, Connection, HttpListener

_STOP_GRACE_S = 1
_log = logging.getLogger(__name__)


def monitoring_routes(registry: CollectorRegistry, why_not_ready: Callable[[], str]) -> list[Route]:
    """Return the routes of monitoring.

    Args:
        registry: What `/metrics` shows.
        why_not_ready: Why calls are not let in, "" if they are.
    """

    def metrics(request: Request) -> Response:
        content, content_type = _exposed(registry, request.headers.get("accept", ""))
        return Response(content, headers={"content-type": content_type})

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(request: Request) -> Response:
        reason = why_not_ready()
        return PlainTextResponse(f"the server {reason}\n" if reason else "ok\n", 503 if reason else 200)

    return [Route("/metrics", metrics), Route("/healthz", healthz), Route("/readyz", readyz)]


def _exposed(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """Return the metrics and their content type, in the format that is asked for, or else in the plain one."""
    with contextlib.suppress(Exception):  # the library raises anything at versions that it cannot read
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type
    encode, content_type = choose_encoder("")
    return encode(registry), content_type


class HttpServer:
    """Answers HTTP in the running event loop until it is stopped.

    Args:
        routes: What it answers.
        host: Name or address to listen on.
        port: TCP port, 0 for a free one.
        insecure: Whether other machines may connect without TLS.
        most_connections: At a time.
        tls: Context for HTTPS; None for plain HTTP.
    """

    def __init__(
        self,
        routes: list[Route],
        *,
        host: str,
        port: int,
        insecure: bool,
        most_connections: int,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._host = bare_host(host)
        self._port = port
        self._insecure = insecure
        self._tls = tls
        self._most_connections = most_connections
        # What strangers send is no concern of the log, nor is that this server begins and ends.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._server = _Quiet(
            uvicorn.Config(
                Starlette(routes=routes),
                http=Connection,
                loop="none",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_STOP_GRACE_S,
            )
        )

    async def start(self) -> str:
        """Listen; return the address, `http://host:port`, or `https://` with TLS.

        Raises:
            ConfigError: The address cannot be used.
        """
        check_address(self._host, self._port, insecure=self._insecure or self._tls is not None, option="http-port")
        listeners = listen(self._host, self._port, backlog=BACKLOG, option="http-port")
        self._serving = asyncio.create_task(self._server.serve(sockets=[]))
        while not self._server.started and not self._serving.done():
            await asyncio.sleep(0.005)
        if self._serving.done():
            for listener in listeners:
                listener.close()
            self._serving.result()
            raise ConfigError(f"cannot answer HTTP at {format_address(self._host, self._port)}")
        port = listeners[0].getsockname()[1]
        connections = self._server.server_state.connections
        self._doorway = HttpListener(listeners, self._make, connections, limit=self._most_connections, tls=self._tls)
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://{format_address(self._host, port)}"

    async def stop(self) -> None:
        """Stop, once running answers are complete."""
        await self._doorway.close()
        self._server.should_exit = True
        await self._serving

    def _make(self) -> Connection:
        return Connection(self._server.config, self._server.server_state, self._server.lifespan.state)


class _Quiet(uvicorn.Server):
    """Leaves signals to the server around it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
