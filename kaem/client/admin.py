"""Looking after a running server: what it serves, loading and unloading models, shutting it down.

Calls go to the server's admin socket (`kaem serve --admin`), which is not the port that clients use.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import grpc

from kaem.client.addresses import Target, parse_admin_address
from kaem.client.connection import channel_options
from kaem.client.plan import failure_of
from kaem.errors import KaemError, RemoteError
from kaem.protocol import admin_pb2, admin_pb2_grpc
from kaem.validation import check_version

_TIMEOUT_S = 10.0
_LOAD_TIMEOUT_S = 600.0  # of a call that waits for models to be loaded and warmed


class Admin:
    """A connection to a server's admin socket.

    Args:
        address: `unix:PATH` or `HOST:PORT`.
        timeout_s: How long to wait for an answer; by default ten seconds, and ten minutes while models are loaded.

    Raises:
        ConfigError: The address cannot be read.
    """

    def __init__(self, address: str, *, timeout_s: float | None = None) -> None:
        self._target = Target(parse_admin_address(address))
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(self._target.address, channel_options(self._target))
        self._stub = admin_pb2_grpc.AdminStub(self._channel)  # type: ignore[no-untyped-call]

    def list(self) -> tuple[admin_pb2.ModelVersion, ...]:
        """Return every version of every model.

        Raises:
            RemoteError: Nothing answers there.
        """
        return self._models("ListModels", admin_pb2.ListModelsRequest(), _TIMEOUT_S)

    def reload(self) -> tuple[admin_pb2.ModelVersion, ...]:
        """Let the server look at its files again; return how things are then.

        Raises:
            KaemError: Something cannot be loaded, and why; all else was done.
        """
        return self._models("ReloadModels", admin_pb2.ReloadModelsRequest(), _LOAD_TIMEOUT_S)

    def load(self, name: str, version: int = 0) -> tuple[admin_pb2.ModelVersion, ...]:
        """Load a version of a model, by default the newest; return how things are then.

        Raises:
            RequestError: There is no such file.
            KaemError: It cannot be loaded, and why.
        """
        request = admin_pb2.LoadModelRequest(name=name, version=check_version(version))
        return self._models("LoadModel", request, _LOAD_TIMEOUT_S)

    def unload(self, name: str, version: int = 0) -> tuple[admin_pb2.ModelVersion, ...]:
        """Unload a version of a model, by default all of them; return how things are then.

        Raises:
            RequestError: It is not served.
        """
        request = admin_pb2.UnloadModelRequest(name=name, version=check_version(version))
        return self._models("UnloadModel", request, _LOAD_TIMEOUT_S)

    def drain(self) -> None:
        """Shut the server down once its running requests are complete; returns before that.

        Raises:
            RemoteError: Nothing answers there.
        """
        self._call("Drain", admin_pb2.DrainRequest(), _TIMEOUT_S)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _models(self, method: str, request: Any, timeout_s: float) -> tuple[admin_pb2.ModelVersion, ...]:
        return tuple(self._call(method, request, timeout_s).models)

    def _call(self, method: str, request: Any, timeout_s: float) -> Any:
        try:
            return getattr(self._stub, method)(request, timeout=self._timeout_s or timeout_s)
        except grpc.RpcError as error:
            raise self._error_of(error) from None

    def _error_of(self, error: Any) -> KaemError:
        address = self._target.address
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return RemoteError(f"{address} is no admin socket", hint="name the one that kaem serve --admin names")
        failure = failure_of(error, self._target)
        if failure.is_unreachable and failure.may_pass:
            return RemoteError(f"no server answers at {address}", hint=f"start one with: kaem serve --admin {address}")
        return failure.error
