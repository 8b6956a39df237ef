"""Two reports beside each other: which figures are worse, by more than chance and a margin explain.

Runs at different times see different machines even where it is the same one, and no interval of one run knows how
much. So a change counts only beyond a margin, and what differs between the machines is said first.
"""

from __future__ import annotations

from dataclasses import dataclass

from kaem.bench.record import LocalRow, Report, ServerRow
from kaem.bench.report.formatting import NO_DIFFERENCE, TOO_FEW, Table, figure, on_of
from kaem.bench.statistics import Estimate, Ratio, separate_ratio
from kaem.errors import RequestError

MARGIN = 0.05

_SAME = ("processor", "cores", "governor", "memory", "GPU", "driver", "python", "onnxruntime", "onnxruntime-gpu")

Row = LocalRow | ServerRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One figure in both reports.

    Attributes:
        what: Row and figure.
        old_ms: Earlier value.
        new_ms: Later value.
        ratio: New over old, with its interval.
        verdict: "slower", "faster", or that no difference is shown.
    """

    what: str
    old_ms: float
    new_ms: float
    ratio: Ratio
    verdict: str


def check_margin(margin: float) -> None:
    """Refuse a margin outside 0 .. 1.

    Raises:
        RequestError: It is outside.
    """
    if not 0 <= margin < 1:
        raise RequestError(f"margin is {margin:g}, outside 0 .. 1", hint="0.05 is 5 percent")


def compare(old: Report, new: Report, *, margin: float = MARGIN) -> list[Change]:
    """Compare every figure that both reports have.

    Args:
        old: The earlier report.
        new: The later one.
        margin: Relative change below which nothing is claimed.

    Raises:
        RequestError: They have no row in common, or the margin is negative.
    """
    check_margin(margin)
    is_one_each = len(_sources(old)) == len(_sources(new)) == 1
    earlier = {_key(row, is_one_each): row for row in _rows(old)}
    changes = []
    for row in _rows(new):
        before = earlier.get(_key(row, is_one_each))
        if before is not None:
            changes += _changes(before, row, margin)
    if not changes:
        raise RequestError(
            f"the reports have nothing in common: {', '.join(_sources(old))} and {', '.join(_sources(new))}",
            hint="measure the same models with the same options",
        )
    return changes


def differing_machines(old: Report, new: Report) -> list[str]:
    """Say what differs between the machines and versions of two reports."""
    return [
        f"{name}: {old.machine.get(name, 'none')} then, {new.machine.get(name, 'none')} now"
        for name in _SAME
        if old.machine.get(name) != new.machine.get(name)
    ]


def change_table(changes: list[Change], margin: float) -> Table:
    """Show the changes."""
    rows = []
    for change in changes:
        ratio = change.ratio
        words = TOO_FEW
        if ratio.low is not None and ratio.high is not None:
            words = f"{ratio.value:.3g} ({ratio.low:.3g} to {ratio.high:.3g})"
        rows.append((change.what, figure(change.old_ms), figure(change.new_ms), words, change.verdict))
    return Table(
        name="compare",
        title="Then and now",
        columns=("figure", "then, ms", "now, ms", "now / then", "verdict"),
        rows=tuple(rows),
        words=("figure", "now / then", "verdict"),
        notes=(f"A change is claimed where the whole interval lies more than {100 * margin:g} % off 1.",),
    )


def _rows(report: Report) -> list[Row]:
    return [*report.local, *report.server]


def _sources(report: Report) -> list[str]:
    return list(dict.fromkeys([row.source for row in report.local] + [row.target for row in report.server]))


def _key(row: Row, is_one_each: bool) -> tuple[object, ...]:
    """What makes two rows the same; the model's name does not count where each report has only one."""
    if isinstance(row, LocalRow):
        return row.scenario, "" if is_one_each else row.source, row.engine, row.threads, row.batch
    return "server", "" if is_one_each else row.target, row.rate, row.kind, row.images


def _changes(old: Row, new: Row, margin: float) -> list[Change]:
    if isinstance(old, LocalRow) and isinstance(new, LocalRow):
        where = f"{new.source} ({on_of(new)}) {new.scenario} {new.batch}"
        return [
            _change(f"{where}: p50", old.p50_ms.value, new.p50_ms.value, new.launch_p50_ms, old.launch_p50_ms, margin),
            _change(f"{where}: cpu", old.cpu_ms.value, new.cpu_ms.value, new.launch_cpu_ms, old.launch_cpu_ms, margin),
            *_tail(f"{where}: p99", old.p99_ms, new.p99_ms, margin),
        ]
    if isinstance(old, ServerRow) and isinstance(new, ServerRow):
        where = f"{new.target} {new.rate:g}/s {new.kind}"
        names = ("p50", "p90", "p99")
        return [
            change
            for name, before, after in zip(names, old.last_ms, new.last_ms, strict=True)
            for change in _tail(f"{where}: last chunk {name}", before, after, margin)
        ]
    raise AssertionError("rows with the same key are of one kind")


def _change(
    what: str, old: float, new: float, news: tuple[float, ...], olds: tuple[float, ...], margin: float
) -> Change:
    ratio = separate_ratio(news, olds)
    return Change(what=what, old_ms=old, new_ms=new, ratio=ratio, verdict=_verdict(ratio, margin))


def _tail(what: str, old: Estimate | None, new: Estimate | None, margin: float) -> list[Change]:
    """Compare two estimates by their intervals: a ratio is claimed only where these do not meet."""
    if old is None or new is None:
        return []
    ratio = Ratio(new.value / old.value)
    if old.low is not None and old.high is not None and new.low is not None and new.high is not None:
        ratio = Ratio(ratio.value, new.low / old.high, new.high / old.low)
    return [Change(what=what, old_ms=old.value, new_ms=new.value, ratio=ratio, verdict=_verdict(ratio, margin))]


def _verdict(ratio: Ratio, margin: float) -> str:
    if ratio.low is None or ratio.high is None:
        return TOO_FEW
    if ratio.low > 1 + margin:
        return "slower"
    return "faster" if ratio.high < 1 / (1 + margin) else NO_DIFFERENCE
