"""`kaem serve`: answer requests for samples over gRPC."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.source import Provider, Workers


def serve(
    model: Annotated[Path, typer.Argument(help="Model file made by `kaem export`.")],
    host: Annotated[str, typer.Option(help="Name or address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="TCP port; 0 takes a free one.")] = 50051,
    name: Annotated[str | None, typer.Option(help="Name of the model; by default the one in the file.")] = None,
    provider: Provider = "cpu",
    workers: Workers = None,
    max_batch: Annotated[
        int | None, typer.Option(help="Most samples computed together; by default as many as pay, by measurement.")
    ] = None,
    interactive: Annotated[int, typer.Option(help="Requests of at most so many samples go before larger ones.")] = 64,
    max_queue: Annotated[int, typer.Option(help="Samples that may wait; requests beyond are refused.")] = 1 << 20,
    max_memory: Annotated[int, typer.Option(help="MiB of images held for all readers together.")] = 1024,
    queue_delay: Annotated[int, typer.Option(help="Microseconds a batch waits to become fuller.")] = 0,
    grace: Annotated[float, typer.Option(help="Seconds that running requests get to complete on shutdown.")] = 30.0,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow other machines to connect: no encryption, no passwords.")
    ] = False,
) -> None:
    """Answer requests for samples over gRPC until interrupted.

    The address is printed once requests are answered; it is the only line on standard output. SIGTERM or Ctrl-C
    lets running requests complete, a second one stops at once.

    **Examples**

    `kaem serve model.onnx`

    `kaem serve model.onnx --port 0 --grace 5`

    `kaem sample grpc://127.0.0.1:50051 --num 64 --seed 7`
    """
    import logging

    from serve.server import run
    from serve.settings import ServeSettings

    settings = ServeSettings(
        host=host,
        port=port,
        name=name,
        provider=provider,
        workers=workers,
        max_batch=max_batch,
        interactive_samples=interactive,
        max_queue_samples=max_queue,
        max_held_bytes=max_memory << 20,
        max_queue_delay_us=queue_delay,
        drain_grace_s=grace,
        insecure=insecure,
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    run(model, settings, on_serving=lambda address: print(address, flush=True))  # noqa: T201  # data, not words
