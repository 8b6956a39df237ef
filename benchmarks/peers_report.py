"""What the timed runs and the figures of quality say together: an HTML page, a record and pictures for the docs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark_page import PAGE, RECORDS, Block, block_of_table, blocks_of, render_page, write_record
from peers_goals import answer, goals, goals_table
from peers_timing import EXPORTED, SAME_DECODER, Run

from kaem.bench.record import Report
from kaem.bench.report.formatting import Table, figure
from kaem.bench.report.frontier import frontier_table, models_table
from kaem.bench.report.page import STYLE, page_of_all
from kaem.bench.report.plots import frontier_svg


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How a model came about.

    Attributes:
        name: Name of the model.
        config: Its whole configuration.
        record: What `cached_steps` wrote down.
        is_older_code: Whether other code than the present one trained it.
    """

    name: str
    config: Mapping[str, Any]
    record: Mapping[str, Any]
    is_older_code: bool


def trainings_table(trainings: Sequence[Training]) -> Table:
    """Show what each model had of training, so that nobody compares budgets unawares."""
    rows = []
    for one in trainings:
        config = one.config
        minutes = one.record["processor_seconds"] / 60
        rows.append(
            (
                one.name,
                str(config["family"]),
                _network(config),
                f"{config['training']['updates']:,} x {config['training']['batch_size']}",
                figure(minutes) + (" after a break" if one.record.get("resumed") else ""),
            )
        )
    older = [one.name for one in trainings if one.is_older_code]
    return Table(
        name="trainings",
        title="Training",
        columns=("model", "family", "network", "updates x images", "processor minutes"),
        rows=tuple(rows),
        words=("model", "family", "network"),
        notes=(
            "All on the same images and seed, one thread; minutes are of the whole run of `kaem train`.",
            *([f"Trained by an earlier version of the code: {', '.join(older)}."] if older else []),
        ),
    )


def write(
    reports: Mapping[Run, Report],
    trainings: Sequence[Training],
    sheets: Mapping[str, Path],
    commands: Sequence[str],
    *,
    out: Path,
    is_recorded: bool,
) -> None:
    """Write `peers.html` and the picture; if wanted, keep the record and write docs/benchmark-results.md from it.

    Args:
        reports: Reports of every run.
        trainings: Records of the training of every model.
        sheets: Sample sheets to show, by sampler.
        commands: Commands that trained, exported and evaluated, and the one that did it all.
        out: Folder of the HTML page and of the picture.
        is_recorded: Whether the record, the page and its pictures in docs/benchmarks are written.
    """
    by_name = {run.name: report for run, report in reports.items()}
    exported = by_name[EXPORTED.name]
    found = goals(exported, by_name.get(SAME_DECODER.name, exported))
    tables = [goals_table(found), trainings_table(trainings)]
    titles = {run.title: report for run, report in reports.items()}
    html = page_of_all(titles, title="KAEM beside its peers", found=[answer(found)], tables=tables)
    (out / "peers.html").write_text(html, encoding="utf-8")
    (out / "frontier.svg").write_text(standalone(frontier_svg(exported)), encoding="utf-8")
    if not is_recorded:
        return
    folder = PAGE.with_name("benchmarks")
    folder.mkdir(exist_ok=True)
    shutil.copyfile(out / "frontier.svg", folder / "frontier.svg")
    for name, sheet in sheets.items():
        shutil.copyfile(sheet, folder / f"{name}.png")
    tables += [frontier_table(exported), models_table(exported.entrants)]
    blocks: list[Block] = [
        {"text": f"**{answer(found)}**"},
        {"text": f"![Quality against speed]({folder.name}/frontier.svg)"},
        *(block_of_table(table) for table in tables),
        *_pictures(folder.name, sheets),
        *({"fold": run.title, "blocks": blocks_of(report)} for run, report in reports.items()),
        {"fold": "All commands", "blocks": [{"command": commands}]},
    ]
    write_record(RECORDS / "peers.json", blocks)
    PAGE.write_text(render_page(RECORDS), encoding="utf-8")


def standalone(svg: str) -> str:
    """Return an SVG of the page as a file of its own: its colours follow the reader's light or dark mode."""
    rules = re.findall(r":root \{.*?\}", STYLE, re.DOTALL)
    style = f"{rules[0]} @media (prefers-color-scheme: dark) {{ {rules[1]} }} text {{ font-family: sans-serif; }}"
    head, end, rest = svg.partition(">")
    return f"{head}{end}<style>{style}</style>{rest}"


def _network(config: Mapping[str, Any]) -> str:
    match config["family"]:
        case "ddpm":
            return f"UNet {list(config['diffusion']['channels'])}"
        case "kaem" | "vae" | "latent_ebm":
            generator = config["generator"]
            return f"{config['prior']['num_latents']} -> {generator['dense']} -> {list(generator['channels'])}"
        case unknown:
            raise AssertionError(f"no network is known of the family {unknown!r}")


def _pictures(folder: str, sheets: Mapping[str, Path]) -> list[Block]:
    """Show sample sheets three in a row."""
    blocks: list[Block] = [{"text": "The first 64 samples of each, unselected:"}]
    names = list(sheets)
    for start in range(0, len(names), 3):
        some = tuple(names[start : start + 3])
        row = tuple(f"![{name}]({folder}/{name}.png)" for name in some)
        blocks.append(block_of_table(Table(name="sheets", title="", columns=some, rows=(row,), words=some)))
    return blocks
