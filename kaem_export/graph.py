"""Head + generator -> one ONNX graph from `uniform` to `image` and `latent`.

The head is written by a prior's layout or by a family; the generator comes from torch's exporter, or is ONNX already,
and is joined at `latent`.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir
import torch
from onnx import helper
from onnxscript import GraphBuilder

from kaem.artifact import MANIFEST_KEY, ImageType, Manifest, fingerprint, write_manifest
from kaem_export.onnx_builder import move_graph, start_graph, to_model
from kaem_export.priors.layout import PriorLayout
from kaem_export.priors.ordered_sum import fix_sum_orders
from kaem_export.proof.intensities import clip_intensities
from kaem_export.tables.lookup import Head
from kaem_export.tables.tree import QuantileTables
from kaem_train.fitting.decoder_graph import parse_finished_decoder
from kaem_train.library_errors import one_line
from kaem_train.model.generators.onnx_generator import OnnxGenerator
from kaem_train.onnx_tracing import trace_generator


def build_graph(
    layout: PriorLayout, tables: QuantileTables, generator: torch.nn.Module, image_type: ImageType
) -> tuple[onnx.ModelProto, Head]:
    """Compose a prior's quantile lookup and frame with a generator.

    Args:
        layout: Layout of the prior.
        tables: Tables of its laws.
        generator: Generator in eval mode, from (N, Q) float32 to images (N, C, H, W) in [0, 1].
        image_type: Element type of the output `image`; uint8 is rounded to nearest as the graph's last step.

    Returns:
        A checked model with input `uniform` (N, D) and outputs `image` and `latent`, without metadata, and its head.

    Raises:
        ArtifactError: The generator cannot be exported, or not be joined to the head.
    """
    builder, uniform = start_graph("uniform", layout.noise_dim)
    head = layout.write_head(builder.op, uniform, tables)
    return join_generator(builder, head, layout.prior.num_latents, generator, image_type), head


def join_generator(
    builder: GraphBuilder, head: Head, latent_dim: int, generator: torch.nn.Module, image_type: ImageType
) -> onnx.ModelProto:
    """Compose a head with a generator: `build_graph` for any head.

    Raises:
        ArtifactError: The generator cannot be exported, or not be joined to the head.
    """
    if isinstance(generator, OnnxGenerator):
        exported = ir.from_proto(parse_finished_decoder(generator.file(), latent_dim))
    else:
        exported = clip_intensities(ir.from_proto(trace_generator(generator, latent_dim)))
    with one_line(
        "the generator's graph cannot be joined to the prior's", "export it with ONNX's common operators alone"
    ):
        (image,) = move_graph(fix_sum_orders(exported).graph, builder, "generator_", [head.latent])
        return finish_graph(builder, image, head.latent, image_type)


def finish_graph(builder: GraphBuilder, image: ir.Value, latent: ir.Value, image_type: ImageType) -> onnx.ModelProto:
    """Finish a graph whose image is float32: element type, outputs, no traces of its making, a check.

    Args:
        builder: Builder of the graph.
        image: Images, float32 (N, C, H, W) in [0, 1].
        latent: Latents, float32 (N, Q).
        image_type: Element type of the output `image`; uint8 is rounded to nearest.
    """
    if image_type == "uint8":
        op = builder.op  # the cast comes last of all, as TensorRT demands
        image = op.Cast(op.Clip(op.Round(op.Mul(image, 255.0)), 0.0, 255.0), to=ir.DataType.UINT8)
    model = to_model(builder, image=image, latent=latent)
    _strip(model)
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


def _strip(model: onnx.ModelProto) -> None:
    """Remove what the exporters note about themselves: source paths, stack traces, doc strings, shapes inside."""
    model.producer_name = "kaem"
    _strip_inside(model.graph)
    for value in (*model.graph.input, *model.graph.output):
        value.doc_string = ""
        del value.metadata_props[:]
        # The exporter names the batch dimension by itself; one name for one thing.
        value.type.tensor_type.shape.dim[0].dim_param = "N"


def _strip_inside(graph: onnx.GraphProto) -> None:
    del graph.value_info[:]
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _strip_inside(attribute.g)
