"""The option that lets a checkpoint's own generator class be imported."""

from __future__ import annotations

from typing import Annotated

import typer

AllowModule = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-module",
        metavar="MODULE:CLASS",
        help="Import this generator class where the checkpoint names it, which runs its code; repeat for several.",
    ),
]
