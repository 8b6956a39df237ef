"""Tables + frame + generator -> one ONNX graph from `uniform` to `image` and `latent`.

The head is written node by node in `prior_nodes.py`; the generator comes from torch's exporter, or is ONNX already, and
is joined at `latent`.
"""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import TensorProto, compose, helper, numpy_helper

from kaem.artifact import MANIFEST_KEY, ImageType, Manifest, fingerprint, write_manifest
from kaem_export.priors.ordered_sum import fix_sum_orders
from kaem_export.priors.prior_nodes import Frame, head_nodes
from kaem_export.priors.prior_tables import PriorTables
from kaem_export.proof.intensities import clipped
from kaem_export.tables.lookup import Constants, wrap
from kaem_train.fitting.decoder_graph import IR_VERSION, OPSET, finished_decoder, prefixed
from kaem_train.library_errors import one_line
from kaem_train.model.generators.onnx_generator import OnnxGenerator
from kaem_train.onnx_tracing import traced_generator


def build_graph(
    tables: PriorTables,
    generator: torch.nn.Module,
    image_type: ImageType,
    frame: Frame | None = None,
) -> onnx.ModelProto:
    """Compose the quantile lookup and the frame with a generator.

    Args:
        tables: The prior's.
        generator: Maps (N, Q) float32 to images (N, C, H, W) in [0, 1]; in eval mode.
        image_type: Element type of the output `image`; uint8 is rounded to nearest as the graph's last step.
        frame: Applied to the looked-up quantiles; None where they are the latents themselves.

    Returns:
        A checked model with input `uniform` (N, D), D as in `prior_tables.py`, and outputs `image` and `latent`; no
        metadata yet.
    """
    return join_generator(*head_nodes(tables, frame), generator, image_type)


def join_generator(
    nodes: list[onnx.NodeProto],
    constants: Constants,
    noise_dim: int,
    latent_dim: int,
    generator: torch.nn.Module,
    image_type: ImageType,
) -> onnx.ModelProto:
    """Compose nodes from `uniform` (N, D) to `latent` (N, Q) with a generator: `build_graph` for any head.

    Raises:
        ArtifactError: The generator cannot be exported, or not be joined to the nodes.
    """
    exported = _generator(generator, latent_dim)
    with one_line(
        "the generator's graph cannot be joined to the prior's", "export it with ONNX's common operators alone"
    ):
        head = wrap(
            nodes,
            constants,
            source=("uniform", noise_dim),
            target=("latent", latent_dim),
            opset=OPSET,
            ir_version=IR_VERSION,
        )
        model = compose.merge_models(
            head, exported, io_map=[("latent", "generator_latent")], outputs=["image", "latent"]
        )
        return finished(model, image_type)


def finished(model: onnx.ModelProto, image_type: ImageType) -> onnx.ModelProto:
    """Finish, in place, a model whose `image` is float32: element type, no traces of its making, a check."""
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


def _generator(generator: torch.nn.Module, latent_dim: int) -> onnx.ModelProto:
    """Return the generator with a free batch dimension; every name gets the prefix `generator_`, the output none."""
    if isinstance(generator, OnnxGenerator):
        model = finished_decoder(generator.file(), latent_dim)
    else:
        model = clipped(traced_generator(generator, latent_dim))
    model = prefixed(fix_sum_orders(model), "generator_")
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
