"""`kaem fit-prior`: latents and decoder of any autoencoder -> a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli.source import AllowModule
from kaem.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from kaem_train.config import PriorConfig
    from kaem_train.config.settings import Config
    from kaem_train.fitting.fit_prior import FittedPrior, Scores


def fit_prior(
    latents: Annotated[
        Path | None, typer.Option(metavar="Z.NPY", help="Latents of the training images, shape (S, Q) or (S, C, H, W).")
    ] = None,
    decoder: Annotated[
        Path | None, typer.Option(metavar="DECODER.ONNX", help="Maps latents to images (N, C, H, W) or (N, H, W, C).")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="CKPT.PT", help="A checkpoint of ours in place of the two, for example of a VAE."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="PATH", help="With --checkpoint: its training images, if they have moved.")
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="The checkpoint to write.")] = Path("ckpt.pt"),
    prior: Annotated[
        Literal["own-frames", "experts", "mixture", "strict", "independent"],
        typer.Option(
            help="own-frames: experts, each in its own axes; experts: in common axes; mixture and strict: univariate "
            "densities in common axes, several or one per latent; independent: one per latent as it is."
        ),
    ] = "own-frames",
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="prior.KEY=VALUE", help="Change one setting of the prior, as prior.num_components=16."
        ),
    ] = None,
    keep_outliers: Annotated[
        bool,
        typer.Option("--keep-outliers", help="Fit latents far from all others too; at most one in 100 is left out."),
    ] = False,
    pixel_range: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="LOW HIGH", help="Black and white of the decoder, by default 0 1; tanh: -1 1."),
    ] = None,
    holdout: Annotated[
        float, typer.Option(help="Share of the latents held out: half of them choose, half are scored.")
    ] = 0.2,
    updates: Annotated[int, typer.Option(help="Optimiser steps on the energies; 0 leaves Gaussian experts.")] = 400,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing checkpoint.")] = False,
    allow_modules: AllowModule = None,
) -> None:
    """Give a finished autoencoder a KAEM prior: fit one to its latents, keep its decoder as it is.

    The checkpoint goes through `kaem export` and `kaem verify` like one that was trained. Nothing is unpickled: latents
    are a `.npy` array, best draws of the encoder for the training images, and the decoder is an ONNX file. The number
    of experts is chosen by held-out likelihood. The written path goes to stdout.

    **Examples**

    `kaem fit-prior --latents z.npy --decoder decoder.onnx -o ckpt.pt`

    `kaem fit-prior --latents z.npy --decoder dcgan.onnx --pixel-range -1 1 --prior strict -o strict.pt`

    `kaem fit-prior --checkpoint runs/fashion-mnist-vae/ckpt.pt -o refitted.pt`

    `kaem export ckpt.pt -o model.onnx`
    """
    import re
    import time

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    low, high = pixel_range or (0.0, 1.0)
    if not -1e6 < low < high < 1e6:
        raise ConfigError(f"pixel range {low:g} {high:g} does not ascend", hint="for tanh write --pixel-range -1 1")
    if updates < 0 or not 0 <= seed < 2**32:
        raise ConfigError(f"updates = {updates} and seed = {seed}: neither is negative, and a seed is below 2^32")
    _require_inputs(checkpoint, data, latents, decoder, pixel_range)
    _require_free(out, force=force)

    # With torch, which takes seconds to load: only now that what was given can be there.
    from kaem_train.fitting.decoder import read_decoder
    from kaem_train.fitting.fit_checkpoint import make_source_config, read_source, write_source
    from kaem_train.fitting.fit_prior import choose_prior_configs, make_decoder_config, write_fitted
    from kaem_train.fitting.fit_prior import fit_prior as fit
    from kaem_train.fitting.latents import read_latents

    begin, console = time.perf_counter(), Console(stderr=True)
    if checkpoint is not None:
        source = read_source(
            *(checkpoint, data),
            holdout=holdout,
            seed=seed,
            allow_modules=allow_modules or (),
            keep_outliers=keep_outliers,
        )
        rows = source.latents
    elif latents is not None and decoder is not None:  # the only other case that _require_inputs lets through
        rows = read_latents(latents, holdout=holdout, seed=seed, keep_outliers=keep_outliers)
        finished = read_decoder(decoder, rows.fitted.numpy(), latent_shape=rows.shape or None, pixel_range=(low, high))
        name = re.sub(r"^\W+|[^\w.-]", "", decoder.stem)[:100] or "decoder"
    num_fitted, num_latents = rows.fitted.shape
    candidates = choose_prior_configs(prior, num_latents, rows.num_distinct, assignments or [])

    def configuration(section: PriorConfig) -> Config:
        if checkpoint is not None:
            return make_source_config(source, section)
        return make_decoder_config(section, finished.image_shape, name=name, seed=seed, steps=updates)

    configuration(candidates[0])  # what cannot be written should not cost a fit
    console.print(
        f"{rows.num_rows} latents of {num_latents} numbers, {num_fitted} to fit, {len(rows.choosing)} to choose, "
        f"{len(rows.scored)} to score",
        soft_wrap=True,
        highlight=False,
    )
    if rows.num_outliers:
        one = rows.num_outliers == 1
        console.print(
            f"{rows.num_outliers} {'outlier is' if one else 'outliers are'} left out, more than 20 robust deviations "
            f"from the median of a latent; --keep-outliers fits {'it' if one else 'them'} too",
            soft_wrap=True,
            highlight=False,
        )
    if checkpoint is None:
        console.print(f"decoder {decoder}: {finished.summary}", soft_wrap=True, highlight=False, markup=False)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("")
        found = fit(
            rows,
            candidates,
            seed=seed,
            steps=updates,
            progress=lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
        )
    if checkpoint is not None:
        write_source(out, source, found)
    else:
        write_fitted(out, found, finished, configuration(found.config), fingerprint=rows.fingerprint)
    _print_scores(console, found, time.perf_counter() - begin)
    typer.echo(out)


def _require_inputs(
    checkpoint: Path | None,
    data: str | None,
    latents: Path | None,
    decoder: Path | None,
    pixel_range: tuple[float, float] | None,
) -> None:
    """Refuse options that contradict each other, and files that are not there."""
    from kaem_train.config.preflight import require_checkpoint, require_decoder, require_latents

    if checkpoint is not None:
        if (latents, decoder, pixel_range) != (None, None, None):
            raise ConfigError(
                "--checkpoint already holds a decoder with its range and gives its latents",
                hint="leave out --latents, --decoder and --pixel-range",
            )
        require_checkpoint(checkpoint)
        return
    if data is not None:
        raise ConfigError("--data is for --checkpoint; latents need no images", hint="leave it out")
    if latents is None or decoder is None:
        raise ConfigError("nothing to fit a prior to", hint="give --latents with --decoder, or --checkpoint")
    require_latents(latents)
    require_decoder(decoder)


def _require_free(out: Path, *, force: bool) -> None:
    if not out.parent.is_dir():
        raise ArtifactError(f"no folder {out.parent} for {out.name}", hint="make it, or choose another --out")
    if out.exists() and not force:
        raise ArtifactError(f"{out} exists already", hint="replace it with --force, or choose another --out")


def _print_scores(console: Console, found: FittedPrior, seconds: float) -> None:
    from kaem_train.model.prior.energy_words import describe_energies

    console.print(_score_table(found.scores))
    console.print(describe_energies(found.prior), soft_wrap=True, highlight=False, markup=False)
    console.print(
        f"{found.config.num_components} component{'s' * (found.config.num_components > 1)}, {seconds:.0f} s"
        + (f"; the domain grew for {found.outside:.2g} of the latents" if found.outside else ""),
        highlight=False,
    )
    for warning in found.warnings:
        console.print(f"warning: {warning}", soft_wrap=True, highlight=False)


_LARGE = 1e7


def _score_table(scores: Scores) -> Table:
    from rich.table import Table

    table = Table(title="held-out mean log p(z), nats", title_justify="left")
    table.add_column("prior")
    table.add_column("log p(z)", justify="right")
    rows = {
        "N(0, I)": scores.standard_normal,
        "one Gaussian": scores.full_gaussian,
        "fitted prior, before its energies": scores.start,
        "fitted prior": scores.prior,
    }
    for name, value in rows.items():
        table.add_row(name, f"{value:.3f}" if abs(value) < _LARGE else f"{value:.4g}")
    return table
