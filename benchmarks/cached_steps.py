"""Commands whose results are kept under a digest of everything that decides them, and not run again.

A step is one `kaem` command that makes one file. Its identity holds the settings, the digest of the data, and that
of the code: the syntax trees of the modules that take part, so that comments and layout do not count. Beside the file
lies `FILE.made.json`: identity, command, time, and the file's own digest. The record is written last; a step that was
cut off is run again, and goes on where training had saved.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One command.

    Attributes:
        makes: The file that it leaves.
        words: After `kaem`.
        identity: All that decides the result, in plain containers; "code" is the digest of the code.
        resume: Words to add where the file exists already, unfinished.
    """

    makes: Path
    words: tuple[str, ...]
    identity: Mapping[str, Any]
    resume: tuple[str, ...] = ()

    @property
    def record(self) -> Path:
        """Where it is written down that the step is done."""
        return self.makes.with_name(self.makes.name + ".made.json")

    @property
    def line(self) -> str:
        """The command as a user types it."""
        import shlex

        return shlex.join(("kaem", *self.words))


def digest_of(content: Any) -> str:
    """Return the SHA-256 of plain containers, in hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_code(folders: Iterable[str], without: Iterable[str] = ()) -> str:
    """Return the digest of all modules below some folders of the repository, docstrings and comments left out.

    Raises:
        FileNotFoundError: There is no such folder: its code would count as never changed.
    """
    folders = list(folders)
    if missing := [folder for folder in folders if not (ROOT / folder).is_dir()]:
        raise FileNotFoundError(f"no folder {', '.join(missing)} in the repository")
    left_out = tuple(ROOT / name for name in without)
    parts = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not any(path.is_relative_to(one) for one in left_out):
                parts[str(path.relative_to(ROOT))] = ast.dump(_without_docstrings(ast.parse(path.read_bytes())))
    return digest_of(parts)


def made(step: Step) -> dict[str, Any] | None:
    """Return the record of a finished step whose file is still what it made; None otherwise."""
    try:
        record: dict[str, Any] = json.loads(step.record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not step.makes.is_file() or record.get("file") != digest_of_file(step.makes):
        return None
    return record


def is_done(step: Step, *, any_code: bool = False) -> bool:
    """Whether the very step has been run to its end; with `any_code`, perhaps by code that had other settings."""
    record = made(step)
    if record is None:
        return False
    wanted = json.loads(json.dumps(dict(step.identity)))
    return _agree(record["identity"], wanted) if any_code else bool(record["identity"] == wanted)


def run(step: Step, log: Path) -> None:
    """Run a step and write its record.

    Raises:
        SystemExit: The command failed; its words are in the log.
    """
    resumed = bool(step.resume) and step.makes.exists()
    words = (*step.words, *(step.resume if resumed else ()))
    print(f"kaem {' '.join(words)}", flush=True)
    begin, spent = time.monotonic(), _processor_seconds()
    with log.open("a", encoding="utf-8") as out:
        out.write(f"$ kaem {' '.join(words)}\n")
        out.flush()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-P", "-m", "cli.main", *words]
        code = subprocess.run(command, stdout=out, stderr=out, env=environment, check=False).returncode
    if code != 0:
        sys.exit(f"failed with {code}; see {log}")
    record = {
        "command": step.line,
        "identity": dict(step.identity),
        "file": digest_of_file(step.makes),
        "resumed": resumed,
        "seconds": round(time.monotonic() - begin, 1),
        "processor_seconds": round(_processor_seconds() - spent, 1),
    }
    draft = step.record.with_name(step.record.name + ".tmp")
    draft.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draft.replace(step.record)


def _agree(one: Any, other: Any) -> bool:
    """Whether two identities say the same but for the code, and for settings that only one version of it has."""
    if isinstance(one, dict) and isinstance(other, dict):
        return all(_agree(one[name], other[name]) for name in one.keys() & other.keys() - {"code"})
    return bool(one == other)


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
            and isinstance(body[0].value.value, str)
        ):
            del body[0]
    return tree
