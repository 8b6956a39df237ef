"""Where servers are: `grpc://host:port`, `grpcs://host:port`, several of them with commas or as a sequence."""

from __future__ import annotations

import ipaddress
import os
import re
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass

from kaem.errors import ConfigError

_TARGET = re.compile(
    r"(?:(?P<scheme>grpcs?)://)?(?P<host>[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?|\[[^]]+\]):(?P<port>[0-9]{1,5})/?",
    re.ASCII | re.IGNORECASE,
)

UNIX_SCHEME = "unix:"

PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
"""Where gRPC looks for a proxy, the first that is set."""

_MAX_PATH_BYTES = 107  # of a Unix socket, on Linux


@dataclass(frozen=True, slots=True)
class Target:
    """One server.

    Attributes:
        address: `host:port`; the host of an IPv6 address in brackets.
        is_secure: Whether to speak TLS (`grpcs://`).
    """

    address: str
    is_secure: bool = False

    @property
    def is_loopback(self) -> bool:
        """Whether nothing sent there leaves this machine."""
        if self.address.startswith(UNIX_SCHEME):
            return True
        try:
            address = ipaddress.ip_address(self._host)
        except ValueError:
            return self._host.rstrip(".") == "localhost"
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback

    @property
    def proxy_variable(self) -> str | None:
        """Environment variable whose proxy a connection goes through; None if it goes straight there.

        Nothing on this machine is reached through a proxy, whatever the environment says, nor is a host that
        `no_proxy` names: by itself, by the domain it is in, or by "*".
        """
        if self.is_loopback or any(_is_spared(host) for host in (self._host, self.address)):
            return None
        return next((name for name in PROXY_VARIABLES if os.environ.get(name)), None)

    @property
    def _host(self) -> str:
        return self.address.rpartition(":")[0].strip("[]").lower()


def parse_targets(targets: str | Sequence[str]) -> tuple[Target, ...]:
    """Read the addresses of one server or of several.

    Args:
        targets: `grpc://host:port` (or just `host:port`), `grpcs://host:port` for TLS; several separated by
            commas, or as a sequence.

    Raises:
        ConfigError: One is not an address, two are the same, or some use TLS and others do not.
    """
    if isinstance(targets, str):
        texts = [text.strip(" ") for text in targets.split(",")]
    elif isinstance(targets, Sequence) and not isinstance(targets, bytes) and len(targets):
        texts = list(targets)
    else:
        raise _unreadable(targets)
    found = tuple(_parse_target(text) for text in texts)
    addresses = [target.address for target in found]
    if len(set(addresses)) < len(addresses):
        raise ConfigError(f"a server is named twice: {', '.join(addresses)}")
    if len({target.is_secure for target in found}) > 1:
        raise ConfigError("some servers are to be reached by TLS and some not", hint="write grpcs:// before each")
    return found


def parse_admin_address(text: str) -> str:
    """Return an address of an admin socket as gRPC has it.

    Args:
        text: `unix:PATH`, or `HOST:PORT` with a host that only this machine reaches.

    Raises:
        ConfigError: It is neither.
    """
    if text.startswith(UNIX_SCHEME):
        path = text.removeprefix(UNIX_SCHEME)
        if not path or "\0" in path or len(os.fsencode(path)) > _MAX_PATH_BYTES:
            raise ConfigError(
                f"{text!r} names no path of 1 to {_MAX_PATH_BYTES} bytes", hint="write unix:/run/kaem.sock"
            )
        return text
    parts = _TARGET.fullmatch(text)
    if parts is None or parts["scheme"] or not int(parts["port"]) <= 65535 or not _is_host(parts["host"]):
        raise ConfigError(f"cannot read {text!r} as an admin address", hint="write unix:PATH or 127.0.0.1:PORT")
    if not Target(text).is_loopback:
        raise ConfigError(
            f"other machines could reach {text}, and nothing is encrypted there",
            hint="write unix:PATH or 127.0.0.1:PORT",
        )
    return text


def _parse_target(text: object) -> Target:
    parts = _TARGET.fullmatch(text) if isinstance(text, str) else None
    if parts is None or not 1 <= int(parts["port"]) <= 65535 or not _is_host(parts["host"]):
        raise _unreadable(text)
    return Target(f"{parts['host']}:{parts['port']}", (parts["scheme"] or "").lower() == "grpcs")


def _is_spared(host: str) -> bool:
    """Whether the environment says that a host is reached without a proxy; gRPC itself knows fewer ways to say so."""
    variables = ("no_grpc_proxy", "no_proxy", "NO_PROXY")
    spared = next((text for text in map(os.environ.get, variables) if text), "")
    return bool(urllib.request.proxy_bypass_environment(host, {"no": spared}))  # type: ignore[attr-defined]


def _unreadable(text: object) -> ConfigError:
    return ConfigError(f"cannot read {text!r} as the address of a server", hint="write grpc://host:port")


def _is_host(text: str) -> bool:
    """Whether the brackets of a host, if it has any, hold an IPv6 address."""
    if not text.startswith("["):
        return True
    try:
        ipaddress.IPv6Address(text[1:-1])
    except ValueError:
        return False
    return True
