"""`kaem export`: checkpoint -> one certified ONNX file, and what other targets make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.modules import AllowModule


def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="A ckpt.pt written by `kaem train`; for other targets than onnx also a model.onnx.")
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The artifact; by default model.onnx beside the checkpoint.")
    ] = None,
    image_type: Annotated[
        Literal["float32", "uint8"], typer.Option(help="Element type of the images; uint8 is 4 times smaller.")
    ] = "float32",
    allow_module: AllowModule = None,
    target: Annotated[
        Literal["onnx", "tensorrt", "triton", "aotinductor"],
        typer.Option(help="What to build of the artifact; tensorrt needs the GPU that will run the engine."),
    ] = "onnx",
    profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LEAST:BEST:MOST",
            help="Batch sizes of an engine, or one number for all three; repeat for several profiles.  "
            "[default: 1 and 1:64:1024]",
        ),
    ] = None,
    tf32: Annotated[bool, typer.Option("--tf32", help="Let an engine round factors to TF32.")] = False,
    triton_backend: Annotated[
        Literal["onnxruntime", "tensorrt"], typer.Option(help="What runs the model in Triton.")
    ] = "onnxruntime",
    device: Annotated[
        Literal["cpu", "cuda"], typer.Option(help="What an AOTInductor package is compiled for.")
    ] = "cpu",
) -> None:
    """Compile a checkpoint to one self-contained ONNX file that turns uniform noise into images.

    The prior becomes one exact quantile table per latent coordinate, composed with the generator. The finished
    graph is measured before the file appears, and the figures travel inside it. The written path goes to stdout.

    Other targets are built of that file: an engine of TensorRT, a model folder of Triton, a package of AOTInductor.

    **Examples**

    `kaem export runs/digits/ckpt.pt`

    `kaem export runs/mnist/ckpt.pt -o mnist.onnx --image-type uint8`

    `kaem export mnist.onnx --target tensorrt -o mnist.engine --profile 1 --profile 1:256:1024`

    `kaem export runs/mnist/ckpt.pt --target triton -o model-repository`
    """
    from rich.console import Console
    from rich.markup import escape

    from cli.tables import certificate_table
    from kaem_export.targets import TargetOptions, build_target, needs_engine

    console = Console(stderr=True)

    def compile_to(path: Path) -> None:
        from kaem_export.compile import (
            export as compile_checkpoint,  # with torch, which a finished artifact does not need
        )

        with console.status(f"compiling {escape(str(checkpoint))}"):
            manifest = compile_checkpoint(checkpoint, path, image_type=image_type, allow_modules=allow_module or ())
        console.print(certificate_table(manifest.certificate))
        console.print(
            f"{manifest.name}: {manifest.noise_dim} uniforms -> {'x'.join(map(str, manifest.image_shape))} "
            f"{manifest.image_type} images, {path.stat().st_size / 1e6:.2f} MB",
            markup=False,
        )

    options = TargetOptions(profiles=tuple(profile or ()), tf32=tf32, triton_backend=triton_backend, device=device)
    needs_engine(target, options)
    if target == "onnx":
        path = out or checkpoint.with_name("model.onnx")
        compile_to(path)
    else:
        path = build_target(checkpoint, target, out, compile_to, options)
    typer.echo(path)
