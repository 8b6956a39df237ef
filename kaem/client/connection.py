"""What a client shows and demands: certificates for TLS, and a token that proves who it is.

Tokens come from a file or the environment, never from a command line, where every user of the machine could read
them; and they never leave the machine unencrypted.

Connections: the options every kaem client uses, plain or with TLS, for threads and for asyncio.

Connections belong to the process that made them: what samplers say elsewhere instead of waiting for ever.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import grpc

from kaem.client.addresses import Target
from kaem.errors import ConfigError, RequestError

VARIABLES = {
    "ca_file": "KAEM_CA_FILE",
    "certificate_file": "KAEM_CERTIFICATE_FILE",
    "key_file": "KAEM_KEY_FILE",
    "server_name": "KAEM_SERVER_NAME",
    "token_file": "KAEM_TOKEN_FILE",
    "token": "KAEM_TOKEN",
}
"""Environment variable of each field of `Credentials`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Certificates and token of a client; none of them is needed for a server on this machine.

    Attributes:
        ca_file: PEM file of the authorities that may vouch for the server; by default those gRPC brings.
        certificate_file: PEM file of our own certificate (and its chain), for servers that demand one (mTLS).
        key_file: PEM file of that certificate's private key.
        server_name: Name that the server's certificate must carry, where it is not the host we connect to.
        token_file: File that holds the bearer token; read again for every call, so it may be renewed in place.
        token: The bearer token itself.
    """

    ca_file: str | Path | None = None
    certificate_file: str | Path | None = None
    key_file: str | Path | None = None
    server_name: str | None = None
    token_file: str | Path | None = None
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if bool(self.certificate_file) != bool(self.key_file):
            given = "certificate" if self.certificate_file else "key"
            raise ConfigError(f"only a client {given} is given; mTLS needs certificate and key")
        if self.token and self.token_file:
            raise ConfigError("a token and a token file are given", hint="give one of them")
        if self.token:
            _check_token(self.token, "the token")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Return what the environment variables say: KAEM_CA_FILE, KAEM_TOKEN_FILE, ... (see `VARIABLES`).

        Raises:
            ConfigError: They contradict each other.
        """
        return cls(**{name: environ[key] for name, key in VARIABLES.items() if environ.get(key)})

    def check(self, targets: Sequence[Target]) -> None:
        """Check that these credentials may be used with these servers, reading every file once.

        Raises:
            ConfigError: A file cannot be read or used, or the token would travel unencrypted.
        """
        self.metadata()
        if targets[0].is_secure:
            self.channel_credentials()
        elif self.token or self.token_file:
            for target in targets:
                if not target.is_loopback:
                    raise ConfigError(
                        f"the token would travel unencrypted to {target.address}",
                        hint=f"write grpcs://{target.address}",
                    )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Return what gRPC needs for TLS.

        Raises:
            ConfigError: A file cannot be read, is not PEM, or key and certificate do not belong together.
        """
        authorities = _read("CA file", self.ca_file)
        chain = _read("client certificate", self.certificate_file)
        key = _read("client key", self.key_file)
        # gRPC itself would only say that it failed to create a handshaker.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if authorities is not None:
            try:
                context.load_verify_locations(cadata=authorities.decode("ascii"))
            except (ssl.SSLError, ValueError):
                raise ConfigError(f"the CA file {self.ca_file} holds no PEM certificate") from None
        if self.certificate_file and self.key_file:
            try:
                # A key that is locked must not stop to ask a human for its password.
                context.load_cert_chain(self.certificate_file, self.key_file, password=lambda: b"")
            except (ssl.SSLError, ValueError) as error:
                raise ConfigError(
                    f"client certificate {self.certificate_file} and key {self.key_file} cannot be used "
                    f"together: {getattr(error, 'reason', None) or error}",
                    hint="give PEM files of one pair, the key without a password",
                ) from None
        return grpc.ssl_channel_credentials(authorities, key, chain)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata of one call that carries the token; empty without one.

        Raises:
            ConfigError: The token file cannot be read or holds no token.
        """
        token = self.token
        if self.token_file:
            content = _read("token file", self.token_file) or b""
            token = content.decode("utf-8", "replace").strip()
            _check_token(token, f"the content of {self.token_file}")
        return (("authorization", f"Bearer {token}"),) if token else ()


def _read(what: str, path: str | Path | None) -> bytes | None:
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot read the {what} {path}: {reason}") from None


def _check_token(token: str, what: str) -> None:
    # Never with its value: errors end up in logs.
    if not token or not all("!" <= letter <= "~" for letter in token):
        raise ConfigError(f"{what} is no bearer token: it must be one word of visible ASCII characters")


PING_AFTER_S = 10.0
"""Silence after which a connection is tried by a ping."""
PING_ANSWER_S = 10.0
"""How long the answer may take before the connection is left."""

Options = tuple[tuple[str, str | int], ...]

_OPTIONS: Options = (
    # Chunks stay below gRPC's default of 4 MiB; a manifest with many densities for plotting may not.
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.enable_retries", 0),  # repeated by the client instead, where a stream can resume in its middle
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),  # a fresh connection does not inherit another one's backoff
)


def open_channel(target: Target, credentials: Credentials) -> grpc.Channel:
    """Open a connection for threads.

    Raises:
        ConfigError: A certificate or key cannot be used.
    """
    if target.is_secure:
        return grpc.secure_channel(target.address, credentials.channel_credentials(), _options(target, credentials))
    return grpc.insecure_channel(target.address, _options(target, credentials))


def open_async_channel(target: Target, credentials: Credentials) -> grpc.aio.Channel:
    """Open a connection for the running event loop.

    Raises:
        ConfigError: A certificate or key cannot be used.
    """
    if target.is_secure:
        return grpc.aio.secure_channel(target.address, credentials.channel_credentials(), _options(target, credentials))
    return grpc.aio.insecure_channel(target.address, _options(target, credentials))


def channel_options(target: Target) -> Options:
    """Return the options of any connection to a server.

    A connection that has died without a word is noticed by a ping that is not answered, and left: also between calls,
    so that the next call does not have to find out.
    """
    straight = (("grpc.enable_http_proxy", 0),) if target.proxy_variable is None else ()
    return (
        *_OPTIONS,
        ("grpc.keepalive_time_ms", round(1e3 * PING_AFTER_S)),
        ("grpc.keepalive_timeout_ms", round(1e3 * PING_ANSWER_S)),
        ("grpc.http2.ping_timeout_ms", round(1e3 * PING_ANSWER_S)),  # a minute otherwise, and it counts instead
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        *straight,
    )


def _options(target: Target, credentials: Credentials) -> Options:
    options = channel_options(target)
    if credentials.server_name:
        return (*options, ("grpc.ssl_target_name_override", credentials.server_name))
    return options


def check_process(process: int) -> None:
    """Check that this is still the process that connected.

    Args:
        process: Its id.

    Raises:
        RequestError: This one was forked from it.
    """
    if os.getpid() != process:
        raise RequestError(
            "this sampler was connected before this process was forked, and a connection cannot be shared",
            hint="connect in the child: kaem.connect(...)",
        )


def not_picklable() -> RequestError:
    """Return the error of a sampler that is to be pickled."""
    return RequestError(
        "a connected sampler cannot be pickled: its connections and its token belong to this process",
        hint="send the address, and connect where it arrives: kaem.connect(...)",
    )
