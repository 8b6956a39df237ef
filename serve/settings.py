"""What an operator decides about a server, validated once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kaem.errors import ConfigError

if TYPE_CHECKING:
    from serve.scheduling.demand import Bounds

_STREAM_SHARE, _LEAST_STREAMS = 16, 64
LOG_FORMATS = ("text", "json")

_MAX_NAME_CHARS = 128  # it travels in errors, hints and health requests


ADDRESSES, SCHEDULING, SECURITY, TELEMETRY = "Addresses", "Scheduling", "Security", "Telemetry"
"""Groups of settings in `kaem serve --help`."""


def _setting(default: Any, meaning: str, *, unit: str = "", panel: str = "") -> Any:
    """Return a field of the settings.

    Args:
        default: Value where nobody says another.
        meaning: Sentence for people, without the default.
        unit: Unit of the number, as `kaem serve --help` shows it.
        panel: Group in that help.
    """
    return field(default=default, metadata={"meaning": meaning, "unit": unit, "panel": panel})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """Settings of one server: what each means stands with it, and in `kaem serve --help`.

    The name of a setting is its flag, its key in TOML and, in capitals, its environment variable.
    """

    host: str = _setting("127.0.0.1", "Name or address to listen on.", panel=ADDRESSES)
    port: int = _setting(50051, "TCP port; 0 takes a free one.", panel=ADDRESSES)
    name: str | None = _setting(None, "Name of the model of one file; by default the one in the file.")
    poll_models: float | None = _setting(
        None, "Look for new, changed and removed models so often; by default only when asked.", unit="SECONDS"
    )
    admin: str | None = _setting(
        None, "Where `kaem admin` may connect: unix:PATH or 127.0.0.1:PORT; nowhere by default.", panel=ADDRESSES
    )
    provider: str = _setting(
        "cpu", "Where the model runs: cpu, cuda, ort-tensorrt or tensorrt. Never silently another."
    )
    device: str | None = _setting(
        None,
        "Devices that share the work instead, such as cuda:0,cuda:1; each gets a process of its own, which is started "
        "again if it dies.",
    )
    workers: int | None = _setting(None, "Threads that share each batch; by default one per core.")
    max_batch: int | None = _setting(
        None, "Most samples computed together; by default as many as pay, by measurement.", panel=SCHEDULING
    )
    max_chunk_bytes: int = _setting(
        1 << 20, "Bytes of images in one message; one image that is larger travels alone.", panel=SCHEDULING
    )
    interactive: int = _setting(64, "Requests of at most so many samples go before larger ones.", panel=SCHEDULING)
    max_queue: int = _setting(
        1 << 20,
        "Samples that may wait, of each request at most a full batch; requests beyond are refused.",
        panel=SCHEDULING,
    )
    max_pending_calls: int = _setting(
        50,
        "Calls that may wait until the server looks at them; more that come at once are ended with CANCELLED.",
        panel=SCHEDULING,
    )
    max_memory: int = _setting(
        1024, "What all calls together may hold, most of it images.", unit="MiB", panel=SCHEDULING
    )
    queue_delay: int = _setting(0, "How long a batch waits to become fuller.", unit="MICROSECONDS", panel=SCHEDULING)
    keepalive: float = _setting(
        60.0,
        "Try a client's connection by a ping after so long a silence; inf for never.",
        unit="SECONDS",
        panel=ADDRESSES,
    )
    max_connection_age: float = _setting(
        1800.0,
        "Ask clients to connect again after so long, give or take a tenth, so that new servers get a share; inf for "
        "never.",
        unit="SECONDS",
        panel=ADDRESSES,
    )
    max_connection_grace: float = _setting(
        math.inf,
        "Let calls on such a connection complete for so long; inf for as long as they take.",
        unit="SECONDS",
        panel=ADDRESSES,
    )
    grace: float = _setting(30.0, "How long the whole shutdown may take, running requests included.", unit="SECONDS")
    insecure: bool = _setting(False, "Allow other machines to connect although nothing is encrypted.", panel=SECURITY)
    certificate_file: str | None = _setting(
        None, "PEM file of the server's certificate and chain: turns TLS on.", panel=SECURITY
    )
    key_file: str | None = _setting(
        None, "PEM file of that certificate's private key, without a password.", panel=SECURITY
    )
    client_ca_file: str | None = _setting(
        None, "PEM file of authorities; clients need a certificate of theirs.", panel=SECURITY
    )
    token_file: str | None = _setting(
        None, "File of bearer tokens, a name and a token a line; all calls but health checks need one.", panel=SECURITY
    )
    token_rate: float | None = _setting(None, "Samples a second that each token may have.", panel=SECURITY)
    token_concurrency: int | None = _setting(None, "Requests that each token may have running.", panel=SECURITY)
    http_host: str = _setting("127.0.0.1", "Where to listen for HTTP.", panel=ADDRESSES)
    http_port: int | None = _setting(
        None,
        "TCP port of /metrics, /healthz and /readyz; 0 takes a free one, none is opened by default.",
        panel=ADDRESSES,
    )
    http_samples: bool = _setting(
        False, "Answer /v1/sample.png?seed=7 on the HTTP port too, to whoever may call the gRPC port.", panel=ADDRESSES
    )
    log_format: str = _setting("text", "text, or json for one object a line.", panel=TELEMETRY)
    log_calls: bool = _setting(False, "A line for every call.", panel=TELEMETRY)
    traces: bool = _setting(
        False, "Send OpenTelemetry traces to where OTEL_EXPORTER_OTLP_ENDPOINT says.", panel=TELEMETRY
    )

    # The command line reads the fields above: what their checks need is loaded by those who make an object of them.

    def __post_init__(self) -> None:
        from kaem.protocol.messages import MAX_MESSAGE_BYTES, MESSAGE_HEADROOM

        least_memory = 6 * MAX_MESSAGE_BYTES >> 20  # half is for what is always allowed: two messages and one that came
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
        if self.interactive < 0:
            raise ConfigError(f"interactive is {self.interactive}; give 0 or more")
        if self.max_queue < 1:
            raise ConfigError(f"max_queue is {self.max_queue}; at least 1 is needed")
        if not 1 <= self.max_pending_calls <= 1 << 20:
            raise ConfigError(f"max_pending_calls is {self.max_pending_calls}, outside 1 .. {1 << 20}")
        if self.max_memory < least_memory:
            raise ConfigError(
                f"max_memory is {self.max_memory} MiB; at least {least_memory} are needed",
                hint="one reader of the largest messages needs them",
            )
        if not 0 <= self.queue_delay <= 1_000_000:
            raise ConfigError(f"queue_delay is {self.queue_delay}, outside 0 .. 1000000 microseconds")
        for name in ("keepalive", "max_connection_age", "max_connection_grace"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; give more than 0 seconds, or inf")
        if not (math.isfinite(self.grace) and self.grace >= 0):
            raise ConfigError(f"grace is {self.grace}; give 0 seconds or more")
        self._check_security()
        self._check_telemetry()

    def _check_models(self) -> None:
        from kaem.client.addresses import parse_admin_address

        if self.name is not None:
            check_name(self.name)
        if self.poll_models is not None and not (math.isfinite(self.poll_models) and self.poll_models > 0):
            raise ConfigError(f"poll_models is {self.poll_models}; give more than 0 seconds")
        if self.admin is not None:
            try:
                parse_admin_address(self.admin)
            except ConfigError as error:
                raise ConfigError(f"admin: {error.message}", hint=error.hint) from None

    def _check_place(self) -> None:
        from kaem.engines.providers import PROVIDERS
        from kaem.engines.workers import MOST_WORKERS
        from serve.devices.devices import parse_devices

        providers = (*PROVIDERS, "tensorrt")
        if self.provider not in providers:
            raise ConfigError(f"unknown provider {self.provider!r}", hint=f"choose one of: {', '.join(providers)}")
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
    def max_held_bytes(self) -> int:
        """Bytes that all calls together may hold."""
        return self.max_memory << 20

    @property
    def max_streams(self) -> int:
        """Calls that hold no images and may last for ever: as many as a sixteenth of the memory is enough for."""
        from serve.scheduling.demand import CALL_BYTES

        return max(_LEAST_STREAMS, self.max_held_bytes // _STREAM_SHARE // CALL_BYTES)

    @property
    def bounds(self) -> Bounds:
        """What may wait and be held."""
        from serve.scheduling.demand import CALL_BYTES, Bounds

        return Bounds(
            max_queue_samples=self.max_queue,
            max_held_bytes=self.max_held_bytes,
            max_delay_s=1e-6 * self.queue_delay,
            interactive_turn=self.interactive,
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
