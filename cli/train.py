"""`kaem train`: a preset or TOML file to a checkpoint."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kaem.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from kaem_train.config.settings import Config
    from kaem_train.data import Dataset


def train(
    config: Annotated[
        str,
        typer.Argument(metavar="PRESET_OR_TOML", help="digits, mnist, fashion-mnist, svhn, celeba, or a TOML file."),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="A file (.npz, .npy, .mat, .parquet, IDX), an archive (.tar, .tar.gz, .zip) or folder of image files, "
            "a folder of IDX, .mat, CIFAR or Hugging Face files, or hf:OWNER/NAME from the hub.",
        ),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(help="kaem, or a baseline on the same data: vae, latent-ebm, ddpm. Default: what the file says."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of this run; default runs/NAME.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting.")
    ] = None,
    updates: Annotated[int | None, typer.Option(help="Optimiser steps of the whole run.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run, bit for bit.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing run.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print configuration, sizes and estimated time as TOML; write nothing.")
    ] = False,
) -> None:
    """Train a model and write its checkpoint; prints the checkpoint's path.

    Ctrl-C finishes the current update, saves, and says how to go on. TensorBoard files lie beside the
    checkpoint.

    **Examples**

    `kaem train digits`

    `kaem train mnist --data path/to/mnist -o runs/mnist`

    `kaem train svhn --data path/to/train_32x32.mat`

    `kaem train celeba --data img_align_celeba.zip --set data.augment_flip=true`

    `kaem train digits --set prior.num_latents=12 --updates 3000`

    `kaem train digits --family vae`

    `kaem train digits --resume`

    `kaem train digits --dry-run > digits.toml`
    """
    if resume and force:
        raise ConfigError("--resume and --force contradict each other", hint="give one of them")
    words = _overrides(assignments, data, family, updates, seed)
    settings, path = _start(config, words, out, resume=resume, replaces=force or dry_run)
    folder = path.parent

    import shutil

    from rich.console import Console

    from kaem_train.checkpoint import read_checkpoint

    # With torch, which takes seconds to load: only now that what was given can be there.
    from kaem_train.config.families import prescription_note
    from kaem_train.data import load_dataset
    from kaem_train.fitting.judge_split import divide
    from kaem_train.training.progress import ProgressReport, show_decoding
    from kaem_train.training.requirements import check_trainable
    from kaem_train.training.tensorboard import TensorBoardLog
    from kaem_train.training.trainer import train as run_training

    done = read_checkpoint(path).step if resume else 0
    console = Console(stderr=True)
    with show_decoding(console) as progress:
        dataset = load_dataset(settings.data, progress=progress)
    check_trainable(settings, dataset)
    if dry_run:
        _print_plan(settings, dataset)
        return
    _make(folder)
    if note := prescription_note(settings.family, settings.posterior.kind):
        console.print(note, soft_wrap=True, highlight=False, markup=False)
    division = divide(settings, dataset)
    console.print(f"data: {dataset.summary}", soft_wrap=True, highlight=False, markup=False)
    console.print(
        f"{settings.name}: {division.summary}; update {done} to {settings.training.updates}; folder {folder}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    if division.warning:
        console.print(f"warning: {division.warning}", soft_wrap=True, highlight=False, markup=False)
    logs = folder / "tensorboard"
    if force:
        shutil.rmtree(logs, ignore_errors=True)
    with (
        ProgressReport(console, updates=settings.training.updates) as report,
        TensorBoardLog(logs, step=done) as log,
    ):
        outcome = run_training(settings, dataset, folder, resume=resume, listeners=(report, log))
    if outcome.is_finished and outcome.bound is None:
        message = f"the family {settings.family} has no likelihood, and so no held-out bound"
    elif outcome.is_finished:
        message = (
            f"held-out log-likelihood at least {outcome.bound:.2f} nats per image"
            f"{_energy_words(outcome.checkpoint, settings)}"
        )
    else:
        options = {"--data": data, "--family": family, "--out": out, "--updates": updates, "--seed": seed}
        again = _resume_command(config, options, assignments or [])
        message = f"stopped and saved at update {outcome.step}; go on with: {again}"
    console.print(message, soft_wrap=True, highlight=False, markup=False)
    typer.echo(outcome.checkpoint)
    if not outcome.is_finished:
        raise typer.Exit(130)


def _energy_words(checkpoint: Path, settings: Config) -> str:
    """Say, on a line of its own, what is left of the energies of a run that has just ended; nothing of a baseline.

    The generator is the run's own, so its class may be loaded.
    """
    if not settings.has_energies:
        return ""
    from kaem_train.checkpoint import load_kaem
    from kaem_train.model.prior.energy_words import describe_energies

    return "\n" + describe_energies(load_kaem(checkpoint, allow_modules=(settings.generator.module,))[1].prior)


def _start(
    config: str, overrides: Iterable[str], out: Path | None, *, resume: bool, replaces: bool
) -> tuple[Config, Path]:
    """Return the settings of a run and the path of its checkpoint, once all that needs no torch is checked."""
    from kaem_train.config.preflight import CHECKPOINT_NAME, require_checkpoint, require_data
    from kaem_train.config.settings import load_config

    settings = load_config(config, overrides)
    path = (Path("runs") / settings.name if out is None else out) / CHECKPOINT_NAME
    if resume:
        require_checkpoint(path)
    elif path.exists() and not replaces:
        raise ArtifactError(
            f"{path} exists already", hint="continue it with --resume, replace it with --force, or choose --out"
        )
    require_data(settings.data)
    return settings, path


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(
            f"cannot write to {folder}: {error.strerror}", hint="choose another folder with --out"
        ) from None


def _print_plan(settings: Config, dataset: Dataset) -> None:
    """Print a TOML file that trains this run, what it would be in comments on top."""
    import torch

    from kaem.config import to_toml
    from kaem_train.training.dry_run import plan_run

    plan = plan_run(settings, dataset)
    parts = ", ".join(f"{name} {count:,}" for name, count in plan.num_parameters.items())
    times = ", then ".join(f"{1e3 * seconds:.1f} ms" for seconds in plan.update_seconds)
    lines = [
        f"data        {dataset.summary}",
        f"used        {plan.division.summary}",
        f"parameters  {sum(plan.num_parameters.values()):,}: {parts}",
        f"one update  {times} on {torch.get_num_threads()} threads",
    ]
    if plan.division.warning:
        lines.append(f"warning     {plan.division.warning}")
    if plan.start_seconds:
        lines.append(f"the prior's start at encoded images  {plan.start_seconds:.1f} s")
    lines.append(f"all {settings.training.updates:,} updates  about {_duration(plan.total_seconds)}")
    if settings.refit.kind != "none":
        lines.append("the final refit of the prior comes on top, not estimated")
    typer.echo("".join(f"# {line}\n" for line in lines) + "\n" + to_toml(settings), nl=False)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _overrides(
    assignments: Iterable[str] | None, data: str | None, family: str | None, updates: int | None, seed: int | None
) -> list[str]:
    """Turn the options that stand for settings into `section.key=value` words, after the user's own."""
    words = list(assignments or [])
    if data is not None:
        # JSON strings are TOML strings: a path with spaces, quotes or an equals sign survives.
        words += ["data.source=files", f"data.path={json.dumps(str(Path(data).expanduser()))}"]
    if family is not None:
        words.append(f"family={family}")
    if updates is not None:
        words.append(f"training.updates={updates}")
    if seed is not None:
        words.append(f"training.seed={seed}")
    return words


def _resume_command(config: str, options: Mapping[str, object], assignments: Iterable[str]) -> str:
    """Return the command line that continues this run, quoted for a shell."""
    words = ["kaem", "train", config]
    words += [word for name, value in options.items() if value is not None for word in (name, str(value))]
    words += [word for item in assignments for word in ("--set", item)]
    return shlex.join([*words, "--resume"])
