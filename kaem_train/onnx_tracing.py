"""From a module to ONNX, by torch's exporter: what it makes, or one line that says why it makes nothing."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from typing import Any

import onnx
import torch

from kaem.errors import ArtifactError
from kaem_train.fitting.decoder_graph import OPSET, require_own_operators
from kaem_train.library_errors import describe_error
from kaem_train.training.interrupt import hold_signals_back


def trace_generator(generator: torch.nn.Module, latent_dim: int) -> onnx.ModelProto:
    """Return what torch's exporter makes of a generator: `latent` (N, Q) to `image`, the batch size free."""
    batch = {0: torch.export.Dim("N")}
    return trace(generator, {"latent": torch.zeros(2, latent_dim)}, "image", (batch,), what="the generator")


def trace(
    module: torch.nn.Module, inputs: dict[str, torch.Tensor], output: str, dynamic_shapes: tuple[Any, ...], *, what: str
) -> onnx.ModelProto:
    """Return torch's export of a module in eval mode, in ONNX's own operators alone.

    Args:
        module: Has one output.
        inputs: Examples by the names to give them; a free batch dimension of more than one row.
        output: Name to give the output.
        dynamic_shapes: Free dimensions as `torch.onnx.export` takes them, one entry per input.
        what: Names the module in messages.

    Raises:
        ArtifactError: It has operations that ONNX lacks, or computes a certain number of rows alone.
    """
    try:
        with hold_signals_back(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # the exporter warns about its own internals
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            program = torch.onnx.export(
                module.eval().float(),
                tuple(inputs.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=[output],
                dynamic_shapes=dynamic_shapes,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # operations that ONNX lacks; torch raises its own classes and any other
        raise ArtifactError(
            f"torch cannot export {what} to ONNX: {describe_error(error.__cause__ or error)}",
            hint="build it from operations that ONNX has: torch.where in place of branches on numbers, no "
            "torch.jit.script, no parametrizations",
        ) from error
    if program is None:
        raise AssertionError("torch.onnx.export returned no program")
    require_own_operators(program.model_proto, what)
    for value, free in zip(program.model_proto.graph.input, dynamic_shapes, strict=True):
        rows = value.type.tensor_type.shape.dim[0].dim_value if free and 0 in free else 0
        if rows:
            raise ArtifactError(
                f"{what} was called with {rows} rows, and as torch traces it it can compute no other number",
                hint="take their number as x.shape[0], or write -1: len(x), int() and a literal are constants to torch",
            )
    return program.model_proto
