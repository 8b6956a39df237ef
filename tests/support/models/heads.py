"""Pieces of graphs as an export writes them, run on the real runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from numpy.typing import NDArray

from kaem.artifact import ImageType
from kaem_export.graph import build_graph
from kaem_export.onnx_builder import Op, start_graph, to_model
from kaem_export.priors.layout import PriorLayout
from kaem_export.priors.layouts import choose_layout
from kaem_export.tables.fit_tables import bake
from kaem_export.tables.tree import QuantileTables
from kaem_train.model.prior.factorised import Prior

Array = NDArray[np.generic]


def tabulate(prior: Prior, *, keep_components: bool = False) -> tuple[PriorLayout, QuantileTables]:
    """Return the layout of a prior and the tables of its laws."""
    layout = choose_layout(prior, keep_components=keep_components)
    return layout, bake(layout.laws).tables


def graph_of_prior(
    prior: Prior, generator: torch.nn.Module, image_type: ImageType = "float32", *, keep_components: bool = False
) -> onnx.ModelProto:
    """Return the graph of a prior and a generator."""
    return build_graph(*tabulate(prior, keep_components=keep_components), generator, image_type)[0]


def head_of_prior(prior: Prior, *, keep_components: bool = False) -> onnx.ModelProto:
    """Return the graph from uniforms to latents alone."""
    layout, tables = tabulate(prior, keep_components=keep_components)
    builder, uniform = start_graph("uniform", layout.noise_dim)
    return to_model(builder, latent=layout.write_head(builder.op, uniform, tables).latent)


def run_written(write: Callable[..., Sequence[ir.Value]], inputs: Mapping[str, Array]) -> list[Array]:
    """Run what a function writes on arrays by name; it gets the builder of nodes and the values, and returns values."""
    builder, _ = start_graph("unused", 1)
    values = [
        builder.input(name, ir.DataType.from_numpy(array.dtype), ["N", *array.shape[1:]])
        for name, array in inputs.items()
    ]
    outputs = {f"output_{place}": value for place, value in enumerate(write(builder.op, *values))}
    del builder.graph.inputs[0]
    model = to_model(builder, **outputs)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(list(outputs), dict(inputs))


def written_nodes(write: Callable[[Op, ir.Value], object], columns: int) -> list[ir.Node]:
    """Return the nodes that a function writes from uniforms of so many columns."""
    builder, uniform = start_graph("uniform", columns)
    write(builder.op, uniform)
    return list(builder.graph)
