"""Tables that more than one command prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from kaem.artifact import Figure


def certificate_table(figures: Sequence[Figure], *, earlier: Sequence[Figure] = ()) -> Table:
    """Show each figure with its bound, and beside it the value measured earlier where one is given."""
    from rich.markup import escape
    from rich.table import Table

    before = {figure.name: f"{figure.value:.2e}" for figure in earlier}
    table = Table(title="certificate", title_justify="left")
    table.add_column("figure")
    table.add_column("measured", justify="right")
    if before:
        table.add_column("at export", justify="right")
    table.add_column("bound", justify="right")
    table.add_column("")
    table.add_column("meaning", overflow="fold")
    for figure in figures:
        verdict = "[green]kept[/]" if figure.is_kept else "[bold red]BROKEN[/]"
        cells = [escape(figure.name), f"{figure.value:.2e}", f"{figure.bound:.2e}", verdict, escape(figure.meaning)]
        if before:
            cells.insert(2, before.get(figure.name, "-"))
        table.add_row(*cells)
    return table
