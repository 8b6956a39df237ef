"""`kaem bench`: how fast models, engines and servers are, measured so that it can be believed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.source import Provider

_LOCAL, _SERVER, _OUT = "One caller", "Server scenario", "Report"


def bench(
    context: typer.Context,
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL]...", help="Models, checkpoints or servers (grpc://host:port) to compare."),
    ] = None,
    scenario: Annotated[
        str, typer.Option(help="single, batch and offline, separated by commas; or server, an open loop.")
    ] = "batch",
    engine: Annotated[
        str,
        typer.Option(
            help="onnxruntime, openvino, tensorrt, torch-eager, torch-compile, diffusers, separated by commas.",
            rich_help_panel=_LOCAL,
        ),
    ] = "onnxruntime",
    batch: Annotated[
        str | None,
        typer.Option(
            help="Images a call, separated by commas; by default 1 (single), 1,8,64,256 (batch), 1024 (offline).",
            rich_help_panel=_LOCAL,
        ),
    ] = None,
    threads: Annotated[
        str | None,
        typer.Option(help="Threads, separated by commas; by default one per core.", rich_help_panel=_LOCAL),
    ] = None,
    provider: Provider = "cpu",
    seconds: Annotated[
        float, typer.Option(help="Timed seconds of every row, over all launches.", rich_help_panel=_LOCAL)
    ] = 1.0,
    launches: Annotated[
        int,
        typer.Option(help="Fresh processes of every contestant; intervals need 6.", rich_help_panel=_LOCAL),
    ] = 9,
    precision: Annotated[
        float,
        typer.Option(
            help="Half-width of p50's interval, relative to it, beyond which launches are added, up to twice as many.",
            rich_help_panel=_LOCAL,
        ),
    ] = 0.02,
    longest: Annotated[
        str | None,
        typer.Option(
            help="Leave out batch sizes whose call would take longer, such as 3s; never a model's smallest.",
            rich_help_panel=_LOCAL,
        ),
    ] = None,
    quality: Annotated[
        list[str] | None,
        typer.Option(
            metavar="EVAL.json",
            help="What `kaem eval --json` measured of one of the models; repeat for more. It is known by its weights.",
            rich_help_panel=_LOCAL,
        ),
    ] = None,
    rate: Annotated[
        str | None, typer.Option(help="Requests a second, separated by commas.", rich_help_panel=_SERVER)
    ] = None,
    duration: Annotated[str, typer.Option(help="How long each rate lasts.", rich_help_panel=_SERVER)] = "20s",
    deadline: Annotated[
        str, typer.Option(help="After this long a request has failed.", rich_help_panel=_SERVER)
    ] = "1s",
    slo: Annotated[
        str | None,
        typer.Option(
            help="Objective such as p99=50ms; the highest rate that meets it is searched for.",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    mix: Annotated[
        str,
        typer.Option(
            help="Kinds of requests and their shares: interactive (1 image), bulk (1024), or a number of images.",
            rich_help_panel=_SERVER,
        ),
    ] = "interactive:1",
    seed: Annotated[int, typer.Option(help="Of noise, order of turns, and arrivals.")] = 0,
    compare: Annotated[
        Path | None,
        typer.Option(help="Report to compare with; without a MODEL it is measured again.", rich_help_panel=_OUT),
    ] = None,
    margin: Annotated[
        float, typer.Option(help="Relative change that a comparison ignores.", rich_help_panel=_OUT)
    ] = 0.05,
    json: Annotated[
        Path | None, typer.Option(help="Write the report as JSON; - for standard output.", rich_help_panel=_OUT)
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write it as Markdown.", rich_help_panel=_OUT)] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write it as one HTML file with plots.", rich_help_panel=_OUT)
    ] = None,
) -> None:
    """Measure latency, throughput, processor time, memory and start of models; or a server under load.

    Contestants are interleaved in one run, in short turns in random order, each in a process of its own that is
    launched several times. A ratio is printed only where its 95 % interval leaves out 1. With `--scenario server`,
    requests come when they come, whether or not the server keeps up, and are timed from when they were due.
    How to read the figures: docs/benchmarks.md.

    **Examples**

    `kaem bench model.onnx`

    `kaem bench small.onnx large.onnx --engine onnxruntime,openvino --threads 1 --html bench.html --json bench.json`

    `kaem bench kaem.onnx vae.onnx --quality kaem.json --quality vae.json --threads 1 --html bench.html`

    `kaem bench grpc://127.0.0.1:50051 --scenario server --rate 200,400 --duration 20s`

    `kaem bench grpc://127.0.0.1:50051 --scenario server --slo p99=50ms --mix interactive:0.9,bulk:0.1`

    `kaem bench --compare old.json`
    """
    from cli.bench.run import BenchOptions, run

    options = BenchOptions(
        sources=tuple(sources or ()),
        scenario=scenario,
        engine=engine,
        batch=batch,
        threads=threads,
        provider=provider,
        seconds=seconds,
        launches=launches,
        precision=precision,
        longest=longest,
        quality=tuple(quality or ()),
        rate=rate,
        duration=duration,
        deadline=deadline,
        slo=slo,
        mix=mix,
        seed=seed,
    )
    given = {
        name for name in context.params if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }
    run(options, given=given, compare_with=compare, margin=margin, json=json, markdown=markdown, html=html)
