"""Where the admin service listens: a Unix socket that only its owner may open, or a port of this machine.

It is never the clients' port, and no other machine reaches it. Who can open the socket may do everything, so the file
is what protects it: mode 0600 from the moment it exists.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import grpc

from kaem.client.addresses import UNIX_SCHEME, parse_admin_address
from kaem.errors import AddressInUseError, ConfigError
from serve.address import check_address, why_not_bound

_STOP_GRACE_S = 0.5


class AdminPort:
    """A gRPC server of one service, on an address of its own.

    Args:
        address: `unix:PATH`, or `HOST:PORT` with a loopback host; port 0 takes a free one.
        handler: The service.
    """

    def __init__(self, address: str, handler: grpc.GenericRpcHandler[object, object]) -> None:
        self._address = parse_admin_address(address)
        self._handler = handler
        self._socket: tuple[Path, tuple[int, int]] | None = None  # ours and its inode, once there is one

    async def start(self) -> str:
        """Listen.

        Returns:
            The address, as clients write it.

        Raises:
            ConfigError: The address cannot be used.
        """
        self._grpc = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        self._grpc.add_generic_rpc_handlers((self._handler,))
        bound = self._bind_unix() if self._address.startswith(UNIX_SCHEME) else self._bind_tcp()
        await self._grpc.start()
        return bound

    async def stop(self) -> None:
        """Stop, once running calls are answered or a moment has passed."""
        await self._grpc.stop(_STOP_GRACE_S)
        if self._socket is not None:
            path, inode = self._socket
            if _inode(path) == inode:  # otherwise it is already that of the next server
                path.unlink(missing_ok=True)

    def _bind_tcp(self) -> str:
        host, _, port = self._address.rpartition(":")
        bare = host.strip("[]")
        check_address(bare, int(port), insecure=False, option="admin")
        try:
            return f"{host}:{self._grpc.add_insecure_port(self._address)}"
        except RuntimeError:
            raise why_not_bound(bare, int(port)) from None

    def _bind_unix(self) -> str:
        path = Path(self._address.removeprefix(UNIX_SCHEME))
        _remove_stale(path)
        try:
            with _only_for_its_owner():
                self._grpc.add_insecure_port(self._address)
        except RuntimeError:  # which does not say why
            raise ConfigError(
                f"cannot listen on {self._address}", hint="does the folder exist, and may you write there?"
            ) from None
        self._socket = path, _inode(path)
        return self._address


def _inode(path: Path) -> tuple[int, int]:
    try:
        found = path.lstat()
    except OSError:
        return (0, 0)
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def _only_for_its_owner() -> Iterator[None]:
    """Let files made in this block have mode 0600; the server has no other threads that make files now."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody answers on any more, which a server that was killed has left.

    Raises:
        ConfigError: Somebody does, or it is no socket.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(f"{path} exists and is no socket", hint="choose another path with --admin")
    except OSError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot use the socket {path}: {error.strerror}") from None
        else:
            raise AddressInUseError(f"a server is listening on {path}", hint="choose another path with --admin")
