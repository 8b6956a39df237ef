"""Tables that more than one command prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from kaem.artifact import Figure
    from kaem_export.rewrite.effects import MedianInterval
    from kaem_export.rewrite.explain import Row


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
        measured = (f"{figure.value:.2e}", f"{figure.bound:.2e}")
        if not figure.is_kept and measured[0] == measured[1]:
            measured = figure.words
        cells = [escape(figure.name), *measured, verdict, escape(figure.meaning)]
        if before:
            cells.insert(2, before.get(figure.name, "-"))
        table.add_row(*cells)
    return table


def rewrites_table(rows: Sequence[Row], batch: int) -> Table:
    """Show what every rewrite did to the graph at one batch size."""
    from rich.table import Table

    table = Table(title=f"rewrites, rows per call: {batch}, one thread", title_justify="left")
    table.add_column("after", no_wrap=True)
    for title in ("nodes", "constants", "MFLOP / row", "time / row", "against the step before", "in all"):
        table.add_column(title, justify="right")
    for row in rows:
        time = row.microseconds
        table.add_row(
            row.name,
            str(row.cost.nodes),
            f"{row.cost.constant_bytes / 1e6:.2f} MB",
            f"{row.cost.flops / 1e6:.2f}",
            f"{time.median:.0f} us ({time.low:.0f} - {time.high:.0f})",
            _gain(row.gain),
            _gain(row.total_gain),
        )
    return table


def _gain(gain: MedianInterval | None) -> str:
    if gain is None:
        return ""
    if not gain.excludes(1.0):
        return "no difference shown"
    return f"x{gain.median:.2f} ({gain.low:.2f} - {gain.high:.2f})"
