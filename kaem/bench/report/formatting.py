"""The words of tables: names of contestants, numbers with their digits, ratios with their intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kaem.bench.record import Entrant, LocalRow, Quality
from kaem.bench.statistics import Estimate, Ratio

NO_DIFFERENCE = "no difference shown"
TOO_FEW = "too few launches"
NOT_GIVEN = "-"
UNANSWERED = "no answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Words in columns.

    Attributes:
        name: Short, for the place in a document.
        title: What it shows.
        columns: Headings; those in `words` hold words, the others numbers.
        rows: Cells.
        words: Headings of columns that are aligned to the left.
        notes: Sentences to read it by.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def name_of(row: LocalRow | Entrant) -> str:
    """Name a contestant in one line; weights that were never trained are said to be."""
    untrained = ", untrained" if is_untrained(row) else ""
    return f"{row.source} ({on_of(row)}{untrained})"


def is_untrained(row: LocalRow | Entrant) -> bool:
    """Whether it is known that the weights have never been trained."""
    return row.is_untrained if isinstance(row, LocalRow) else row.updates == 0


def on_of(row: LocalRow | Entrant) -> str:
    """Say what a contestant runs on."""
    if row.engine == "server":
        return "server, one caller"
    return f"{row.engine}, {row.threads} thread{'s' if row.threads > 1 else ''}"


def words_of(ratio: Ratio | None, *, is_first: bool = False) -> str:
    """Write a ratio, or that its interval supports none."""
    if ratio is None or ratio.low is None or ratio.high is None:
        return "1" if is_first else TOO_FEW
    if not ratio.is_shown:
        return NO_DIFFERENCE
    return f"{ratio.value:.3g} ({ratio.low:.3g} to {ratio.high:.3g})"


def figure(value: float | None, digits: int = 3) -> str:
    """Write a number with so many significant digits, in full."""
    if value is None or math.isnan(value):
        return NOT_GIVEN
    if math.isinf(value):
        return UNANSWERED
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def distance_words(quality: Quality | None) -> str:
    """Write a Frechet distance with its standard error."""
    if quality is None:
        return NOT_GIVEN
    error = "" if quality.standard_error is None else f" ± {quality.standard_error:.2g}"
    return f"{figure(quality.value)}{error}"


def half_width(estimate: Estimate) -> str:
    """Write half the width of an interval, relative to its value; none where an end is a time without end."""
    if estimate.low is None or estimate.high is None or math.isinf(estimate.high):
        return NOT_GIVEN
    return f"{50 * (estimate.high - estimate.low) / estimate.value:.1f} %"
