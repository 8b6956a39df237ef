"""The plots of a report, drawn by matplotlib as SVG whose colours the page decides, so that it can be dark."""

from __future__ import annotations

import importlib
import io
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kaem.bench.record import QUANTILES, Entrant, LocalRow, Report, ServerRow
from kaem.bench.report.formatting import name_of
from kaem.bench.report.frontier import frontier_points
from kaem.bench.report.tables import PHASES
from kaem.errors import BackendError

NUM_COLOURS = 8

# Stand-ins that the page replaces by its own colours: matplotlib writes them as they are.
_INK, _LINE = "#0b0b0b", "#0c0c0c"
_SERIES = [f"#0a000{number}" for number in range(1, NUM_COLOURS + 1)]
_MARKERS = "osD^vPX*"


def local_plots(rows: Sequence[LocalRow]) -> list[tuple[str, str]]:
    """Return (caption, SVG) of one scenario's rows: time and throughput over batch size, and spread."""
    plots = []
    if len({row.batch for row in rows}) > 1:
        plots.append(("Median time of a call and images per second, with 95 % intervals.", _over_batches(rows)))
    for batch in sorted({row.batch for row in rows})[:: max(1, len({row.batch for row in rows}) - 1)]:
        chosen = [row for row in rows if row.batch == batch]
        plots.append((f"Spread of single calls, batch {batch}: 5 to 95 %, 20 to 80 %, median.", _spread(chosen)))
    return plots


def frontier_plot(report: Report) -> tuple[str, str]:
    """Return (caption, SVG) of quality over throughput, a line through the widths of every family."""
    caption = "Frechet distance over images per second and thread, both logarithmic: better is down, faster is right."
    return caption, frontier_svg(report)


def frontier_svg(report: Report) -> str:
    """Draw quality over throughput; a distance at or below 0, which extrapolation can give, stands at the bottom."""
    points = frontier_points(report)
    positive = [
        point.entrant.quality.value for point in points if point.entrant.quality and point.entrant.quality.value > 0
    ]
    least = min(positive, default=1.0)

    def draw(axes: Any) -> None:
        axis = axes[0]
        groups: dict[str, list[tuple[float, float, str]]] = {}
        for point in points:
            entrant, quality = point.entrant, point.entrant.quality
            distance = least if quality is None else max(quality.value, least)
            group = f"{entrant.family or entrant.source}, {entrant.engine}"
            groups.setdefault(group, []).append((point.images_per_s, distance, Path(entrant.source).stem))
        for index, (group, members) in enumerate(groups.items()):
            members.sort()
            style = {**_style(index), "linewidth": 1 if len(members) > 1 else 0}
            axis.plot([x for x, _, _ in members], [y for _, y, _ in members], label=group, **style)
            for number, (x, y, label) in enumerate(members):  # right and left in turn, for neighbours lie close
                offset, side = ((6, -3), "left") if number % 2 == 0 else ((-6, -3), "right")
                axis.annotate(label, (x, y), xytext=offset, textcoords="offset points", fontsize=8, ha=side)
        axis.set(xscale="log", yscale="log", xlabel="images/s and thread", ylabel="Frechet distance")
        axis.margins(x=0.14, y=0.1)

    return _svg(draw, columns=1, height=4.6, is_legend=True)


def start_plot(entrants: Sequence[Entrant]) -> tuple[str, str]:
    """Return (caption, SVG) of the starts from nothing, by phase."""
    return "From nothing to the first image: medians of the phases.", _starts(entrants)


def server_plot(rows: Sequence[ServerRow]) -> tuple[str, str]:
    """Return (caption, SVG) of times and completed requests over the rate."""
    return "Time to the last chunk and completed requests over the rate of arrivals.", _over_rates(rows)


def _over_batches(rows: Sequence[LocalRow]) -> str:
    def draw(axes: Any) -> None:
        for index, name in enumerate(_names(rows)):
            own = sorted((row for row in rows if name_of(row) == name), key=lambda row: row.batch)
            batches = [row.batch for row in own]
            for axis, figures in zip(axes, ([r.p50_ms for r in own], [r.images_per_s for r in own]), strict=True):
                values = [one.value for one in figures]
                below = [one.value - (one.value if one.low is None else one.low) for one in figures]
                above = [(one.value if one.high is None else one.high) - one.value for one in figures]
                spread = [[max(0.0, value) for value in side] for side in (below, above)]
                axis.errorbar(batches, values, yerr=spread, label=name, capsize=2, **_style(index))
        for axis, label in zip(axes, ("p50, ms", "images/s"), strict=True):
            axis.set(xscale="log", yscale="log", xlabel="batch", ylabel=label)
            axis.set_xticks(sorted({row.batch for row in rows}), [str(b) for b in sorted({row.batch for row in rows})])
            axis.minorticks_off()

    return _svg(draw, columns=2, is_legend=True)


