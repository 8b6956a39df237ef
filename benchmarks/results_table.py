"""Measured rows -> the tables and sample grids of docs/results.md.

The page holds a pair of comments for every plan, `<!-- table: fashion-mnist -->` and `<!-- end -->`; what stands
between them is rewritten, the prose around stays as it is.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from results import Job

_COLUMNS = {
    "frechet_infinity": "{distance} at infinity",
    "kernel_infinity": "{kernel} x 1000 at infinity",
    "frechet_reconstruction": "floor: reconstructions",
    "log_likelihood": "log p(x) at least, nats",
    "reconstruction_error": "MSE x 1000",
    "precision": "precision",
    "recall": "recall",
    "active_coordinates": "active latents",
}
_SCALES = {"kernel_infinity": 1e3, "reconstruction_error": 1e3}
_RATIOS = ("frechet_infinity", "kernel_infinity")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A row's figures over its seeds: name -> seed -> value."""

    label: str
    figures: Mapping[str, Mapping[int, float]]


def write_report(page: Path, jobs: Sequence[Job], out: Path) -> None:
    """Rewrite the tables of a page from the finished jobs in `out`, and copy the first seed's grids beside it."""
    text = page.read_text()
    for name in dict.fromkeys(job.chain.name for job in jobs):
        done = [job for job in jobs if job.chain.name == name and job.is_done]
        pattern = re.compile(rf"(<!-- table: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        if done and not pattern.search(text):
            raise SystemExit(f"{page} has no place for the table {name!r}")
        if done:
            block = _block(page, name, done).replace(str(out), "runs/results")
            text = pattern.sub(lambda match, block=block: match[1] + block + match[2], text)
    page.write_text(text)


def _block(page: Path, name: str, jobs: Sequence[Job]) -> str:
    reports = {job.folder: json.loads((job.folder / "eval.json").read_text()) for job in jobs}
    seeds = sorted({job.chain.seed for job in jobs})
    rows = []
    for row in dict.fromkeys(job.row for job in jobs):
        of_row = {job.chain.seed: reports[job.folder]["figures"] for job in jobs if job.row == row}
        names = [figure for figure in _COLUMNS if all(figure in figures for figures in of_row.values())]
        values = {figure: {seed: of_row[seed][figure]["value"] for seed in sorted(of_row)} for figure in names}
        label = row.label if len(of_row) == len(seeds) else f"{row.label} (seed {', '.join(map(str, sorted(of_row)))})"
        rows.append(Measured(label=label, figures=values))
    first = next(iter(reports.values()))
    when = datetime.fromtimestamp(max((job.folder / "eval.json").stat().st_mtime for job in jobs), tz=UTC)
    lines = [
        f"Network: {first['network']['name']} ({first['network']['description']}). "
        f"{first['num_generated']:,} generated, {first['num_real']:,} real images ({first['real']} split). "
        f"{_seeds(seeds)} "
        f"{when:%Y-%m-%d}, {_machine()}, one thread a run.",
        "",
        *_table(rows, first["network"]["name"]),
        "",
        *_grids(page, name, [job for job in jobs if job.chain.seed == seeds[0]]),
        "",
        "<details><summary>Commands</summary>",
        "",
        "```sh",
        *(line for job in jobs if job.chain.seed == seeds[0] for line in job.lines),
        "```",
        "",
        "</details>",
        "",
    ]
    return "\n".join(lines)


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"Seed {seeds[0]}."
    return f"Seeds {', '.join(map(str, seeds))}: mean (lowest to highest)."


def _table(rows: Sequence[Measured], network: str) -> list[str]:
    words = {"distance": "FID", "kernel": "KID"} if network == "inception" else {"distance": "FD", "kernel": "KD"}
    shown = [figure for figure in _COLUMNS if any(figure in row.figures for row in rows)]
    heads = [_COLUMNS[figure].format(**words) for figure in shown]
    heads += [f"{_COLUMNS[figure].format(**words)} / VAE's" for figure in _RATIOS]
    lines = ["| model | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    reference = rows[0].figures
    for row in rows:
        cells = [_cell(row.figures.get(figure), _SCALES.get(figure, 1.0)) for figure in shown]
        for figure in _RATIOS:
            ratios = [value / reference[figure][seed] for seed, value in row.figures[figure].items()]
            cells.append(f"{fmean(ratios):.3f}")
        lines.append(f"| {row.label} | " + " | ".join(cells) + " |")
    return lines


def _cell(values: Mapping[int, float] | None, scale: float) -> str:
    if values is None:
        return "-"
    scaled = [scale * value for value in values.values()]
    if len(scaled) == 1 or max(scaled) == min(scaled):
        return _number(scaled[0])
    return f"{_number(fmean(scaled))} ({_number(min(scaled))} to {_number(max(scaled))})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000.0 else f"{value:.4g}"


def _grids(page: Path, name: str, jobs: Sequence[Job]) -> list[str]:
    """Copy the unselected samples of every row to a folder beside the page and show them two by two."""
    folder = page.with_suffix("")
    folder.mkdir(exist_ok=True)
    cells: list[tuple[str, str]] = []
    for job in jobs:
        target = folder / f"{name}-{job.row.name}.png"
        shutil.copyfile(job.folder / "samples.png", target)
        cells.append((job.row.label, f"![{job.row.label}]({folder.name}/{target.name})"))
    lines = []
    for start in range(0, len(cells), 3):
        labels, pictures = zip(*cells[start : start + 3], strict=True)
        lines += [f"| {' | '.join(labels)} |", "|---" * len(labels) + "|", f"| {' | '.join(pictures)} |", ""]
    return lines


def _machine() -> str:
    model: Any = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model}, CPU only"
