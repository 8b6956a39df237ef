"""Progress for people, on stderr: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kaem_train.fitting.refit import Refit
from kaem_train.training import events

_SHOWN = {
    "loss": "loss",
    "reconstruction": "rec",
    "kl": "kl",
    "prior": "prior",
    "ess": "ess",
    "acceptance": "acc",
    "sigma": "sigma",
    "outside": "outside",
}
_LINES = 20


@contextmanager
def show_decoding(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Give a function to be told (images decoded, images in all); nothing is shown until it is called.

    Args:
        console: Console to write to; that of the command, on stderr.
    """
    columns = (TextColumn("[bold]decoding"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:

        def show(done: int, total: int) -> None:
            if not bar.tasks:
                bar.add_task("decoding", total=total)
            bar.update(bar.tasks[0].id, completed=done)
            if not console.is_terminal and done * _LINES // total > (done - 1) * _LINES // total:
                console.print(f"decoded {done}/{total} images", highlight=False)

        yield show


class ProgressReport:
    """A listener that shows loss parts in nats per image, sigma, speed and the time left.

    Use it as a context manager, so that the bar is closed whatever happens.

    Args:
        console: Console to write to; that of the command, on stderr.
        updates: Updates of the whole run.
    """

    def __init__(self, console: Console, *, updates: int) -> None:
        self._console = console
        self._updates = updates
        self._next_line = 0
        self._bar = Progress(
            TextColumn("[bold]training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=updates, figures="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def __call__(self, event: events.Event) -> None:
        """Show one event; sample grids and checkpoints have nothing to show here."""
        if isinstance(event, events.Refitted):
            self._console.print(describe_refit(event.refit), soft_wrap=True, highlight=False)
        if isinstance(event, events.Widened):
            self._console.print(describe_widening(event), soft_wrap=True, highlight=False)
        if not isinstance(event, events.Progress):
            return
        figures = " ".join(
            f"{label} {event.metrics[name]:.4g}" for name, label in _SHOWN.items() if name in event.metrics
        )
        figures = f"{figures} {event.images_per_second:.0f} images/s"
        if self._console.is_terminal:
            self._bar.update(self._task, completed=event.step, figures=figures)
        elif event.step >= self._next_line or event.step == self._updates:
            self._console.print(f"update {event.step}/{self._updates} {figures}", soft_wrap=True, highlight=False)
            self._next_line = event.step + max(1, self._updates // _LINES)


def describe_widening(event: events.Widened) -> str:
    """Say in one line that the prior's domain grew, and why."""
    before, after = (f"[{low:.4g}, {high:.4g}]" for low, high in (event.before, event.after))
    reason = f"{event.outside:.2g} of the encoded latents" if event.outside else "more than 1e-6 of a density"
    return f"update {event.step}: {reason} outside the domain {before}, which is now {after}"


def describe_refit(refit: Refit) -> str:
    """Say in one line what the final refit came to; figures are log p(z) of latents kept aside, in nats."""
    skipped = f"; {refit.skipped}" if refit.skipped else ""
    if refit.num_experts is None or refit.score is None or refit.trained_score is None:
        return f"final refit left out: {refit.skipped}"
    figures = f"{refit.num_experts} experts in own frames {refit.score:.2f}, trained prior {refit.trained_score:.2f}"
    verdict = "not kept" if refit.finished is None else "kept"
    return f"final refit {verdict}: log p(z) {figures} nats on images set aside{skipped}"
