"""`kaem info`: what a model is, or, without one, what this installation has."""

from __future__ import annotations

import json as json_
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from kaem.artifact import Manifest

_BARS = " ▁▂▃▄▅▆▇█"
_SHOWN_DENSITIES = 16


def info(
    source: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="An exported model.onnx, or a server as grpc://host:port.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the whole manifest as JSON.")] = False,
) -> None:
    """Show a model's shapes, prior, latent densities and certificate; without a model, this installation.

    **Examples**

    `kaem info model.onnx`

    `kaem info grpc://127.0.0.1:50051 --json`

    `kaem info`
    """
    from rich.console import Console

    from cli.source import open_source
    from cli.tables import certificate_table

    if source is None:
        _show_installation()
        return
    with open_source(source, workers=1) as sampler:
        manifest, numerics_id = sampler.manifest, sampler.numerics_id
    if json:
        typer.echo(json_.dumps({**asdict(manifest), "numerics_id": numerics_id}, indent=2))
        return
    console = Console()
    _show_manifest(console, manifest, numerics_id)
    console.print(certificate_table(manifest.certificate))


def _show_manifest(console: object, manifest: Manifest, numerics_id: str) -> None:
    from rich.console import Console
    from rich.table import Table

    if not isinstance(console, Console):
        raise TypeError("console must be a rich console")
    table = Table(show_header=False)
    table.add_row("model", f"{manifest.name} ({manifest.family}, artifact format {manifest.format_version})")
    table.add_row("input", f"uniform float32 (N, {manifest.noise_dim})")
    shape = ", ".join(map(str, manifest.image_shape))
    table.add_row("output", f"image {manifest.image_type} (N, {shape}), latent float32 (N, {manifest.latent_dim})")
    table.add_row("prior", ", ".join(f"{name} {value}" for name, value in manifest.prior.items()))
    table.add_row("checkpoint", manifest.checkpoint_fingerprint)
    table.add_row("graph", manifest.graph_fingerprint)
    table.add_row("numerics id", numerics_id)
    table.add_row("made by", ", ".join(f"{name} {version}" for name, version in manifest.tools.items()))
    console.print(table)
    rows = manifest.densities.get("density", [])
    for q, density in enumerate(rows[:_SHOWN_DENSITIES]):
        low, high = manifest.densities["low"][q], manifest.densities["high"][q]
        console.print(f"latent {q:>2}  {low:8.3f} {_sparkline(density)} {high:.3f}", highlight=False, soft_wrap=True)
    if len(rows) > _SHOWN_DENSITIES:
        console.print(f"and {len(rows) - _SHOWN_DENSITIES} more latents (--json)")


def _sparkline(values: list[float]) -> str:
    top = max(values) or 1.0
    return "".join(_BARS[round(value / top * (len(_BARS) - 1))] for value in values)


def _show_installation() -> None:
    from kaem.backend import PROVIDERS, installed_runtime
    from kaem.benchmark import describe_machine

    runtime = installed_runtime()
    import onnxruntime

    # What the build contains, which is not yet proof that it works on this machine.
    built_in = [name for name, provider in PROVIDERS.items() if provider in onnxruntime.get_available_providers()]
    for name, value in describe_machine().items():
        typer.echo(f"{name}: {value}")
    typer.echo(f"runtime: {runtime.distribution} {runtime.version}, built with {', '.join(built_in)}")
