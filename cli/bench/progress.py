"""The bar that `kaem bench` shows while it measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[float, str], None]]:
    """Show a bar on a terminal, redrawn seldom: drawing takes time from what is measured."""
    from rich.console import Console
    from rich.progress import Progress

    words = Console(stderr=True)
    with Progress(console=words, transient=True, disable=not words.is_terminal, refresh_per_second=2) as progress:
        task = progress.add_task(title, total=1.0)
        yield lambda share, text: progress.update(task, completed=share, description=text)