def _spread(rows: Sequence[LocalRow]) -> str:
    def draw(axes: Any) -> None:
        axis = axes[0]
        for index, row in enumerate(rows):
            at = dict(zip(QUANTILES, row.quantiles_ms, strict=True))
            colour = _SERIES[index % NUM_COLOURS]
            axis.plot([at[0.05], at[0.95]], [index, index], color=colour, linewidth=1)
            axis.plot([at[0.2], at[0.8]], [index, index], color=colour, linewidth=5, solid_capstyle="butt")
            axis.plot([at[0.5]], [index], color=colour, marker=_MARKERS[index % NUM_COLOURS], markersize=8)
        axis.set_yticks(range(len(rows)), [name_of(row) for row in rows])
        axis.invert_yaxis()
        axis.margins(y=0.3)
        axis.set(xlabel="wall time of a call, ms", xscale="log")

    return _svg(draw, columns=1, height=0.7 + 0.35 * len(rows))


def _starts(entrants: Sequence[Entrant]) -> str:
    def draw(axes: Any) -> None:
        axis = axes[0]
        left = [0.0] * len(entrants)
        for index, phase in enumerate(PHASES):
            widths = [statistics.median(one[phase] for one in entrant.cold_s) for entrant in entrants]
            axis.barh(range(len(entrants)), widths, left=left, height=0.6, color=_SERIES[index], label=_spaced(phase))
            left = [before + width for before, width in zip(left, widths, strict=True)]
        axis.set_yticks(range(len(entrants)), [name_of(entrant) for entrant in entrants])
        axis.invert_yaxis()
        axis.set(xlabel="seconds")

    return _svg(draw, columns=1, height=1.0 + 0.35 * len(entrants), is_legend=True)


def _over_rates(rows: Sequence[ServerRow]) -> str:
    def draw(axes: Any) -> None:
        names = list(dict.fromkeys(f"{row.target} {row.kind}" for row in rows))
        for index, name in enumerate(names):
            own = sorted((row for row in rows if f"{row.target} {row.kind}" == name), key=lambda row: row.rate)
            for part, (percent, dashes) in enumerate((("p50", "--"), ("p99", "-"))):
                times = [(row.rate, row.last_ms[2 * part]) for row in own]
                known = [(rate, one.value) for rate, one in times if one is not None and one.value < float("inf")]
                style = {**_style(index), "linestyle": dashes}
                axes[0].plot(*_columns(known), label=f"{name} {percent}", **style)
            axes[1].plot(*_columns([(row.rate, row.goodput_per_s) for row in own]), **_style(index))
        axes[0].set(xlabel="arrivals, 1/s", ylabel="last chunk, ms", yscale="log")
        axes[1].set(xlabel="arrivals, 1/s", ylabel="completed, 1/s")
        axes[1].axline((0, 0), slope=1, color=_LINE, linewidth=1, zorder=0)
        for axis in axes:
            axis.set_xlim(left=0)
        axes[1].set_ylim(bottom=0)

    return _svg(draw, columns=2, is_legend=True)


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in pairs], [y for _, y in pairs]


def _style(index: int) -> dict[str, Any]:
    number = index % NUM_COLOURS
    return {"color": _SERIES[number], "marker": _MARKERS[number], "markersize": 5, "linewidth": 1.5}


def _names(rows: Sequence[LocalRow]) -> list[str]:
    return list(dict.fromkeys(name_of(row) for row in rows))


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _svg(draw: Callable[[Any], None], *, columns: int, height: float = 3.2, is_legend: bool = False) -> str:
    """Draw on fresh axes and return an `<svg>` element that takes its colours and fonts from the page."""
    try:
        figures = importlib.import_module("matplotlib.figure")
        matplotlib = importlib.import_module("matplotlib")
    except ImportError:
        raise BackendError("the HTML page needs matplotlib", hint="pip install 'kaem[bench]'") from None
    style = {
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), _INK),
        **{"axes.grid": True, "grid.color": _LINE, "grid.linewidth": 0.6, "axes.spines.top": False},
        **{"axes.spines.right": False, "svg.fonttype": "none", "font.size": 10, "axes.axisbelow": True},
        **{"font.family": "sans-serif", "legend.frameon": False, "figure.dpi": 72},
    }
    with matplotlib.rc_context(style):
        figure = figures.Figure(figsize=(9.5, height), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)[0]
        draw(axes)
        if is_legend:
            handles, labels = axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside upper left", ncols=2, fontsize=9)
        target = io.StringIO()
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = target.getvalue()
    return _coloured(text[text.index("<svg") :])


def _coloured(svg: str) -> str:
    for number, stand_in in enumerate(_SERIES, start=1):
        svg = svg.replace(stand_in, f"var(--series-{number})")
    svg = svg.replace(_INK, "var(--ink)").replace(_LINE, "var(--line)")
    svg = re.sub(r"font: ([0-9.]+)px [^;\"]*", r"font-size: \1px", svg)
    return re.sub(r'^<svg ([^>]*?)width="[^"]*" height="[^"]*"', r'<svg role="img" \1', svg, count=1)
