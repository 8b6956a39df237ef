"""Quantile tables + generator -> one ONNX graph from `uniform` to `image` and `latent`.

The head is written node by node below; the generator comes from torch's exporter and is joined at `latent`.
Only operators whose rows do not depend on the batch around them are used in the head.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings

import numpy as np
import onnx
import torch
from onnx import TensorProto, compose, helper, numpy_helper

from kaem.artifact import MANIFEST_KEY, ImageType, Manifest, fingerprint, write_manifest
from kaem_export.quantile import LEVEL_SCALE, LEVELS, QuantileTables

OPSET = 21
"""Newest opset for which ONNX Runtime's CUDA provider has a kernel for every node used here."""

IR_VERSION = 10
"""The IR version that belongs to opset 21; newer ones would lock out older runtimes for nothing."""


def build_graph(tables: QuantileTables, generator: torch.nn.Module, image_type: ImageType) -> onnx.ModelProto:
    """Compose the quantile lookup with a generator.

    Args:
        tables: Quantile tables of Q coordinates.
        generator: Maps (N, Q) float32 to images (N, C, H, W) in [0, 1]; in eval mode.
        image_type: Element type of the output `image`; uint8 is rounded to nearest as the graph's last step.

    Returns:
        A checked model with input `uniform` (N, Q) and outputs `image` and `latent`; no metadata yet.
    """
    latent_dim = tables.left.shape[0]
    model = compose.merge_models(
        _head(tables),
        _generator(generator, latent_dim),
        io_map=[("latent", "generator_latent")],
        outputs=["image", "latent"],
    )
    if image_type == "uint8":
        _append_uint8(model)
    _strip(model)
    model.graph.output.sort(key=lambda value: value.name)  # image, latent
    onnx.checker.check_model(model, full_check=True)
    return model


def attach_manifest(model: onnx.ModelProto, manifest: Manifest) -> bytes:
    """Return the model's bytes with the manifest as its only metadata; the same input gives the same bytes."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    helper.set_model_props(copy, {MANIFEST_KEY: write_manifest(manifest)})
    return copy.SerializeToString(deterministic=True)


def graph_fingerprint(model: onnx.ModelProto) -> str:
    """Digest of everything a runtime computes with: the model without its metadata."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.metadata_props[:]
    return fingerprint(copy.SerializeToString(deterministic=True))


