"""Lines of Python in each package, beside the budgets in pyproject.toml; exit code 1 above one, or in a crowded folder.

python scripts/lines.py
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST_FILES = 14  # side by side in one folder


def main() -> None:
    """Print a line for each package."""
    budgets: dict[str, int] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["kaem"]["lines"]
    is_too_much = False
    for package, budget in budgets.items():
        files = [path for path in (ROOT / package).rglob("*.py") if "_pb2" not in path.name]
        lines = sum(len(path.read_text().splitlines()) for path in files)
        over = lines > budget
        print(f"{package:12} {len(files):4} files {lines:7,} lines of {budget:7,}{'  TOO MANY' if over else ''}")
        is_too_much |= over
        for folder in sorted({path.parent for path in files}):
            num = len(list(folder.glob("*.py"))) - len(list(folder.glob("*_pb2*.py")))
            if num > MOST_FILES:
                print(f"{folder.relative_to(ROOT)} has {num} files, more than {MOST_FILES}: divide it")
                is_too_much = True
    sys.exit(is_too_much)


if __name__ == "__main__":
    main()
