"""What an operator decides about a server, validated once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kaem.errors import ConfigError
from kaem.protocol.messages import MAX_MESSAGE_BYTES, MESSAGE_HEADROOM
from kaem.providers import PROVIDERS
from serve.scheduler import Bounds

_LEAST_HELD_BYTES = 4 * MAX_MESSAGE_BYTES  # half of it is for what every request may always hold: two messages
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
        max_batch: Rows computed together; None for as many as make batches more efficient, by measurement.
        max_chunk_bytes: Bytes of images in one message; one image that is larger travels alone.
        interactive_samples: Requests of at most so many samples are interactive: they go before larger ones.
        max_queue_samples: Samples that may wait for a batch, of each request at most a full one; requests beyond are
            refused.
        max_held_bytes: Bytes of images that all requests together may hold for their readers.
        max_queue_delay_us: Microseconds that a batch which is not full waits for more samples.
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
    interactive_samples: int = 64
    max_queue_samples: int = 1 << 20
    max_held_bytes: int = 1 << 30
    max_queue_delay_us: int = 0
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
        if self.interactive_samples < 0:
            raise ConfigError(f"interactive_samples is {self.interactive_samples}; give 0 or more")
        if self.max_queue_samples < 1:
            raise ConfigError(f"max_queue_samples is {self.max_queue_samples}; at least 1 is needed")
        if self.max_held_bytes < _LEAST_HELD_BYTES:
            raise ConfigError(
                f"max_held_bytes is {self.max_held_bytes}; at least {_LEAST_HELD_BYTES} are needed",
                hint="one reader of the largest messages needs them",
            )
        if not 0 <= self.max_queue_delay_us <= 1_000_000:
            raise ConfigError(f"max_queue_delay_us is {self.max_queue_delay_us}, outside 0 .. 1000000 microseconds")
        if not (math.isfinite(self.drain_grace_s) and self.drain_grace_s >= 0):
            raise ConfigError(f"drain_grace_s is {self.drain_grace_s}; give 0 seconds or more")

    @property
    def bounds(self) -> Bounds:
        """What may wait and be held."""
        return Bounds(
            max_queue_samples=self.max_queue_samples,
            max_held_bytes=self.max_held_bytes,
            max_delay_s=1e-6 * self.max_queue_delay_us,
            interactive_turn=self.interactive_samples,
        )


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
