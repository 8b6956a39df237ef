"""`kaem serve`: answer requests for samples over gRPC."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_ADDRESSES = "Addresses"
_SCHEDULING = "Scheduling"
_SECURITY = "Security"
_TELEMETRY = "Telemetry"


def serve(
    model: Annotated[
        Path,
        typer.Argument(
            help="Model file made by `kaem export`, or a folder of them: NAME/VERSION/model.onnx, NAME.onnx."
        ),
    ],
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings; flags and environment variables win over it.")
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(help="Name or address to listen on.", show_default="127.0.0.1", rich_help_panel=_ADDRESSES),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(help="TCP port; 0 takes a free one.", show_default="50051", rich_help_panel=_ADDRESSES),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the model of one file; by default the one in the file.")
    ] = None,
    poll_models: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="Look for new, changed and removed models so often; by default only when asked."
        ),
    ] = None,
    admin: Annotated[
        str | None,
        typer.Option(
            help="Where `kaem admin` may connect: unix:PATH or 127.0.0.1:PORT; nowhere by default.",
            rich_help_panel=_ADDRESSES,
        ),
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option(
            help="Where the model runs: cpu, cuda, ort-tensorrt or tensorrt. Never silently another.",
            show_default="cpu",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Devices that share the work instead, such as cuda:0,cuda:1; each gets a process of its own, which is "
            "started again if it dies."
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Threads that share each batch; by default one per core.")] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(
            help="Most samples computed together; by default as many as pay, by measurement.",
            rich_help_panel=_SCHEDULING,
        ),
    ] = None,
    interactive: Annotated[
        int | None,
        typer.Option(
            help="Requests of at most so many samples go before larger ones.",
            show_default="64",
            rich_help_panel=_SCHEDULING,
        ),
    ] = None,
    max_queue: Annotated[
        int | None,
        typer.Option(
            help="Samples that may wait; requests beyond are refused.",
            show_default="1048576",
            rich_help_panel=_SCHEDULING,
        ),
    ] = None,
    max_pending_calls: Annotated[
        int | None,
        typer.Option(
            help="Calls that may wait until the server looks at them; more that come at once are ended with CANCELLED.",
            show_default="100",
            rich_help_panel=_SCHEDULING,
        ),
    ] = None,
    max_memory: Annotated[
        int | None,
        typer.Option(
            help="MiB that all calls together may hold, most of it images.",
            show_default="1024",
            rich_help_panel=_SCHEDULING,
        ),
    ] = None,
    queue_delay: Annotated[
        int | None,
        typer.Option(
            help="Microseconds a batch waits to become fuller.", show_default="0", rich_help_panel=_SCHEDULING
        ),
    ] = None,
    max_connection_age: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Ask clients to connect again after so long, so that new servers get a share; inf for never.",
            show_default="1800",
            rich_help_panel=_ADDRESSES,
        ),
    ] = None,
    max_connection_grace: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Let calls on such a connection complete for so long; inf for as long as they take.",
            show_default="inf",
            rich_help_panel=_ADDRESSES,
        ),
    ] = None,
    keepalive: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Try a client's connection by a ping after so long a silence; inf for never.",
            show_default="60",
            rich_help_panel=_ADDRESSES,
        ),
    ] = None,
    grace: Annotated[
        float | None,
        typer.Option(help="Seconds that the whole shutdown may take, running requests included.", show_default="30"),
    ] = None,
    insecure: Annotated[
        bool | None,
        typer.Option(
            "--insecure",
            help="Allow other machines to connect although nothing is encrypted.",
            show_default=False,
            rich_help_panel=_SECURITY,
        ),
    ] = None,
    certificate_file: Annotated[
        Path | None,
        typer.Option(help="PEM file of the server's certificate and chain: turns TLS on.", rich_help_panel=_SECURITY),
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option(help="PEM file of that certificate's private key.", rich_help_panel=_SECURITY)
    ] = None,
    client_ca_file: Annotated[
        Path | None,
        typer.Option(help="PEM file of authorities; clients need a certificate of theirs.", rich_help_panel=_SECURITY),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File of bearer tokens, a name and a token a line.", rich_help_panel=_SECURITY),
    ] = None,
    token_rate: Annotated[
        float | None, typer.Option(help="Samples a second that each token may have.", rich_help_panel=_SECURITY)
    ] = None,
    token_concurrency: Annotated[
        int | None, typer.Option(help="Requests that each token may have running.", rich_help_panel=_SECURITY)
    ] = None,
    http_host: Annotated[
        str | None,
        typer.Option(help="Where to listen for HTTP.", show_default="127.0.0.1", rich_help_panel=_ADDRESSES),
    ] = None,
    http_port: Annotated[
        int | None,
        typer.Option(
            help="TCP port of /metrics, /healthz and /readyz; 0 takes a free one, none is opened by default.",
            rich_help_panel=_ADDRESSES,
        ),
    ] = None,
    http_samples: Annotated[
        bool | None,
        typer.Option(
            "--http-samples",
            help="Answer /v1/sample.png?seed=7 on the HTTP port too.",
            show_default=False,
            rich_help_panel=_ADDRESSES,
        ),
    ] = None,
    log_format: Annotated[
        str | None, typer.Option(help="text or json.", show_default="text", rich_help_panel=_TELEMETRY)
    ] = None,
    log_calls: Annotated[
        bool | None,
        typer.Option("--log-calls", help="A line for every call.", show_default=False, rich_help_panel=_TELEMETRY),
    ] = None,
    traces: Annotated[
        bool | None,
        typer.Option(
            "--traces",
            help="Send OpenTelemetry traces to where OTEL_EXPORTER_OTLP_ENDPOINT says.",
            show_default=False,
            rich_help_panel=_TELEMETRY,
        ),
    ] = None,
) -> None:
    """Answer requests for samples over gRPC until interrupted.

    The address is printed once requests are answered; it is the only line on standard output. SIGTERM or Ctrl-C
    lets running requests complete, a second one stops at once.

    Every setting may also come from an environment variable KAEM_SERVE_... or from a TOML file; see docs/operating.md.

    **Examples**

    `kaem serve model.onnx`

    `kaem serve model.onnx --port 0 --grace 5`

    `kaem serve model.onnx --device cuda:0,cuda:1`

    `kaem serve models --admin unix:/run/kaem/admin.sock --poll-models 10`

    `kaem serve model.onnx --config serve.toml --http-port 9090`

    `kaem serve model.onnx --http-port 9090 --http-samples`

    `kaem sample grpc://127.0.0.1:50051 --num 64 --seed 7`
    """
    from serve.configuration import load_settings
    from serve.monitoring.logs import configure
    from serve.server import run

    flags = {
        "host": host,
        "port": port,
        "name": name,
        "poll_models_s": poll_models,
        "admin": admin,
        "provider": provider,
        "device": device,
        "workers": workers,
        "max_batch": max_batch,
        "interactive_samples": interactive,
        "max_queue_samples": max_queue,
        "max_pending_calls": max_pending_calls,
        "max_held_bytes": None if max_memory is None else max_memory << 20,
        "max_queue_delay_us": queue_delay,
        "max_connection_age_s": max_connection_age,
        "max_connection_grace_s": max_connection_grace,
        "keepalive_s": keepalive,
        "drain_grace_s": grace,
        "insecure": insecure,
        "certificate_file": _text(certificate_file),
        "key_file": _text(key_file),
        "client_ca_file": _text(client_ca_file),
        "token_file": _text(token_file),
        "token_rate": token_rate,
        "token_concurrency": token_concurrency,
        "http_host": http_host,
        "http_port": http_port,
        "http_samples": http_samples,
        "log_format": log_format,
        "log_calls": log_calls,
        "traces": traces,
    }
    names = {setting: f"--{setting.replace('_', '-')}" for setting in flags} | {
        "poll_models_s": "--poll-models",
        "interactive_samples": "--interactive",
        "max_queue_samples": "--max-queue",
        "max_held_bytes": "--max-memory",
        "max_queue_delay_us": "--queue-delay",
        "max_connection_age_s": "--max-connection-age",
        "max_connection_grace_s": "--max-connection-grace",
        "keepalive_s": "--keepalive",
        "drain_grace_s": "--grace",
    }
    settings = load_settings(flags, names=names, config=config)
    configure(settings.log_format)
    run(model, settings, on_serving=lambda address: print(address, flush=True))  # noqa: T201  # data, not words


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
