"""What the comparison was to show, and what was measured: each goal with its ratio, its interval and a verdict.

Ratios are of time for each image, launch by launch within one run. A goal is met or missed only where the whole
interval says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from kaem.bench.record import Entrant, LocalRow, Report
from kaem.bench.report.formatting import Table, distance_words, figure
from kaem.bench.statistics import Ratio, paired_ratio

REFERENCE = "kaem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One goal.

    Attributes:
        what: Which two are compared, and at what work.
        wanted: The least ratio of images a second; None where there is no goal.
        found: The ratio; None where it was not measured.
        note: Quality, and what else it takes to read the ratio.
    """

    what: str
    wanted: float | None
    found: Ratio | None
    note: str = ""

    @property
    def verdict(self) -> str:
        """Met or missed where the whole interval is on one side of what was wanted."""
        if self.found is None:
            return "not measured"
        if self.found.low is None or self.found.high is None:
            return "too few launches"
        if self.wanted is None:
            return "no goal"
        if self.found.low >= self.wanted:
            return "met"
        return "missed" if self.found.high < self.wanted else "not decided"


def goals(exported: Report, same_decoder: Report) -> list[Goal]:
    """Return every goal with what two reports say about it."""
    found = [_at_equal_quality(exported, batch, wanted) for batch, wanted in ((64, 3), (1, None))]
    ddim = [_best(exported, name) for name in (REFERENCE, "ddim-50")]
    batches = " and ".join(str(row.batch) if row else "none" for row in ddim)
    found.append(
        Goal(
            what=f"KAEM over DDIM-50, each at its best batch ({batches})",
            wanted=300,
            found=_ratio(*ddim),
            note=_distances(exported, REFERENCE, "ddim-50"),
        )
    )
    for batch, wanted in ((64, 1.5), (1, 3.0)):
        pair = [_row(exported, name, batch) for name in (REFERENCE, "latent-ebm")]
        found.append(
            Goal(
                what=f"KAEM over the latent EBM, batch {batch}",
                wanted=wanted,
                found=_ratio(*pair),
                note=_distances(exported, REFERENCE, "latent-ebm"),
            )
        )
    for batch in (1, 64):
        pair = [_row(same_decoder, name, batch) for name in (REFERENCE, "vae")]
        found.append(
            Goal(
                what=f"KAEM over the VAE with the same decoder, batch {batch}",
                wanted=0.97,
                found=_ratio(*pair),
                note=_distances(same_decoder, REFERENCE, "vae"),
            )
        )
    return found


def goals_table(found: list[Goal]) -> Table:
    """Show goals beside what was measured."""
    rows = tuple(
        (goal.what, "-" if goal.wanted is None else f"{goal.wanted:g}", _words(goal.found), goal.verdict, goal.note)
        for goal in found
    )
    return Table(
        name="goals",
        title="Goals",
        columns=("images/s, ratio", "at least", "measured", "verdict", "quality (FD, smaller is better)"),
        rows=rows,
        words=("images/s, ratio", "measured", "verdict", "quality (FD, smaller is better)"),
        notes=(
            "A goal is met or missed only where the whole 95 % interval says so. The fastest decoder is chosen by "
            "these same figures, which its interval does not pay for.",
            "With the same decoder KAEM and VAE differ in the prior alone. Latent EBM and diffusion were trained for "
            "minutes: more would better their distances and leave their speed.",
        ),
    )


def answer(found: list[Goal]) -> str:
    """Say in one sentence how much faster KAEM is at the VAE's quality."""
    goal = found[0]
    if goal.found is None:
        return "No KAEM decoder reached the VAE's distance."
    return f"{goal.what}: {_words(goal.found)} times as many images a second ({goal.note})."


def _at_equal_quality(report: Report, batch: int, wanted: float | None) -> Goal:
    """Compare the VAE of the preset's width with the fastest KAEM decoder whose distance is not above the VAE's."""
    entrants = {_name(entrant): entrant for entrant in report.entrants if entrant.quality}
    limit = entrants["vae"].quality if "vae" in entrants else None
    candidates = [
        (row.images_per_s.value, name)
        for name, entrant in entrants.items()
        if entrant.family == "kaem" and entrant.quality and limit and entrant.quality.value <= limit.value
        for row in [_row(report, name, batch)]
        if row is not None
    ]
    what = "The fastest KAEM decoder at the VAE's distance or below, over the VAE"
    if not candidates:
        return Goal(what=f"{what}, batch {batch}", wanted=wanted, found=None)
    _, name = max(candidates)
    found = _ratio(_row(report, name, batch), _row(report, "vae", batch))
    return Goal(
        what=f"{what}, batch {batch}", wanted=wanted, found=found, note=f"{name}: {_distances(report, name, 'vae')}"
    )


def _ratio(fast: LocalRow | None, slow: LocalRow | None) -> Ratio | None:
    """How many times as many images a second the first makes, by medians of launches that ran side by side."""
    if fast is None or slow is None:
        return None
    times = [[time / row.batch for time in row.launch_p50_ms] for row in (slow, fast)]
    return paired_ratio(*times)


def _best(report: Report, name: str) -> LocalRow | None:
    rows = [row for row in report.local if _name(row) == name]
    return max(rows, key=lambda row: row.images_per_s.value, default=None)


def _row(report: Report, name: str, batch: int) -> LocalRow | None:
    return next((row for row in report.local if _name(row) == name and row.batch == batch), None)


def _name(one: LocalRow | Entrant) -> str:
    return one.source.removesuffix(".onnx")


def _distances(report: Report, *names: str) -> str:
    by_name = {_name(entrant): entrant.quality for entrant in report.entrants}
    return " against ".join(distance_words(by_name.get(name)) for name in names)


def _words(ratio: Ratio | None) -> str:
    if ratio is None:
        return "-"
    if ratio.low is None or ratio.high is None:
        return figure(ratio.value)
    return f"{figure(ratio.value)} ({figure(ratio.low)} to {figure(ratio.high)})"
