"""Where a server may listen: checks of host and port that give better answers than a failed bind."""

from __future__ import annotations

import errno
import ipaddress
import socket

from kaem.errors import ConfigError


def check_address(host: str, port: int, *, insecure: bool, option: str = "port") -> None:
    """Check that a server may and can listen here, before gRPC tries and only says that it failed.

    Args:
        host: Name or address.
        port: TCP port, 0 for a free one.
        insecure: Whether addresses that other machines reach are allowed: there is TLS, or it was asked for.
        option: The setting that chose the port.

    Raises:
        ConfigError: The host is unknown, not this machine's, reachable by others, or the port is taken.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f"cannot resolve host {host!r}: {error}", hint="use 127.0.0.1 or 0.0.0.0") from None
    addresses = {str(address[0]): (family, address) for family, _, _, _, address in found}
    public = [name for name in addresses if not ipaddress.ip_address(name.partition("%")[0]).is_loopback]
    if public and not insecure:
        raise ConfigError(
            f"{host} ({public[0]}) is reachable by other machines, and nothing is encrypted or authenticated",
            hint="listen on 127.0.0.1, give --certificate-file and --key-file, or accept the risk with --insecure",
        )
    failures = [error for error in (_try_bind(*entry) for entry in addresses.values()) if error is not None]
    if any(error.errno == errno.EADDRINUSE for error in failures):
        raise ConfigError(f"port {port} of {host} is in use", hint=f"choose another with --{option}, or --{option} 0")
    if len(failures) == len(addresses):
        raise ConfigError(f"cannot listen on {format_address(host, port)}: {failures[0].strerror}")


def why_not_bound(host: str, port: int) -> ConfigError:
    """Return why gRPC could not listen on an address that had passed `check_address`."""
    try:
        check_address(host, port, insecure=True)
    except ConfigError as error:  # taken since then
        return error
    return ConfigError(
        f"gRPC cannot listen on {format_address(host, port)}", hint="write the address in full, as in 127.0.0.1 or ::1"
    )


def bare_host(host: str) -> str:
    """Return a host without the brackets an IPv6 address may come in."""
    return host.removeprefix("[").removesuffix("]") if ":" in host else host


def format_address(host: str, port: int) -> str:
    """Return `host:port`, with the brackets an IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _try_bind(family: int, address: object) -> OSError | None:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)  # type: ignore[arg-type]  # whatever getaddrinfo gave for this family
    except OSError as error:
        return error
    return None
