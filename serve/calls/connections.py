"""Connections of clients: how long they last, who notices that one has died, and how many calls may come at once."""

from __future__ import annotations

import math

from serve.settings import ServeSettings

_LEAST_PING_S = 1.0  # clients ping every ten seconds, as kaem's do, or more often; this is for none but floods
_PING_ANSWER_S = 20.0


def connection_options(settings: ServeSettings) -> tuple[tuple[str, int], ...]:
    """Return gRPC's options of every connection that a server accepts."""
    return (
        # gRPC's own rule lets idle clients ping once in five minutes, and ends the connection of one that does more.
        ("grpc.http2.min_ping_interval_without_data_ms", _milliseconds(_LEAST_PING_S)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # A client that is gone without a word is found out, and what is held for it given back.
        ("grpc.keepalive_time_ms", _milliseconds(settings.keepalive)),
        ("grpc.keepalive_timeout_ms", _milliseconds(_PING_ANSWER_S)),
        ("grpc.http2.ping_timeout_ms", _milliseconds(_PING_ANSWER_S)),  # a minute otherwise, and it counts instead
        # Python looks at two or three thousand calls a second, and each that it looks at, be it to refuse it, takes the
        # time of another's answer. gRPC's core ends those beyond at a hundredth of the cost, before they grow old.
        ("grpc.server.max_pending_requests", settings.max_pending_calls),
        ("grpc.server.max_pending_requests_hard_limit", settings.max_pending_calls),
        # Clients connect again from time to time, so that new servers get their share; what runs may complete.
        ("grpc.max_connection_age_ms", _milliseconds(settings.max_connection_age)),
        ("grpc.max_connection_age_grace_ms", _milliseconds(settings.max_connection_grace)),
    )


def _milliseconds(seconds: float) -> int:
    """Return a time as gRPC has it, where the largest number stands for ever."""
    return (1 << 31) - 1 if math.isinf(seconds) else min((1 << 31) - 1, max(1, round(1e3 * seconds)))
