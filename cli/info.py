"""`kaem info`: what a model is, or, without one, what this installation has."""

from __future__ import annotations

import json as json_
import sys
from collections.abc import Container, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.source import AllowModule, ModelName, ModelVersion

if TYPE_CHECKING:
    from rich.console import Console

    from kaem.artifact import Manifest

_BARS = " ▁▂▃▄▅▆▇█"
_WITHOUT_ENERGIES = {"experts": "Gaussian", "mixture": "the reference", "independent": "the reference"}
_PLAIN_BARS = " .:-=+*%#"
_SHOWN_DENSITIES = 16


def info(
    source: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="An exported model.onnx, a ckpt.pt, or a server as grpc://host:port."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the whole manifest as JSON.")] = False,
    model: ModelName = None,
    model_version: ModelVersion = None,
    allow_module: AllowModule = None,
) -> None:
    """Show a model's shapes, prior, latent densities and certificate; without a model, this installation.

    A line of a density shows one number of the output `latent`, which the generator sees: experts mixed, frames
    included.

    **Examples**

    `kaem info model.onnx`

    `kaem info runs/digits/ckpt.pt`

    `kaem info grpc://127.0.0.1:50051 --json`

    `kaem info`
    """
    from rich.console import Console

    from cli.source import is_remote, open_source
    from cli.tables import certificate_table

    if source is None:
        _show_installation()
        return
    if not is_remote(source) and _is_checkpoint(Path(source)):
        _show_checkpoint(Path(source), allow_module or (), json=json)
        return
    with open_source(source, workers=1, model=model, version=model_version) as sampler:
        manifest, numerics_id = sampler.manifest, sampler.numerics_id
    if json:
        typer.echo(json_.dumps({**asdict(manifest), "numerics_id": numerics_id}, indent=2))
        return
    console = Console()
    _show_manifest(console, manifest, numerics_id)
    console.print(certificate_table(manifest.certificate))


def _show_manifest(console: Console, manifest: Manifest, numerics_id: str) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False)
    table.add_row("model", Text(f"{manifest.name} ({manifest.family}, artifact format {manifest.format_version})"))
    table.add_row("input", Text(f"uniform float32 (N, {manifest.noise_dim})"))
    shape = ", ".join(map(str, manifest.image_shape))
    table.add_row("output", Text(f"image {manifest.image_type} (N, {shape})"))
    table.add_row("", Text(f"latent float32 (N, {manifest.latent_dim})"))
    table.add_row("prior", Text(", ".join(f"{name} {value}" for name, value in manifest.prior.items())))
    if manifest.compilation:
        table.add_row("compiled", Text(", ".join(f"{name} {value}" for name, value in manifest.compilation.items())))
    table.add_row("checkpoint", Text(manifest.checkpoint_fingerprint))
    table.add_row("graph", Text(manifest.graph_fingerprint))
    table.add_row("numerics id", Text(numerics_id))
    table.add_row("made by", Text(", ".join(f"{name} {version}" for name, version in manifest.tools.items())))
    console.print(table)
    if manifest.prior.get("energies") == "none":
        kind = _WITHOUT_ENERGIES[manifest.prior.get("variant", "mixture")]
        console.print(f"All univariate energies are 0: every univariate density is {kind}.", soft_wrap=True)
    is_framed = manifest.prior.get("frame", "none") != "none"
    is_of_latents = manifest.densities.get("of") == "latent" or not is_framed
    for line in _density_lines(manifest.densities, "latent" if is_of_latents else "frame coordinate"):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _is_checkpoint(path: Path) -> bool:
    """Whether a file is an archive, as checkpoints are and ONNX files are not."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _show_checkpoint(path: Path, allow_modules: Container[str], *, json: bool) -> None:
    """Show what a checkpoint's model is, from its weights; nothing is compiled."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from kaem.config import to_mapping
    from kaem_train.checkpoint import (  # with torch, which takes seconds to load
        fingerprint_weights,
        read_checkpoint,
        restore_model,
    )
    from kaem_train.families.kaem import Kaem
    from kaem_train.model.prior.energy_words import describe_energies

    checkpoint = read_checkpoint(path)
    config, model = restore_model(checkpoint, path, allow_modules=allow_modules)
    densities: Mapping[str, Any] = {}
    prior = model.prior if config.has_energies and isinstance(model, Kaem) else None
    if prior is not None:
        from kaem_export.priors.layouts import choose_layout
        from kaem_export.priors.manifest_entries import densities as densities_of

        densities = densities_of(choose_layout(prior))
    updates, weights = checkpoint.step, fingerprint_weights(model.state_dict())
    if json:
        content = {"config": to_mapping(config), "updates": updates, "densities": densities, "checkpoint": weights}
        typer.echo(json_.dumps(content, indent=2))
        return
    table = Table(show_header=False)
    table.add_row("model", Text(f"{config.name} ({config.family}, checkpoint after {updates:,} updates)"))
    table.add_row("output", Text(f"image (N, {', '.join(map(str, config.data.image_shape))})"))
    if prior is not None:
        table.add_row("prior", Text(", ".join(f"{name} {value}" for name, value in to_mapping(config.prior).items())))
    table.add_row("parameters", Text(f"{sum(value.numel() for value in model.parameters()):,}"))
    table.add_row("checkpoint", Text(weights))
    console = Console()
    console.print(table)
    if prior is not None:
        console.print(describe_energies(prior), soft_wrap=True, highlight=False, markup=False)
        for line in _density_lines(densities, "latent"):
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def _density_lines(densities: Mapping[str, Any], what: str) -> list[str]:
    """One line with a sparkline per latent; what is there for plotting only may be missing or unreadable."""
    try:
        rows = list(zip(densities["low"], densities["high"], densities["density"], strict=True))
        lines = [
            f"{what} {q:>2}  {low:8.3f} {_sparkline(density)} {high:.3f}"
            for q, (low, high, density) in enumerate(rows[:_SHOWN_DENSITIES])
        ]
    except (KeyError, TypeError, ValueError):
        return ["(no latent densities to show)"]
    if len(rows) > _SHOWN_DENSITIES:
        lines.append(f"and {len(rows) - _SHOWN_DENSITIES} more latents (--json)")
    return lines


def _sparkline(values: list[float]) -> str:
    top, bars = max(values) or 1.0, _BARS
    try:
        _BARS.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        bars = _PLAIN_BARS
    return "".join(bars[round(value / top * (len(bars) - 1))] for value in values)


def _show_installation() -> None:
    from kaem.bench.environment import describe_machine
    from kaem.engines.providers import PROVIDERS
    from kaem.engines.session import installed_runtime

    runtime = installed_runtime()
    import onnxruntime

    # What the build contains, which is not yet proof that it works on this machine.
    built_in = [name for name, provider in PROVIDERS.items() if provider in onnxruntime.get_available_providers()]
    for name, value in describe_machine().items():
        typer.echo(f"{name}: {value}")
    typer.echo(f"runtime: {runtime.distribution} {runtime.version}, built with {', '.join(built_in)}")
