"""`kaem serve`: answer requests for samples over gRPC. Its options are the fields of `serve.settings.ServeSettings`."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from serve.settings import ServeSettings


def serve(model: Path, config: Path | None = None, **flags: Any) -> None:
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

    given = {name: str(value) if isinstance(value, Path) else value for name, value in flags.items()}
    settings = load_settings(given, names={name: _flag(name) for name in given}, config=config)
    configure(settings.log_format)
    run(model, settings, on_serving=lambda address: print(address, flush=True))  # noqa: T201  # data, not words


def _parameters() -> Iterator[inspect.Parameter]:
    """Yield the parameters of the command: model, configuration file, and one option for each setting."""
    model = typer.Argument(
        help="Model file made by `kaem export`, or a folder of them: NAME/VERSION/model.onnx, NAME.onnx."
    )
    yield _parameter("model", Annotated[Path, model], inspect.Parameter.empty)
    config = typer.Option(help="TOML file of settings; flags and environment variables win over it.")
    yield _parameter("config", Annotated[Path | None, config], None)
    hints = typing.get_type_hints(ServeSettings)
    for setting in dataclasses.fields(ServeSettings):
        yield _parameter(setting.name, _option(setting, hints[setting.name]), None)


def _option(setting: dataclasses.Field[Any], hint: Any) -> Any:
    """Return the annotation of a setting's option; without a value the environment, the file or the default decides."""
    kind = next(one for one in typing.get_args(hint) if one is not types.NoneType) if typing.get_args(hint) else hint
    option = typer.Option(
        _flag(setting.name),
        help=setting.metadata["meaning"],
        show_default=False if setting.default in (None, False) else _word(setting.default),
        metavar=setting.metadata["unit"] or None,
        rich_help_panel=setting.metadata["panel"] or None,
    )
    return Annotated[(Path if setting.name.endswith("_file") else kind) | None, option]


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _flag(setting: str) -> str:
    return f"--{setting.replace('_', '-')}"


def _word(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


# What typer reads a command's options from.
serve.__signature__ = inspect.Signature(list(_parameters()))  # type: ignore[attr-defined]
serve.__annotations__ = {one.name: one.annotation for one in _parameters()} | {"return": None}
