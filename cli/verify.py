"""`kaem verify`: measure an artifact's certificate again, from the file and the checkpoint alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.modules import AllowModule


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
) -> None:
    """Prove that an artifact is what its manifest says: exit 0 when it is, 1 when it is broken.

    Broken is a figure out of its bound, a damaged or changed file, another checkpoint than the one it was exported
    from, or a manifest that lies. Exit 2 says nothing of the artifact: a file is not there, or the checkpoint is none.

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
    from kaem.errors import ArtifactError, VerificationError
    from kaem.runtime import read_file
    from kaem_train.inputs import require_checkpoint

    read_file(artifact)
    require_checkpoint(checkpoint)
    try:
        kaem.load(artifact, workers=1).close()
    except ArtifactError as error:  # the file is there, so it is its content that is wrong
        raise VerificationError(error.message, hint=error.hint) from None

    from kaem_export.certificate import verify as verify_artifact  # with torch, which takes seconds to load
    from kaem_export.certificate import verify_on_device

    words, allowed = Console(stderr=True), allow_module or ()
    with words.status(f"measuring {escape(str(artifact))}"):
        if device == "cpu":
            manifest, figures = verify_artifact(artifact, checkpoint, allow_modules=allowed)
        else:
            manifest, figures = verify_on_device(artifact, checkpoint, device, allow_modules=allowed)
    Console().print(certificate_table(figures, earlier=manifest.certificate))
    broken = [figure.name for figure in figures if not figure.is_kept]
    if broken:
        words.print(f"[bold red]broken[/]: {', '.join(broken)}")
        raise typer.Exit(1)
    words.print(f"{artifact} keeps its certificate", markup=False)
