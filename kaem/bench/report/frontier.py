"""Quality against speed: which of the measured models nobody should use, for another is better and faster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kaem.bench.record import Entrant, LocalRow, Report
from kaem.bench.report.formatting import NOT_GIVEN, Table, distance_words, figure, on_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A contestant whose quality is known, at the batch size at which it makes most images a second.

    Attributes:
        entrant: Which.
        row: Its fastest row.
        images_per_s: Images a second of that row, for each thread.
        is_best: Whether no other is both at least as good and faster.
    """

    entrant: Entrant
    row: LocalRow
    images_per_s: float
    is_best: bool


def frontier_points(report: Report) -> list[Point]:
    """Return the contestants with a quality, the best first."""
    found = []
    for entrant in report.entrants:
        rows = [row for row in report.local if row.key == entrant.key]
        if entrant.quality is not None and rows:
            fastest = max(rows, key=lambda row: row.images_per_s.value)
            found.append((entrant.quality.value, fastest.images_per_s.value / entrant.threads, entrant, fastest))
    return [
        Point(
            entrant=entrant,
            row=row,
            images_per_s=speed,
            is_best=not any(other <= distance and faster > speed for other, faster, _, _ in found),
        )
        for distance, speed, entrant, row in sorted(found, key=lambda one: one[:2])
    ]


def frontier_table(report: Report) -> Table:
    """Quality against throughput."""
    rows = [
        (
            point.entrant.source,
            on_of(point.entrant),
            distance_words(point.entrant.quality),
            figure(point.images_per_s),
            str(point.row.batch),
            "yes" if point.is_best else "",
        )
        for point in frontier_points(report)
    ]
    return Table(
        name="frontier",
        title="Quality against speed",
        columns=("model", "engine", "FD", "images/s per thread", "at batch", "on the frontier"),
        rows=tuple(rows),
        words=("model", "engine", "on the frontier"),
        notes=(
            "On the frontier: nothing measured here is at least as good and faster, by the figures without intervals.",
        ),
    )


def models_table(entrants: Sequence[Entrant]) -> Table:
    """What each model is: family, training, quality and how that was measured."""
    rows = {}
    for entrant in entrants:
        quality = entrant.quality
        images = NOT_GIVEN if quality is None else f"{quality.num_generated:,} / {quality.num_real:,}"
        updates = NOT_GIVEN if entrant.updates is None else f"{entrant.updates:,}"
        rows[entrant.source] = (
            entrant.source,
            entrant.family or NOT_GIVEN,
            "untrained" if entrant.updates == 0 else updates,
            quality.sampling if quality else NOT_GIVEN,
            distance_words(quality),
            images,
            quality.network if quality else NOT_GIVEN,
        )
    return Table(
        name="models",
        title="What was measured, and how good it is",
        columns=("model", "family", "updates", "sampled", "FD", "generated / real", "features"),
        rows=tuple(rows.values()),
        words=("model", "family", "sampled", "features"),
        notes=(
            "FD: Frechet distance, extrapolated to infinitely many samples, ± standard error of the extrapolation.",
            "Updates: optimiser steps that the weights have had.",
        ),
    )
