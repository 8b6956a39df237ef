"""Connections: the options every kaem client uses, plain or with TLS, for threads and for asyncio."""

from __future__ import annotations

import grpc

from kaem.client.addresses import Target
from kaem.client.credentials import Credentials

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
