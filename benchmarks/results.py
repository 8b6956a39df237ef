"""Train and evaluate every row of docs/results.md, with the same commands that a user types.

    python benchmarks/results.py fashion-mnist --data ../shared/data --out runs/results --jobs 2
    python benchmarks/results.py fashion-mnist --data ../shared/data --out runs/results --report docs/results.md

A row is a chain of `kaem` commands that ends in a checkpoint, then `kaem eval` on it. What is finished is kept in
the output folder and not done again; rows run one thread each, several at a time.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from results_rows import PLANS, Chain, Row
from results_table import write_report


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One row of one chain: its commands with every placeholder filled, and where its results lie."""

    chain: Chain
    row: Row
    folder: Path
    commands: tuple[tuple[str, ...], ...]

    @property
    def lines(self) -> tuple[str, ...]:
        """The commands as a user would type them."""
        return tuple(shlex.join(command) for command in self.commands)

    @property
    def num_done(self) -> int:
        """How many of these very commands have been run to their end."""
        recorded = self.folder / "commands.txt"
        found = recorded.read_text().splitlines() if recorded.is_file() else []
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(found, self.lines, strict=False)))

    @property
    def is_done(self) -> bool:
        """Whether all of them have."""
        return self.num_done == len(self.commands)


def jobs_of(chain: Chain, data: Path, out: Path) -> list[Job]:
    """Return the rows of one chain in their order, ready to run."""
    folders = {row.name: out / chain.name / row.name / f"seed{chain.seed}" for row in chain.rows}
    jobs = []
    for row in chain.rows:
        folder = folders[row.name]
        words = {"data": data / chain.file, "out": folder, "seed": chain.seed, **chain.words}
        words |= {name.replace("-", "_"): path for name, path in folders.items()}
        lines = (row.command, f"eval {{out}}/ckpt.pt --json {{out}}/eval.json --grid {{out}}/samples.png {chain.eval}")
        commands = tuple(("kaem", *shlex.split(line.format(**words))) for line in lines)
        jobs.append(Job(chain=chain, row=row, folder=folder, commands=commands))
    return jobs


def run_chain(jobs: list[Job]) -> bool:
    """Run what is not done yet; a failing command ends the chain and is shown with the end of its output."""
    for job in jobs:
        done = job.num_done
        if done == len(job.commands):
            continue
        job.folder.mkdir(parents=True, exist_ok=True)
        if done == 0:
            (job.folder / "ckpt.pt").unlink(missing_ok=True)
        (job.folder / "commands.txt").write_text("".join(f"{line}\n" for line in job.lines[:done]))
        for command, line in list(zip(job.commands, job.lines, strict=True))[done:]:
            if not _run(command, line, job.folder):
                return False
    return True


def _run(command: tuple[str, ...], line: str, folder: Path) -> bool:
    print(line, flush=True)
    with (folder / "log.txt").open("a") as log:
        log.write(f"$ {line}\n")
        log.flush()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        code = subprocess.run(command, stdout=log, stderr=log, env=environment, check=False).returncode
    if code != 0:
        print(f"failed with {code}; see {log.name}", file=sys.stderr)
        return False
    with (folder / "commands.txt").open("a") as recorded:
        recorded.write(f"{line}\n")
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", nargs="+", choices=PLANS, metavar="PLAN", help=", ".join(PLANS))
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets named in the plans")
    parser.add_argument("--out", type=Path, default=Path("runs/results"), help="where runs and figures are kept")
    parser.add_argument("--jobs", type=int, default=2, help="chains at a time, one thread each")
    parser.add_argument("--rows", help="only these rows, by the names of their folders: vae,kaem,...")
    parser.add_argument("--report", type=Path, help="only rewrite the tables of this Markdown file from what is there")
    options = parser.parse_args()
    chains = [chain for plan in options.plans for chain in PLANS[plan]]
    missing = sorted({chain.file for chain in chains if not (options.data / chain.file).exists()})
    if missing:
        sys.exit(f"{options.data} lacks {', '.join(missing)}")
    planned = [jobs_of(chain, options.data, options.out) for chain in chains]
    if options.rows:
        wanted = options.rows.split(",")
        planned = [[job for job in jobs if job.row.name in wanted] for jobs in planned]
    if options.report is None:
        with ThreadPoolExecutor(options.jobs) as pool:
            if not all(list(pool.map(run_chain, planned))):
                sys.exit(1)
    else:
        write_report(options.report, [job for jobs in planned for job in jobs], options.out)


if __name__ == "__main__":
    main()
