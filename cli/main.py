"""The `kaem` command: registers the commands and turns errors into one line and an exit code.

Nothing heavy is imported here or at the top of a command's file, so that help and shell completion are quick.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

import kaem
from cli.admin import app as admin
from cli.bench.command import bench
from cli.evaluate import evaluate
from cli.export import export
from cli.fit_prior import fit_prior
from cli.info import info
from cli.sample import sample
from cli.serve import serve
from cli.train import train
from cli.verify import verify
from kaem.errors import KaemError

app = typer.Typer(
    name="kaem",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="A first round: `kaem train digits`, `kaem export runs/digits/ckpt.pt`, "
    "`kaem sample runs/digits/model.onnx -n 64 -o grid.png`.",
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"kaem {kaem.__version__}")  # noqa: T201
        raise typer.Exit


@app.callback()
def _kaem(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Images now: train a Kolmogorov-Arnold Energy Model, compile it to one ONNX graph, stream samples from it."""


_EXTRAS = {
    "torch": "train",
    "sklearn": "train",
    "tensorboard": "train",
    "torchmetrics": "train",
    "diffusers": "diffusion",
    "scipy": "export",
    "onnx": "export",
    "onnxscript": "export",
    "prometheus_client": "http",
    "starlette": "http",
    "uvicorn": "http",
    "opentelemetry": "telemetry",
}
"""The extra that brings each module that a sampling or serving box does without."""

for command in (train, fit_prior, export, verify, serve, sample, bench, info):
    app.command()(command)
app.command("eval")(evaluate)
app.add_typer(admin, name="admin")


def main() -> None:
    """Run the command line; exit 2 for a user's mistake, 1 for a failure, 128 + n when signal n ends it."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup asks not to be ended
            signal.signal(number, _end)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    _print_what_can_be_printed()
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except KaemError as error:
        _fail(error.message, error.hint, error.exit_code)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        _fail(f"this command needs {error.name}, which is not installed", f"run: pip install 'kaem[{extra}]'", 2)
    except MemoryError:
        _fail("this needs more memory than there is", "ask for less at a time", 1)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        _fail(f"{name}{error.strerror or error}", "", 1)


def _print_what_can_be_printed() -> None:
    """Let other characters stand for those that a terminal or a log does not have, instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            # File names that are no UTF-8 come out as they went in; where there is no UTF-8 a question mark has to do.
            is_utf8 = stream.encoding.lower().replace("-", "") == "utf8"
            stream.reconfigure(errors="surrogateescape" if is_utf8 else "replace")


def _end(number: int, _: FrameType | None) -> NoReturn:
    # As an exception, so that files in progress are cleaned up on the way out.
    sys.exit(128 + number)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    # The line is written here: what else is caught on the way out, a library's thread may say in words of its own.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(OSError, ValueError):
        os.write(sys.stderr.fileno(), b"interrupted\n")
    raise KeyboardInterrupt


def _fail(message: str, hint: str, exit_code: int) -> NoReturn:
    # One line whatever the message holds, so that logs and scripts can rely on it.
    with contextlib.suppress(OSError):  # nobody may be listening any more
        print(f"error: {_one_line(message)}", file=sys.stderr)  # noqa: T201
        if hint:
            print(f"hint: {_one_line(hint)}", file=sys.stderr)  # noqa: T201
    with contextlib.suppress(OSError):
        sys.stdout.close()  # here, where a full disk is reported, rather than in the interpreter's own clean-up
    sys.exit(exit_code)


def _one_line(text: str) -> str:
    """Return the text without line breaks, and with escapes for characters that would tell a terminal what to do."""
    return "".join(
        character if character.isprintable() or "\udc80" <= character <= "\udcff" else ascii(character)[1:-1]
        for character in " ".join(text.split())
    )


if __name__ == "__main__":
    main()
