"""What an operator decides about a server, validated once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kaem.client.addresses import parse_admin_address
from kaem.engines.providers import PROVIDERS
from kaem.engines.workers import MOST_WORKERS
from kaem.errors import ConfigError
from kaem.protocol.messages import MAX_MESSAGE_BYTES, MESSAGE_HEADROOM
from serve.devices.devices import parse_devices
from serve.scheduling.demand import CALL_BYTES, Bounds

_LEAST_HELD_BYTES = 6 * MAX_MESSAGE_BYTES  # half is for what requests may always hold: two messages and one that came
_STREAM_SHARE, _LEAST_STREAMS = 16, 64
LOG_FORMATS = ("text", "json")
_PROVIDERS = (*PROVIDERS, "tensorrt")

_MAX_NAME_CHARS = 128  # it travels in errors, hints and health requests


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """Settings of one server.

    Attributes:
        host: Name or address to listen on; anything but a loopback address needs `insecure`.
        port: TCP port, 0 for a free one.
        name: Name under which the model of one file is offered; None for the name in its manifest.
        poll_models_s: Seconds between two looks for new, changed and removed models; None for none.
        admin: Where the admin service listens, `unix:PATH` or a port of this machine; None for nowhere.
        provider: Where images are computed: "cpu", "cuda", "ort-tensorrt" or "tensorrt".
        device: Devices that compute instead, each in a process of its own, such as "cuda:0,cuda:1"; see
            `serve.devices.devices`.
        workers: Threads that share each batch by rows; None for one per available core, shared by processes on a CPU.
        max_batch: Rows computed together; None for as many as make batches more efficient, by measurement.
        max_chunk_bytes: Bytes of images in one message; one image that is larger travels alone.
        interactive_samples: Requests of at most so many samples are interactive: they go before larger ones.
        max_queue_samples: Samples that may wait for a batch, of each request at most a full one; requests beyond are
            refused.
        max_pending_calls: Calls that may wait until the server looks at them, before their requests are read; gRPC
            ends calls beyond with CANCELLED.
        max_held_bytes: Bytes that all calls together may hold: images for their readers, what was sent along, and what
            each open call takes.
        max_queue_delay_us: Microseconds that a batch which is not full waits for more samples.
        keepalive_s: Seconds of silence after which a client's connection is tried by a ping; inf for never.
        max_connection_age_s: Seconds after which a client is asked to connect again, give or take a tenth, so that new
            servers get a share; inf for never.
        max_connection_grace_s: Seconds that calls then still get to complete; inf for as long as they take.
        drain_grace_s: Seconds that the whole shutdown may take, running calls included.
        insecure: Allow listening beyond this machine although nothing is encrypted or authenticated.
        certificate_file: PEM file of the server's certificate and its chain; with `key_file` it turns TLS on.
        key_file: PEM file of that certificate's private key, without a password.
        client_ca_file: PEM file of the authorities that may vouch for clients; with it clients need a certificate.
        token_file: File of bearer tokens, one of which every call but health checks must carry; see `calls/tokens.py`.
        token_rate: Samples a second that each token may have sent; None for any number.
        token_concurrency: Requests that each token may have running; None for any number.
        http_host: Name or address to listen on for HTTP.
        http_port: TCP port of `/metrics`, `/healthz` and `/readyz`, 0 for a free one; None for no HTTP at all.
        http_samples: Answer `/v1/sample.png` on that port too, to whoever may call the gRPC port.
        log_format: "text", or "json" for one object a line.
        log_calls: Write a line to the log for every call that ends.
        traces: Send OpenTelemetry traces to where the OTEL_* environment variables say.
    """

    host: str = "127.0.0.1"
    port: int = 50051
    name: str | None = None
    poll_models_s: float | None = None
    admin: str | None = None
    provider: str = "cpu"
    device: str | None = None
    workers: int | None = None
    max_batch: int | None = None
    max_chunk_bytes: int = 1 << 20
    interactive_samples: int = 64
    max_queue_samples: int = 1 << 20
    max_pending_calls: int = 100
    max_held_bytes: int = 1 << 30
    max_queue_delay_us: int = 0
    keepalive_s: float = 60.0
    max_connection_age_s: float = 1800.0
    max_connection_grace_s: float = math.inf
    drain_grace_s: float = 30.0
    insecure: bool = False
    certificate_file: str | None = None
    key_file: str | None = None
    client_ca_file: str | None = None
    token_file: str | None = None
    token_rate: float | None = None
    token_concurrency: int | None = None
    http_host: str = "127.0.0.1"
    http_port: int | None = None
    http_samples: bool = False
    log_format: str = "text"
    log_calls: bool = False
    traces: bool = False

    def __post_init__(self) -> None:
        if not self.host:
            raise ConfigError("host is empty", hint="use 127.0.0.1")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}, outside 0 .. 65535", hint="0 takes a free port")
        self._check_models()
        self._check_place()
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
        if not 1 <= self.max_pending_calls <= 1 << 20:
            raise ConfigError(f"max_pending_calls is {self.max_pending_calls}, outside 1 .. {1 << 20}")
        if self.max_held_bytes < _LEAST_HELD_BYTES:
            raise ConfigError(
                f"max_held_bytes is {self.max_held_bytes}; at least {_LEAST_HELD_BYTES} are needed",
                hint="one reader of the largest messages needs them",
            )
        if not 0 <= self.max_queue_delay_us <= 1_000_000:
            raise ConfigError(f"max_queue_delay_us is {self.max_queue_delay_us}, outside 0 .. 1000000 microseconds")
        for name in ("keepalive_s", "max_connection_age_s", "max_connection_grace_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; give more than 0 seconds, or inf")
        if not (math.isfinite(self.drain_grace_s) and self.drain_grace_s >= 0):
            raise ConfigError(f"drain_grace_s is {self.drain_grace_s}; give 0 seconds or more")
        self._check_security()
        self._check_telemetry()

    def _check_models(self) -> None:
        if self.name is not None:
            check_name(self.name)
        if self.poll_models_s is not None and not (math.isfinite(self.poll_models_s) and self.poll_models_s > 0):
            raise ConfigError(f"poll_models_s is {self.poll_models_s}; give more than 0 seconds")
        if self.admin is not None:
            try:
                parse_admin_address(self.admin)
            except ConfigError as error:
                raise ConfigError(f"admin: {error.message}", hint=error.hint) from None

    def _check_place(self) -> None:
        if self.provider not in _PROVIDERS:
            raise ConfigError(f"unknown provider {self.provider!r}", hint=f"choose one of: {', '.join(_PROVIDERS)}")
        if self.device is not None:
            kind = parse_devices(self.device)[0].kind
            if self.provider not in ("cpu", kind):
                raise ConfigError(
                    f"provider is {self.provider!r}, but device is {self.device!r}", hint="device alone says it all"
                )
        if self.workers is not None and not 1 <= self.workers <= MOST_WORKERS:
            raise ConfigError(f"workers is {self.workers}, outside 1 .. {MOST_WORKERS}", hint="one per core is most")

    def _check_telemetry(self) -> None:
        if not self.http_host:
            raise ConfigError("http_host is empty", hint="use 127.0.0.1")
        if self.http_port is not None and not 0 <= self.http_port <= 65535:
            raise ConfigError(f"http_port is {self.http_port}, outside 0 .. 65535", hint="0 takes a free port")
        if self.http_samples and self.http_port is None:
            raise ConfigError("http_samples is set without http_port; it needs that port")
        if self.http_samples and self.client_ca_file and not self.token_file:
            raise ConfigError(
                "http_samples is set with client_ca_file, but the HTTP port asks for no certificates",
                hint="give a token_file too",
            )
        if self.log_format not in LOG_FORMATS:
            raise ConfigError(f"log_format is {self.log_format!r}", hint=f"choose one of: {', '.join(LOG_FORMATS)}")

    def _check_security(self) -> None:
        for setting in ("certificate_file", "key_file", "client_ca_file", "token_file"):
            if getattr(self, setting) == "":
                raise ConfigError(f"{setting} is empty")
        if bool(self.certificate_file) != bool(self.key_file):
            given, other = ("certificate", "key") if self.certificate_file else ("key", "certificate")
            raise ConfigError(f"{given}_file is given without {other}_file; TLS needs both")
        if self.client_ca_file and not self.certificate_file:
            raise ConfigError("client_ca_file is given without certificate_file; only TLS can ask for certificates")
        if self.token_rate is not None and not (math.isfinite(self.token_rate) and self.token_rate > 0):
            raise ConfigError(f"token_rate is {self.token_rate}; give samples a second, more than 0")
        if self.token_concurrency is not None and self.token_concurrency < 1:
            raise ConfigError(f"token_concurrency is {self.token_concurrency}; at least 1 is needed")
        for setting in ("token_rate", "token_concurrency"):
            if getattr(self, setting) is not None and not self.token_file:
                raise ConfigError(f"{setting} is given without token_file; it holds for each token")

    @property
    def is_encrypted(self) -> bool:
        """Whether clients connect with TLS."""
        return self.certificate_file is not None

    @property
    def max_streams(self) -> int:
        """Calls that hold no images and may last for ever: as many as a sixteenth of the memory is enough for."""
        return max(_LEAST_STREAMS, self.max_held_bytes // _STREAM_SHARE // CALL_BYTES)

    @property
    def bounds(self) -> Bounds:
        """What may wait and be held."""
        return Bounds(
            max_queue_samples=self.max_queue_samples,
            max_held_bytes=self.max_held_bytes,
            max_delay_s=1e-6 * self.max_queue_delay_us,
            interactive_turn=self.interactive_samples,
            stream_bytes=self.max_streams * CALL_BYTES,
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
