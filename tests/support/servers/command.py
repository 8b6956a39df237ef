"""The `kaem` command run in this process: loading torch anew for each takes longer than most commands."""

from __future__ import annotations

import contextlib
import io
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from unittest.mock import patch

from cli.main import main


class _Kept(io.StringIO):
    """A stream that keeps what was written when `main` closes it."""

    def close(self) -> None:
        pass


def run_here(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `kaem WORDS` through its entry point; return exit code and streams as those of a process."""
    arguments = [str(word) for word in words]
    out, err = _Kept(), _Kept()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with (
            patch.object(sys, "argv", ["kaem", *arguments]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            contextlib.chdir(cwd or Path.cwd()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # of libraries, which a user sees on stderr
            main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    else:
        code = 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())
