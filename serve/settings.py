"""What an operator decides about a server, validated once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kaem.errors import ConfigError
from kaem.protocol.messages import MAX_MESSAGE_BYTES, MESSAGE_HEADROOM
from kaem.providers import PROVIDERS

_MAX_NAME_CHARS = 128  # it travels in errors, hints and health requests


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """Settings of one server.

    Attributes:
        host: Name or address to listen on; anything but a loopback address needs `insecure`.
        port: TCP port, 0 for a free one.
        name: Name under which the model is offered; None for the name in its manifest.
        provider: Where images are computed: "cpu", "cuda" or "ort-tensorrt".
        workers: Threads that share each batch by rows; None for one per available core.
        max_batch: Rows computed together; None for as many as keep every worker busy.
        max_chunk_bytes: Bytes of images in one message; one image that is larger travels alone.
        drain_grace_s: Seconds that running calls get to complete once the server is asked to stop.
        insecure: Allow listening beyond this machine although nothing is encrypted or authenticated.
    """

    host: str = "127.0.0.1"
    port: int = 50051
    name: str | None = None
    provider: str = "cpu"
    workers: int | None = None
    max_batch: int | None = None
    max_chunk_bytes: int = 1 << 20
    drain_grace_s: float = 30.0
    insecure: bool = False

    def __post_init__(self) -> None:
        if not self.host:
            raise ConfigError("host is empty", hint="use 127.0.0.1")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}, outside 0 .. 65535", hint="0 takes a free port")
        if self.name is not None:
            check_name(self.name)
        if self.provider not in PROVIDERS:
            raise ConfigError(f"unknown provider {self.provider!r}", hint=f"choose one of: {', '.join(PROVIDERS)}")
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers is {self.workers}; at least 1 is needed")
        if self.max_batch is not None and not 1 <= self.max_batch <= 1 << 16:
            raise ConfigError(f"max_batch is {self.max_batch}, outside 1 .. 65536 rows")
        if not 1 << 10 <= self.max_chunk_bytes <= MAX_MESSAGE_BYTES - MESSAGE_HEADROOM:
            raise ConfigError(
                f"max_chunk_bytes is {self.max_chunk_bytes}, outside 1024 .. {MAX_MESSAGE_BYTES - MESSAGE_HEADROOM}"
            )
        if not (math.isfinite(self.drain_grace_s) and self.drain_grace_s >= 0):
            raise ConfigError(f"drain_grace_s is {self.drain_grace_s}; give 0 seconds or more")


def check_name(name: str) -> None:
    """Check that a model can be offered under a name: short, and nothing in it that a terminal would obey.

    Raises:
        ConfigError: It cannot.
    """
    if not 1 <= len(name) <= _MAX_NAME_CHARS or not name.isprintable():
        raise ConfigError(
            f"cannot offer a model under the name {name[:_MAX_NAME_CHARS]!r}",
            hint=f"give another with --name: 1 to {_MAX_NAME_CHARS} printable characters",
        )