def _head(tables: QuantileTables) -> onnx.ModelProto:
    """`uniform` (N, Q) -> `latent` (N, Q); float32 arithmetic is exact up to the final multiply-add."""
    latent_dim, _, cells = tables.left.shape
    constants = {
        "half": np.float32(0.5),
        "zero": np.float32(0),
        "one": np.float32(1),
        "cells": np.float32(cells),
        "last_cell": np.float32(cells - 1),
        "tail_1": np.float32(0.5 / LEVEL_SCALE),
        "tail_2": np.float32(0.5 / LEVEL_SCALE**2),
        "finer": np.float32(LEVEL_SCALE - 1),
        "level_rows": np.int32(cells),
        "coordinate_rows": (np.arange(latent_dim, dtype=np.int32) * (LEVELS * cells))[None, :],
        "table": np.stack([tables.left, tables.width], axis=-1).reshape(-1, 2),
        "pair_axis": np.array([2], np.int64),
    }
    if LEVELS != 3:
        raise AssertionError("the lookup below chooses between exactly three levels")
    node = helper.make_node
    nodes = [
        # Plain uniforms in [1/2, 1) become signed ones; exact, since both lie within a factor of two of 1.
        node("GreaterOrEqual", ["uniform", "half"], ["is_upper"]),
        node("Cast", ["is_upper"], ["upper"], to=TensorProto.FLOAT),
        node("Sub", ["uniform", "upper"], ["signed"]),
        # The finest level whose tails contain v.
        node("Abs", ["signed"], ["depth"]),
        node("Less", ["depth", "tail_1"], ["is_tail_1"]),
        node("Less", ["depth", "tail_2"], ["is_tail_2"]),
        node("Cast", ["is_tail_1"], ["in_tail_1"], to=TensorProto.FLOAT),
        node("Cast", ["is_tail_2"], ["in_tail_2"], to=TensorProto.FLOAT),
        node("Mul", ["in_tail_1", "finer"], ["more_1"]),
        node("Mul", ["in_tail_2", "finer"], ["more_2"]),
        node("Add", ["more_1", "one"], ["scale_1"]),
        node("Add", ["more_2", "one"], ["scale_2"]),
        node("Mul", ["signed", "cells"], ["scaled_0"]),
        node("Mul", ["scaled_0", "scale_1"], ["scaled_1"]),
        node("Mul", ["scaled_1", "scale_2"], ["position"]),
        # Cell and fraction; negative positions are the upper half of u, so they wrap around by K.
        node("Floor", ["position"], ["floor"]),
        node("Sub", ["position", "floor"], ["fraction"]),
        node("Less", ["floor", "zero"], ["is_negative"]),
        node("Cast", ["is_negative"], ["negative"], to=TensorProto.FLOAT),
        node("Mul", ["negative", "cells"], ["wrap"]),
        node("Add", ["floor", "wrap"], ["wrapped"]),
        node("Clip", ["wrapped", "zero", "last_cell"], ["cell"]),
        # One gather of (left, width) pairs from the table [Q * LEVELS * K, 2].
        node("Add", ["in_tail_1", "in_tail_2"], ["level_float"]),
        node("Cast", ["level_float"], ["level"], to=TensorProto.INT32),
        node("Cast", ["cell"], ["cell_row"], to=TensorProto.INT32),
        node("Mul", ["level", "level_rows"], ["level_row"]),
        node("Add", ["cell_row", "level_row"], ["row_in_coordinate"]),
        node("Add", ["row_in_coordinate", "coordinate_rows"], ["row"]),
        node("Gather", ["table", "row"], ["left_and_width"], axis=0),
        node("Split", ["left_and_width"], ["left_1", "width_1"], axis=2, num_outputs=2),
        node("Squeeze", ["left_1", "pair_axis"], ["left"]),
        node("Squeeze", ["width_1", "pair_axis"], ["width"]),
        node("Mul", ["fraction", "width"], ["gain"]),
        node("Add", ["left", "gain"], ["latent"]),
    ]
    return _model(
        nodes,
        [helper.make_tensor_value_info("uniform", TensorProto.FLOAT, ["N", latent_dim])],
        [helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["N", latent_dim])],
        constants,
    )


def _generator(generator: torch.nn.Module, latent_dim: int) -> onnx.ModelProto:
    """Export the generator with a free batch dimension; every name gets the prefix `generator_`, the output none."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            generator.eval().float(),
            (torch.zeros(2, latent_dim),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["latent"],
            output_names=["image"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise AssertionError("torch.onnx.export returned no program")
    model = compose.add_prefix(program.model_proto, "generator_")
    for graph_node in model.graph.node:
        graph_node.output[:] = ["image" if name == "generator_image" else name for name in graph_node.output]
    model.graph.output[0].name = "image"
    model.ir_version = IR_VERSION
    return model


def _append_uint8(model: onnx.ModelProto) -> None:
    """Round [0, 1] to 0 .. 255 as the last nodes; the cast comes last of all, as TensorRT demands."""
    for graph_node in model.graph.node:
        graph_node.output[:] = ["image_float" if name == "image" else name for name in graph_node.output]
    constants = {"white": np.float32(255), "black": np.float32(0)}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    model.graph.node.extend(
        [
            helper.make_node("Mul", ["image_float", "white"], ["image_scaled"]),
            helper.make_node("Round", ["image_scaled"], ["image_rounded"]),
            helper.make_node("Clip", ["image_rounded", "black", "white"], ["image_clipped"]),
            helper.make_node("Cast", ["image_clipped"], ["image"], to=TensorProto.UINT8),
        ]
    )
    image = next(value for value in model.graph.output if value.name == "image")
    image.type.tensor_type.elem_type = TensorProto.UINT8


def _strip(model: onnx.ModelProto) -> None:
    """Remove what the exporters note about themselves: source paths, stack traces, producer, doc strings."""
    del model.metadata_props[:]
    del model.functions[:]
    del model.opset_import[1:]  # joining two models lists the one domain twice
    model.producer_name, model.producer_version, model.doc_string = "kaem", "", ""
    model.graph.name, model.graph.doc_string = "kaem", ""
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    for graph_node in model.graph.node:
        graph_node.doc_string = ""
        del graph_node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output):
        value.doc_string = ""
        del value.metadata_props[:]
    # The exporter names the batch dimension by itself; one name for one thing.
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: dict[str, np.ndarray | np.generic],
) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "head", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
