"""The denoising network of a diffusion model as the nodes of a loop's body."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import compose, helper, numpy_helper
from onnx_ir.passes import common

from kaem_export.priors.ordered_sum import fix_sum_orders
from kaem_train.families.diffusion import Diffusion
from kaem_train.onnx_tracing import traced

PREFIX = "unet_"


def unet_graph(model: Diffusion) -> onnx.GraphProto:
    """Return eps_theta as nodes from `unet_image` (N, C, H, W) and `unet_timestep` (), int64, to `unet_noise`.

    Raises:
        ArtifactError: torch cannot export the network.
    """
    example = {"image": torch.zeros(3, *model.image_shape), "timestep": torch.tensor(0)}
    batch = {0: torch.export.Dim("N")}
    network = traced(_Denoiser(model), example, "noise", (batch, None), what="the denoising network")
    network = onnx.shape_inference.infer_shapes(network, data_prop=True)
    _write_out_sizes(network.graph)
    network = ir.to_proto(common.RemoveUnusedNodesPass()(ir.from_proto(network)).model)
    _split_group_norms(network.graph)
    network = fix_sum_orders(network)
    graph = compose.add_prefix(network, PREFIX).graph
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    del graph.value_info[:]
    return graph


class _Denoiser(torch.nn.Module):
    """The network with one output and no options."""

    def __init__(self, model: Diffusion) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return self.model.predict_noise(image, timestep)


def _write_out_sizes(graph: onnx.GraphProto) -> None:
    """Replace, in place, the computed sizes of every Reshape by constants, with -1 for what depends on the batch.

    torch's attention computes them from shapes of which all but the batch is known. ONNX Runtime computes sizes on the
    processor even in a session on a GPU, and `kaem.engines.session` lets nothing there run elsewhere than asked.
    """
    sizes = {value.name: value.type.tensor_type.shape.dim for value in graph.value_info}
    known = {tensor.name for tensor in graph.initializer}
    for number, node in enumerate(graph.node):
        if node.op_type != "Reshape" or node.input[1] in known:
            continue
        sides = [side.dim_value if side.HasField("dim_value") else -1 for side in sizes.get(node.output[0], ())]
        if not sides or sides.count(-1) > 1:
            continue
        name = f"reshape_{number}_sizes"
        graph.initializer.append(numpy_helper.from_array(np.array(sides, np.int64), name))
        node.input[1] = name


def _split_group_norms(graph: onnx.GraphProto) -> None:
    """Rewrite every GroupNormalization, in place, as the InstanceNormalization of its groups, then scale and offset.

    ONNX Runtime has no kernel of the former: it runs some fifteen small nodes of the operator's definition instead.
    """
    shapes = {
        value.name: [side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.input)
    }
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for number, node in enumerate(graph.node):
        if node.op_type != "GroupNormalization":
            nodes.append(node)
            continue
        options = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        source, scale, offset = node.input
        name, groups = f"group_norm_{number}", options["num_groups"]
        sides = (-1, *[1] * (len(shapes[source]) - 2))
        constants = {
            f"{name}_groups": np.array([0, groups, math.prod(shapes[source][1:]) // groups or -1], np.int64),
            f"{name}_ones": np.ones(groups, np.float32),
            f"{name}_zeros": np.zeros(groups, np.float32),
            f"{name}_scale": numpy_helper.to_array(weights[scale]).reshape(sides),
            f"{name}_offset": numpy_helper.to_array(weights[offset]).reshape(sides),
        }
        graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in constants.items())
        make = helper.make_node
        nodes += [
            make("Shape", [source], [f"{name}_shape"]),
            make("Reshape", [source, f"{name}_groups"], [f"{name}_grouped"]),
            make(
                "InstanceNormalization",
                [f"{name}_grouped", f"{name}_ones", f"{name}_zeros"],
                [f"{name}_normal"],
                epsilon=options["epsilon"],
            ),
            make("Reshape", [f"{name}_normal", f"{name}_shape"], [f"{name}_ungrouped"]),
            make("Mul", [f"{name}_ungrouped", f"{name}_scale"], [f"{name}_scaled"]),
            make("Add", [f"{name}_scaled", f"{name}_offset"], list(node.output)),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
