"""`kaem bench`: latency and throughput of models and servers, interleaved in one run."""

from __future__ import annotations

import json as json_
from typing import TYPE_CHECKING, Annotated

import typer

from cli.source import Provider, Workers

if TYPE_CHECKING:
    from rich.table import Table

    from kaem.benchmark import Measurement
    from kaem.sampler import Sampler


def bench(
    sources: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Model files or servers (grpc://host:port) to compare.")
    ],
    batch: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "1,8,64,256",
    seconds: Annotated[float, typer.Option(help="Timed seconds for each model and batch size.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the noise and of the order of turns.")] = 0,
    provider: Provider = "cpu",
    workers: Workers = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, with every percentile, instead of tables.")] = False,
) -> None:
    """Measure p50, p90 and p99 latency per batch size and images per second.

    Several models are measured in alternating short turns, in random order, so that a slow moment of the machine
    falls on all of them; figures of different runs are not comparable. Latency is the wall time of one whole call,
    noise included, and for a server the way there and back too.

    **Examples**

    `kaem bench model.onnx`

    `kaem bench small.onnx large.onnx --batch 1,64 --seconds 5 --json > bench.json`
    """
    from contextlib import ExitStack

    from rich.console import Console
    from rich.progress import Progress

    from cli.source import open_source
    from kaem.benchmark import describe_machine, measure
    from kaem.errors import RequestError

    try:
        batches = [int(word) for word in batch.split(",")]
    except ValueError:
        raise RequestError(f"cannot read batch sizes {batch!r}", hint="write them as 1,8,64") from None
    if len(set(sources)) < len(sources):
        raise RequestError(f"a model is named twice: {', '.join(sources)}")
    machine = describe_machine()
    with ExitStack() as stack:
        samplers = {
            source: stack.enter_context(open_source(source, provider=provider, workers=workers)) for source in sources
        }
        settings = {source: _setting(sampler) for source, sampler in samplers.items()}
        words = Console(stderr=True)
        progress = stack.enter_context(Progress(console=words, transient=True, disable=not words.is_terminal))
        task = progress.add_task("measuring", total=1.0)
        results = measure(
            samplers,
            batches,
            seconds=seconds,
            seed=seed,
            on_round=lambda share: progress.update(task, completed=share),
        )
    if json:
        rows = [{"ran on": settings[result.model], **_row(result)} for result in results]
        typer.echo(json_.dumps({"machine": machine, "results": rows}, indent=2))
        return
    console = Console()
    console.print(_table(results, sources[0]))
    for source, setting in settings.items():
        console.print(f"{source}: {setting}", highlight=False)
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()), highlight=False)


def _setting(sampler: Sampler) -> str:
    from kaem.runtime import LocalSampler

    if isinstance(sampler, LocalSampler):
        return f"{sampler.provider}, {sampler.workers} worker{'s' if sampler.workers > 1 else ''}"
    return "server"


def _row(result: Measurement) -> dict[str, object]:
    return {
        "model": result.model,
        "batch": result.batch,
        "calls": result.calls,
        "p50_ms": result.percentile_ms(50),
        "p90_ms": result.percentile_ms(90),
        "p99_ms": result.percentile_ms(99),
        "images_per_s": result.images_per_s,
    }


def _table(results: list[Measurement], first: str) -> Table:
    from rich.table import Table

    base = {result.batch: result.percentile_ms(50) for result in results if result.model == first}
    is_comparison = any(result.model != first for result in results)
    table = Table(caption=f"speed: p50 of {first} over p50 of the row" if is_comparison else None)
    table.add_column("model", overflow="fold")
    for name in ("batch", "p50 ms", "p90 ms", "p99 ms", "images/s", "calls", *(["speed"] if is_comparison else [])):
        table.add_column(name, justify="right", no_wrap=True)
    shown = ""
    for result in results:
        if shown and result.model != shown:
            table.add_section()
        cells = [result.model if result.model != shown else "", str(result.batch)]
        cells += [f"{result.percentile_ms(percent):.3f}" for percent in (50, 90, 99)]
        cells += [f"{result.images_per_s:,.0f}", f"{result.calls:,}"]
        if is_comparison:
            cells.append(f"{base[result.batch] / result.percentile_ms(50):.2f}")
        table.add_row(*cells)
        shown = result.model
    return table
