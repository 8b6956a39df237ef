"""`kaem admin`: look after a running server through its admin socket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from kaem.protocol import admin_pb2

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Look after a running server: what it serves, loading and unloading models, shutting it down.\n\n"
    "The server opens its admin socket with `kaem serve --admin unix:PATH`; only its owner may use it.",
)

Address = Annotated[str, typer.Argument(help="The server's admin socket: unix:PATH or 127.0.0.1:PORT.")]
Name = Annotated[str, typer.Argument(help="Name of the model.")]


@app.command("list")
def list_models(
    address: Address, json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False
) -> None:
    """Show every version of every model: what is served, what drains, and why what failed did.

    **Examples**

    `kaem admin list unix:/run/kaem/admin.sock`

    `kaem admin list 127.0.0.1:50052 --json`
    """
    from kaem.client.admin import Admin

    with Admin(address) as admin:
        models = admin.list()
    if json:
        _print_json(models)
    else:
        _show(models)


@app.command()
def reload(address: Address) -> None:
    """Look at the files again: load what is new or has changed, unload what is gone. Nothing is interrupted.

    Exits with 2 and says why if something cannot be loaded; what it should have replaced is served on.

    **Examples**

    `kaem admin reload unix:/run/kaem/admin.sock`
    """
    from kaem.client.admin import Admin

    with Admin(address) as admin:
        _show(admin.reload())


@app.command()
def load(
    address: Address,
    name: Name,
    version: Annotated[int, typer.Option(min=0, help="Version to load; 0 for the newest there is a file of.")] = 0,
) -> None:
    """Load one version of a model from its file, also if it was unloaded, or is served already.

    **Examples**

    `kaem admin load unix:/run/kaem/admin.sock digits --version 2`
    """
    from kaem.client.admin import Admin

    with Admin(address) as admin:
        _show(admin.load(name, version))


@app.command()
def unload(
    address: Address,
    name: Name,
    version: Annotated[int, typer.Option(min=0, help="Version to unload; 0 for all of them.")] = 0,
) -> None:
    """Serve a version of a model no more: its running requests complete, then its memory is given back.

    **Examples**

    `kaem admin unload unix:/run/kaem/admin.sock digits --version 1`
    """
    from kaem.client.admin import Admin

    with Admin(address) as admin:
        _show(admin.unload(name, version))


@app.command()
def drain(address: Address) -> None:
    """Shut the server down as SIGTERM does: its running requests complete within its grace. Returns at once.

    **Examples**

    `kaem admin drain unix:/run/kaem/admin.sock`
    """
    from kaem.client.admin import Admin

    with Admin(address) as admin:
        admin.drain()


def _show(models: Sequence[admin_pb2.ModelVersion]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from kaem.protocol import admin_pb2

    table = Table("model", "version", "state", "requests", "numerics id", "file")
    for model in models:
        state = admin_pb2.State.Name(model.state).removeprefix("STATE_").lower()
        words = [state, *(["default"] if model.is_default else []), *(["loading"] if model.is_loading else [])]
        cells = (model.name, str(model.version), ", ".join(dict.fromkeys(words)), str(model.running_requests))
        table.add_row(*map(Text, (*cells, model.numerics_id[:19], model.path)))
    console = Console()
    console.print(table)
    for model in models:
        if model.error:
            console.print(f"{model.name} version {model.version}: {model.error}", markup=False, highlight=False)


def _print_json(models: Sequence[admin_pb2.ModelVersion]) -> None:
    from google.protobuf.json_format import MessageToJson

    for model in models:
        typer.echo(
            MessageToJson(
                model, indent=None, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
        )
