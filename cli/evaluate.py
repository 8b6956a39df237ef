"""`kaem eval`: how good a model is, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli.source import AllowModule

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from kaem_train.evaluation.features.network import Progress
    from kaem_train.evaluation.models import ExportedModel, TrainedModel
    from kaem_train.evaluation.report import EvaluationReport

_TILES = 64


def evaluate(
    model: Annotated[Path, typer.Argument(help="A ckpt.pt written by `kaem train`, or an exported model.onnx.")],
    data: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Images to compare with; by default those that the model was trained on."),
    ] = None,
    features: Annotated[
        str,
        typer.Option(
            metavar="NETWORK",
            help="classifier (trained on the data set's labels, once), inception, a file net.onnx, or auto: the "
            "classifier for small grey images with labels, else inception.",
        ),
    ] = "auto",
    real: Annotated[Literal["test", "train", "all"], typer.Option(help="Which real images to compare with.")] = "test",
    num_real: Annotated[int | None, typer.Option(help="At most so many of them; by default all.")] = None,
    num: Annotated[
        int | None, typer.Option("--num", "-n", help="Images to draw; by default 10,000, with inception 2,000.")
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...", help="Numbers of images to extrapolate from; by default ten, up to all that are drawn."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of samples, subsets and posterior draws.")] = 0,
    floors: Annotated[
        bool,
        typer.Option(
            "--floors/--no-floors",
            help="Also measure real training images and reconstructions, for up to three times the cost.",
        ),
    ] = True,
    device: Annotated[
        str,
        typer.Option(
            metavar="DEVICE",
            help="auto, cpu, cuda or cuda:1. auto takes a GPU for a checkpoint where there is one, and the CPU for an "
            "exported file.",
        ),
    ] = "auto",
    json: Annotated[Path | None, typer.Option("--json", help="Write the whole result to this file.")] = None,
    grid: Annotated[Path | None, typer.Option("--grid", help="Write the first 64 samples, unselected, as PNG.")] = None,
    allow_modules: AllowModule = None,
) -> None:
    """Measure a model: distances to real images, precision and recall, likelihood, reconstruction.

    Frechet and kernel distances are those of FID and KID, in the features of the network that the table names, and
    extrapolated to infinitely many samples. Samples are unselected and rounded to 8 bits. A checkpoint also has a
    likelihood and reconstructions; an exported file has samples only. Features of real images are kept in the cache.

    **Examples**

    `kaem eval runs/digits/ckpt.pt`

    `kaem eval runs/fashion-mnist/ckpt.pt --data fashion_mnist.npz --json result.json --grid grid.png`

    `kaem eval model.onnx --data svhn.npz --features inception --sizes 1000,1500,2000`

    `kaem eval runs/svhn/ckpt.pt --device cuda:1`
    """
    from rich.console import Console

    import kaem
    from cli.output import check_outputs
    from kaem_train.config.preflight import require_checkpoint
    from kaem_train.evaluation.options import EvaluationOptions

    options = EvaluationOptions(
        features=str(Path(features).expanduser()) if features.endswith(".onnx") else features,
        real=real,
        num_real=num_real,
        num=num,
        sizes=None if sizes is None else _sizes(sizes),
        seed=seed,
        with_floors=floors,
        device=device,
    )
    check_outputs([grid] if grid else [])
    _check_folders(json, grid)
    if model.suffix == ".onnx":
        kaem.load(model, workers=1).close()  # first of all, whatever it will run on
    else:
        require_checkpoint(model)

    # With torch, which takes seconds to load: only now that the options make sense.
    from kaem_train.evaluation.evaluate import check_shapes, choose_numbers
    from kaem_train.evaluation.evaluate import evaluate as measure
    from kaem_train.evaluation.models import ExportedModel, choose_data, open_model
    from kaem_train.evaluation.reals import prepare_reals

    words = Console(stderr=True)
    opened = open_model(model, device=device, allow_modules=allow_modules or ())
    with opened.sampler if isinstance(opened, ExportedModel) else nullcontext(), _progress(words) as progress:
        reals = prepare_reals(choose_data(opened, str(Path(data).expanduser()) if data else None), options, progress)
        check_shapes(opened, reals)
        num_drawn, _ = choose_numbers(reals)
        if grid is not None:
            _write_grid(grid, opened, num_drawn, seed)
        report = measure(opened, reals, progress)
    if json is not None:
        _write_json(json, report)
    Console().print(_table(report))
    for line in _lines(report):
        typer.echo(line)


def _sizes(text: str) -> tuple[int, ...]:
    from kaem.errors import RequestError

    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise RequestError(f"--sizes {text!r} is no list of numbers", hint="write --sizes 1000,1500,2000") from None


def _check_folders(*paths: Path | None) -> None:
    """Refuse a result that could not be written after minutes of work."""
    from kaem.errors import RequestError

    for path in paths:
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise RequestError(f"cannot write {path}: no such folder, or it is one", hint="create the folder first")


def _write_grid(path: Path, model: TrainedModel | ExportedModel, num: int, seed: int) -> None:
    """Show the first of the very images that are measured."""
    from itertools import islice

    import numpy as np

    from kaem.files import replacing
    from kaem.images import contact_sheet, encode_png

    images = np.stack(list(islice((image for batch in model.draw(num, seed) for image in batch), _TILES)))
    with replacing(path) as draft:
        draft.write_bytes(encode_png(contact_sheet(images)))


def _write_json(path: Path, report: EvaluationReport) -> None:
    from json import dumps

    from kaem.files import replacing

    with replacing(path) as draft:
        draft.write_text(dumps(report.to_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8")


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    """Give a function that shows one bar per step on a terminal, and one line per step elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
    with Bars(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, object] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
                if not console.is_terminal:
                    console.print(f"{what}: {total:,}", highlight=False, markup=False)
            bars.update(tasks[what], completed=done, total=total)  # type: ignore[arg-type]

        yield show


def _table(report: EvaluationReport) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"{report.model}, in the features of: {report.network.name}"))
    table.add_column("figure", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("measured on", overflow="fold")
    for figure in report.figures:
        error = "" if figure.standard_error is None else f" ± {figure.standard_error:.2g}"
        table.add_row(figure.label, f"{figure.value:.5g}{error}", figure.detail)
    return table


def _lines(report: EvaluationReport) -> Iterator[str]:
    """Yield what must stand beside the figures wherever they are quoted."""
    network = report.network
    yield f"features: {network.name} {network.fingerprint[:15]}: {network.description}"
    yield f"real images: {report.num_real:,} of the {report.real} split of {report.data}"
    yield (
        f"generated: {report.num_generated:,}, seed {report.seed}, from {report.model_fingerprint[:15]}; "
        + ", ".join(f"{name} {number}" for name, number in report.versions.items())
    )
    yield from (f"note: {note}" for note in report.notes)
    reasons: dict[str, list[str]] = {}
    for name, reason in report.missing.items():
        reasons.setdefault(reason, []).append(name.replace("_", " "))
    yield from (f"not measured: {', '.join(names)}: {reason}" for reason, names in reasons.items())
