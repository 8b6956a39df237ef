"""Where samples come from: an artifact on disk or a server, told apart by the way they are written."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

import kaem
from kaem.errors import RequestError

if TYPE_CHECKING:
    from kaem.sampler import Sampler

Source = Annotated[
    str, typer.Argument(metavar="MODEL", help="An exported model.onnx, or a server as grpc://host:port.")
]
Provider = Annotated[
    str, typer.Option(help="Where a local model runs: cpu, cuda or ort-tensorrt. Never silently another.")
]
Workers = Annotated[
    int | None, typer.Option(help="Threads that share each batch of a local model; by default one per core.")
]


def is_remote(source: str) -> bool:
    """Whether the source is a server rather than a file."""
    return source.lower().startswith("grpc://")


def open_source(source: str, *, provider: str = "cpu", workers: int | None = None) -> Sampler:
    """Open an artifact or connect to a server.

    Raises:
        KaemError: As `kaem.load` and `kaem.connect`.
    """
    if is_remote(source):
        return kaem.connect(source)
    if re.fullmatch(r"(\w+://.*|[\w.-]+:\d+)", source):
        raise RequestError(f"{source!r} is neither a file nor a server's address", hint="write grpc://host:port")
    return kaem.load(source, provider=provider, workers=workers)
