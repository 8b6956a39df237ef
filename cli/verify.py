"""`kaem verify`: measure an artifact's certificate again, from the file and the checkpoint alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.source import AllowModule

if TYPE_CHECKING:
    from rich.console import Console


def verify(
    artifact: Annotated[Path, typer.Argument(help="An exported model.onnx.")],
    checkpoint: Annotated[Path, typer.Option("--checkpoint", "-c", help="The checkpoint it was exported from.")],
    device: Annotated[
        str,
        typer.Option(
            metavar="DEVICE",
            help="cpu; or cuda:0 or tensorrt:0, to measure what a GPU makes of it: latents, images, and rows of every "
            "size of a batch. For TensorRT the engine lies beside the artifact.",
        ),
    ] = "cpu",
    allow_module: AllowModule = None,
    tolerance: Annotated[
        float,
        typer.Option(help="Error in u that its tables may have been made for; more than that is judged by this."),
    ] = 2.0**-24,
) -> None:
    """Prove that an artifact is what its manifest says: exit 0 when it is, 1 when it is broken.

    Broken is a figure out of its bound, a damaged or changed file, another checkpoint than the one it was exported
    from, or a manifest that lies. Exit 2 says nothing of the artifact: a file is not there, or the checkpoint is none.

    An artifact that was exported with a larger --tolerance is broken unless as much is allowed here: what it states of
    itself is no measure. Figures are measured; what nothing can be compared with is called a claim.

    The latents are compared with a float64 quadrature that shares no code with the exporter, the images with
    torch on the same latents, and every sample with itself in other batches.

    **Examples**

    `kaem verify runs/digits/model.onnx --checkpoint runs/digits/ckpt.pt`

    `kaem verify model.onnx --checkpoint ckpt.pt --device cuda:0`
    """
    from rich.console import Console
    from rich.markup import escape

    import kaem
    from cli.tables import certificate_table
    from kaem.engines.cpu import read_file
    from kaem.errors import ArtifactError, VerificationError
    from kaem_train.config.preflight import require_checkpoint

    read_file(artifact)
    require_checkpoint(checkpoint)
    try:
        kaem.load(artifact, workers=1).close()
    except ArtifactError as error:  # the file is there, so it is its content that is wrong
        raise VerificationError(error.message, hint=error.hint) from None

    # With torch, which takes seconds to load.
    from kaem_export.certificate import stated_tolerance, verify_on_device
    from kaem_export.certificate import verify as verify_artifact
    from kaem_export.priors.manifest_entries import require_tolerance
    from kaem_export.proof.manifest_check import CLAIMS

    require_tolerance(tolerance)

    words, allowed = Console(stderr=True), allow_module or ()
    with words.status(f"measuring {escape(str(artifact))}"):
        if device == "cpu":
            manifest, figures = verify_artifact(artifact, checkpoint, allow_modules=allowed, tolerance=tolerance)
        else:
            manifest, figures = verify_on_device(artifact, checkpoint, device, allow_modules=allowed)
    Console().print(certificate_table(figures, earlier=manifest.certificate))
    if device == "cpu":  # a GPU is compared with the processor, whose tables are judged without one
        _say_what_was_judged(words, stated_tolerance(manifest), tolerance, CLAIMS)
    broken = [figure.name for figure in figures if not figure.is_kept]
    if broken:
        words.print(f"[bold red]broken[/]: {', '.join(broken)}", soft_wrap=True)
        raise typer.Exit(1)
    words.print(f"{artifact} keeps its certificate", markup=False, soft_wrap=True)


def _say_what_was_judged(words: Console, stated: float, tolerance: float, claims: Iterable[str]) -> None:
    """Say by which tolerance tables were judged where it is not the default, and what was compared with nothing."""
    if stated > tolerance:
        words.print(
            f"[bold red]loose[/]: its manifest states a tolerance of {stated:.3g}, it was judged by {tolerance:.3g}; "
            f"if that is meant, verify with --tolerance {stated:.3g}",
            highlight=False,
            soft_wrap=True,
        )
    elif stated > 2.0**-24:
        words.print(f"judged by a tolerance of {stated:.3g}; the default is {2.0**-24:.3g}", highlight=False)
    words.print(f"claims, compared with nothing: {', '.join(claims)}", highlight=False, soft_wrap=True)
