"""Where a server may listen: checks of host and port that give better answers than a failed bind."""

from __future__ import annotations

import errno
import ipaddress
import socket

from kaem.errors import AddressInUseError, ConfigError

_TRIES = 16  # for a port that is free on all addresses


def check_address(host: str, port: int, *, insecure: bool, option: str = "port") -> None:
    """Check that a server may and can listen here, before gRPC tries and only says that it failed.

    Args:
        host: Name or address.
        port: TCP port, 0 for a free one.
        insecure: Whether addresses that other machines reach are allowed: there is TLS, or it was asked for.
        option: The setting that chose the port.

    Raises:
        ConfigError: The host is unknown, not this machine's, or reachable by others.
        AddressInUseError: The port is taken.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f"cannot resolve host {host!r}: {error}", hint="use 127.0.0.1 or 0.0.0.0") from None
    addresses = {str(address[0]): (family, address) for family, _, _, _, address in found}
    public = [name for name in addresses if not ipaddress.ip_address(_bare((name,))).is_loopback]
    if public and not insecure:
        raise ConfigError(
            f"{host} ({public[0]}) is reachable by other machines, and nothing is encrypted or authenticated",
            hint="listen on 127.0.0.1, give --certificate-file and --key-file, or accept the risk with --insecure",
        )
    failures = [error for error in (_try_bind(*entry) for entry in addresses.values()) if error is not None]
    if any(error.errno == errno.EADDRINUSE for error in failures):
        hint = f"wait, or choose another with --{option}, or --{option} 0"
        raise AddressInUseError(f"port {port} of {host} is in use", hint=hint)
    if len(failures) == len(addresses):
        raise ConfigError(f"cannot listen on {format_address(host, port)}: {failures[0].strerror}")


def listen(host: str, port: int, *, backlog: int, option: str) -> list[socket.socket]:
    """Listen on every address of a host that this machine has, all of them at one port.

    Args:
        host: Name or address; `::` stands for all of IPv4 too.
        port: TCP port, 0 for one that is free on all of them.
        backlog: Connections that may wait to be accepted.
        option: The setting that chose the port.

    Returns:
        Sockets that do not block, at least one.

    Raises:
        ConfigError: None of them can be listened on, or the port is taken on one.
    """
    for _ in range(_TRIES):
        try:
            return _listen(host, port, backlog)
        except OSError as error:
            failure = error
            if port or error.errno != errno.EADDRINUSE:  # a free port of one address may be taken on the next
                break
    check_address(host, port, insecure=True, option=option)  # says it better, unless it is over by now
    raise ConfigError(
        f"cannot listen on {format_address(host, port)}: {failure.strerror}", hint=f"choose another with --{option}"
    )


def _listen(host: str, port: int, backlog: int) -> list[socket.socket]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listeners: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
            taken = listeners[0].getsockname()[1] if listeners else port
            try:
                listener = socket.create_server(
                    (address[0], taken, *address[2:]),
                    family=family,
                    backlog=backlog,
                    dualstack_ipv6=family is socket.AF_INET6 and ipaddress.ip_address(_bare(address)).is_unspecified,
                )
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error  # a name may have addresses of a family that is switched off
                continue
            listener.setblocking(False)
            listeners.append(listener)
        if not listeners:
            raise missing or OSError(errno.EADDRNOTAVAIL, "it has no address")
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


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


def _bare(address: tuple[object, ...]) -> str:
    """Return the address itself, without the zone that an IPv6 one may have."""
    return str(address[0]).partition("%")[0]


def _try_bind(family: int, address: object) -> OSError | None:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)  # type: ignore[arg-type]  # whatever getaddrinfo gave for this family
    except OSError as error:
        return error
    return None
