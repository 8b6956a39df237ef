"""`kaem export`: checkpoint -> one certified ONNX file, and what other targets make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, assert_never

import typer

from cli.source import AllowModule


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
    sampler: Annotated[
        Literal["ddim", "ddpm"] | None, typer.Option(help="Of a diffusion model; by default its checkpoint's.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Network passes of a diffusion model, Langevin steps of a latent EBM; default: as trained."),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(help="Error in u that the quantile tables aim at, 1e-9 to 0.01; float32 uniforms resolve 6e-8."),
    ] = 2.0**-24,
    keep_components: Annotated[
        bool,
        typer.Option(
            "--keep-components",
            help="Keep a mixture's components, or the summands of independent latents, each with uniforms of its own.",
        ),
    ] = False,
    optimize: Annotated[
        Literal["none", "default", "large-batch", "auto"],
        typer.Option(
            help="none: as torch exports it. default: exact rewrites. large-batch: also a form of convolutions that "
            "is faster from 16 rows on; the file is 4 times as large. auto: that form where it is measured to pay here."
        ),
    ] = "default",
    precision: Annotated[
        Literal["float32", "float16", "int8"],
        typer.Option(
            help="Arithmetic of the generator; the prior stays float32. float16 is for GPUs, int8 for CPUs; int8 is "
            "refused where it costs too much accuracy."
        ),
    ] = "float32",
    batch: Annotated[
        str, typer.Option(help="Batch sizes it will be called with: 64 fixes it, 1,8,64 pads to these; empty: any.")
    ] = "",
    explain: Annotated[
        bool, typer.Option("--explain", help="Print what every rewrite did to nodes, bytes, operations and time.")
    ] = False,
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

    The prior becomes one exact quantile table per latent coordinate, composed with the generator; a baseline that
    samples in steps becomes one loop. The finished graph is measured before the file appears, and the figures
    travel inside it. The written path goes to stdout.

    Other targets are built of that file: an engine of TensorRT, a model folder of Triton, a package of AOTInductor.

    **Examples**

    `kaem export runs/digits/ckpt.pt`

    `kaem export runs/mnist/ckpt.pt -o mnist.onnx --image-type uint8`

    `kaem export runs/mnist-ddpm/ckpt.pt --sampler ddim --steps 10`

    `kaem export runs/mnist/ckpt.pt -o components.onnx --keep-components`

    `kaem export runs/svhn/ckpt.pt --optimize auto --explain`

    `kaem export mnist.onnx --target tensorrt -o mnist.engine --profile 1 --profile 1:256:1024`

    `kaem export runs/mnist/ckpt.pt --target triton -o model-repository`
    """
    from rich.console import Console
    from rich.markup import escape

    from cli.tables import certificate_table, rewrites_table
    from kaem.errors import ConfigError
    from kaem.files import require_place
    from kaem_export.options import Options, parse_batch
    from kaem_export.targets.build import TargetOptions, build_target, needs_engine, refuse_int8
    from kaem_train.config.preflight import require_checkpoint

    console = Console(stderr=True)
    options = Options(
        optimize=optimize,
        precision=precision,
        batch=parse_batch(batch),
        branches=target == "onnx" or (target == "triton" and triton_backend == "onnxruntime"),
    )

    def compile_to(path: Path) -> None:
        from kaem_export.compile import (
            export as compile_checkpoint,  # with torch, which a finished artifact does not need
        )
        from kaem_export.families.family import Sampling
        from kaem_export.rewrite.explain import explain as explain_rewrites
        from kaem_export.rewrite.optimise import Optimised

        history: list[Optimised] = []
        with console.status(f"compiling {escape(str(checkpoint))}"):
            manifest = compile_checkpoint(
                *(checkpoint, path),
                image_type=image_type,
                tolerance=tolerance,
                keep_components=keep_components,
                options=options,
                watch=history.append,
                allow_modules=allow_module or (),
                sampling=Sampling(sampler=sampler, steps=steps),
            )
        reasons: dict[str, list[str]] = {}
        for left_out in history[0].left_out:
            reasons.setdefault(left_out.reason, []).append(left_out.name)
        for reason, names in reasons.items():
            console.print(f"left out: {', '.join(names)} ({reason})", soft_wrap=True, markup=False, highlight=False)
        if explain:
            with console.status("measuring every rewrite"):
                rows = explain_rewrites(history[0])
            for size in dict.fromkeys(row.batch for row in rows):
                console.print(rewrites_table([row for row in rows if row.batch == size], size))
        console.print(certificate_table(manifest.certificate))
        console.print(
            f"{manifest.name}: {manifest.noise_dim} uniforms -> {'x'.join(map(str, manifest.image_shape))} "
            f"{manifest.image_type} images, {path.stat().st_size / 1e6:.2f} MB",
            markup=False,
        )

    if target != "onnx" and checkpoint.suffix == ".onnx":
        given = {
            "--image-type": image_type != "float32",
            "--sampler": sampler is not None,
            "--steps": steps is not None,
            "--tolerance": tolerance != 2.0**-24,
            "--keep-components": keep_components,
            "--optimize": optimize != "default",
            "--precision": precision != "float32",
            "--batch": bool(options.batch),
            "--explain": explain,
        }
        if ignored := ", ".join(name for name, is_given in given.items() if is_given):
            raise ConfigError(
                f"{checkpoint} is compiled already, so it is too late for {ignored}",
                hint="give the checkpoint it was exported from",
            )
    wanted = TargetOptions(profiles=tuple(profile or ()), tf32=tf32, triton_backend=triton_backend, device=device)
    needs_engine(target, wanted)
    refuse_int8(target, wanted, precision)  # before the compilation of a checkpoint
    if target == "onnx" or checkpoint.suffix != ".onnx":
        require_checkpoint(checkpoint)
    match target:
        case "onnx":
            path = out or checkpoint.with_name("model.onnx")
            require_place(path, source=checkpoint)
            compile_to(path)
        case "tensorrt" | "triton" | "aotinductor":
            path = build_target(checkpoint, target, out, compile_to, wanted)
        case _:
            assert_never(target)
    typer.echo(path)
