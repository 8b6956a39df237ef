"""`kaem sample`: draw images from a model or a server into files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.source import (
    CaFile,
    CertificateFile,
    KeyFile,
    ModelName,
    ModelVersion,
    Provider,
    ServerName,
    Source,
    TokenFile,
    Workers,
)


def sample(
    source: Source,
    num: Annotated[int, typer.Option("-n", "--num", help="How many samples.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed, 0 .. 2^64 - 1. The same seed always gives the same images.")] = 0,
    start: Annotated[int, typer.Option(help="Index of the first sample of that seed.")] = 0,
    out: Annotated[
        list[Path] | None,
        typer.Option("-o", "--out", help="`.png` for a contact sheet, `.npy` for the array; repeat for both."),
    ] = None,
    tiles: Annotated[int, typer.Option(help="At most this many samples on a contact sheet: the first ones.")] = 256,
    columns: Annotated[int | None, typer.Option(help="Images per row of the sheet; by default about a square.")] = None,
    scale: Annotated[int | None, typer.Option(help="Whole-number magnification on the sheet.")] = None,
    model: ModelName = None,
    model_version: ModelVersion = None,
    provider: Provider = "cpu",
    workers: Workers = None,
    ca_file: CaFile = None,
    certificate_file: CertificateFile = None,
    key_file: KeyFile = None,
    server_name: ServerName = None,
    token_file: TokenFile = None,
) -> None:
    """Draw samples from a model file, a running server, or several servers that share the work.

    Sample i of seed s is one fixed image: a file and a server that has loaded it give byte-equal results, and
    any part of a set can be drawn on its own with `--start`. The written paths go to stdout.

    **Examples**

    `kaem sample model.onnx -n 64 --seed 7 -o grid.png`

    `kaem sample grpc://127.0.0.1:50051 -n 4096 -o samples.npy -o samples.png`

    `kaem sample grpc://127.0.0.1:50051 --model digits --model-version 2`

    `kaem sample grpc://a:50051,grpc://b:50051 -n 1000000 -o samples.npy`
    """
    import time

    from rich.console import Console
    from rich.progress import Progress

    from cli.output import check_outputs, sample_files
    from cli.source import credentials_of, is_remote, open_source
    from kaem.validation import check_range

    check_range(num, seed, start)
    console = Console(stderr=True)
    paths = list(dict.fromkeys(out or [Path("samples.png")]))
    check_outputs(paths, tiles=tiles, columns=columns, scale=scale)
    credentials = None
    if is_remote(source):
        credentials = credentials_of(
            ca_file=ca_file,
            certificate_file=certificate_file,
            key_file=key_file,
            server_name=server_name,
            token_file=token_file,
        )
    opened = open_source(
        source, provider=provider, workers=workers, credentials=credentials, model=model, version=model_version
    )
    with opened as sampler:
        begin = time.perf_counter()
        files = sample_files(paths, sampler.manifest, num, tiles=tiles, columns=columns, scale=scale)
        with files as add, Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("sampling", total=num)

            def show(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            for chunk in sampler.stream(num, seed, start, on_progress=show):
                add(chunk.images)
        taken = time.perf_counter() - begin
    console.print(f"{num:,} samples of seed {seed} in {taken:.2f} s, files included", highlight=False)
    if num > tiles and any(path.suffix == ".png" for path in paths):
        console.print(f"the contact sheet shows the first {tiles:,} of {num:,} samples (--tiles)")
    for path in paths:
        typer.echo(path)
