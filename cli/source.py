"""Where samples come from: an artifact on disk or a server, told apart by the way they are written.

The option that lets a checkpoint's own generator class be imported.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import kaem
from kaem.errors import RequestError

if TYPE_CHECKING:
    from kaem.client import Credentials
    from kaem.sampler import Sampler


Source = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="An exported model.onnx, or a server as grpc://host:port (grpcs:// for TLS); several servers, separated "
        "by commas, share the work.",
    ),
]
Provider = Annotated[
    str, typer.Option(help="Where a local model runs: cpu, cuda or ort-tensorrt. Never silently another.")
]
Workers = Annotated[
    int | None, typer.Option(help="Threads that share each batch of a local model; by default one per core.")
]
ModelName = Annotated[
    str | None, typer.Option(metavar="NAME", help="Which model of a server; not needed where it has only one.")
]
ModelVersion = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Which version of it; by default the newest.")
]
CaFile = Annotated[
    Path | None, typer.Option(envvar="KAEM_CA_FILE", help="PEM file of authorities that may vouch for a server.")
]
CertificateFile = Annotated[
    Path | None, typer.Option(envvar="KAEM_CERTIFICATE_FILE", help="PEM file of our own certificate, for mTLS.")
]
KeyFile = Annotated[
    Path | None, typer.Option(envvar="KAEM_KEY_FILE", help="PEM file of that certificate's private key.")
]
ServerName = Annotated[
    str | None,
    typer.Option(envvar="KAEM_SERVER_NAME", help="Name in the server's certificate, if it is not the host's."),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(envvar="KAEM_TOKEN_FILE", help="File with a bearer token; or put the token itself in KAEM_TOKEN."),
]


def is_remote(source: str) -> bool:
    """Whether the source is a server rather than a file."""
    return source.lower().startswith(("grpc://", "grpcs://"))


def open_source(
    source: str,
    *,
    provider: str = "cpu",
    workers: int | None = None,
    credentials: Credentials | None = None,
    model: str | None = None,
    version: int | None = None,
) -> Sampler:
    """Open an artifact or connect to servers, by default with the credentials that the environment names.

    Raises:
        KaemError: As `kaem.load` and `kaem.connect`.
    """
    if is_remote(source):
        return kaem.connect(source, credentials=credentials, model=model or "", version=version or 0)
    if re.fullmatch(r"(\w+://.*|[\w.-]+:\d+(,.*)?)", source):
        raise RequestError(f"{source!r} is neither a file nor a server's address", hint="write grpc://host:port")
    if model is not None or version is not None:
        raise RequestError(f"{source} is one file; only servers have models and versions to choose from")
    return kaem.load(source, provider=provider, workers=workers)


def credentials_of(
    *,
    ca_file: Path | None,
    certificate_file: Path | None,
    key_file: Path | None,
    server_name: str | None,
    token_file: Path | None,
) -> Credentials:
    """Return what a client shows to servers; a token itself comes from the environment only.

    Raises:
        ConfigError: The options contradict each other.
    """
    from kaem.client import Credentials

    return Credentials(
        ca_file=ca_file,
        certificate_file=certificate_file,
        key_file=key_file,
        server_name=server_name,
        token_file=token_file,
        token=os.environ.get("KAEM_TOKEN") or None,
    )


AllowModule = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-module",
        metavar="MODULE:CLASS",
        help="Import this generator class where the checkpoint names it, which runs its code; repeat for several.",
    ),
]
