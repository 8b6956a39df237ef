"""The denoising network of a diffusion model as the nodes of a loop's body."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common

from kaem_export.onnx_builder import Op, add_constant
from kaem_export.priors.ordered_sum import fix_sum_orders
from kaem_export.rewrite.editing import Patch, constant, row_shape, with_shapes
from kaem_train.families.diffusion import Diffusion
from kaem_train.onnx_tracing import trace


def unet_graph(model: Diffusion) -> ir.Graph:
    """Return eps_theta as a graph from images (N, C, H, W) and a timestep (), int64, to the noise.

    Raises:
        ArtifactError: torch cannot export the network.
    """
    example = {"image": torch.zeros(3, *model.image_shape), "timestep": torch.tensor(0)}
    batch = {0: torch.export.Dim("N")}
    network = trace(_Denoiser(model), example, "noise", (batch, None), what="the denoising network")
    written = with_shapes(ir.from_proto(network))
    _write_out_sizes(written.graph)
    common.RemoveUnusedNodesPass()(written)
    _split_group_norms(written)
    return fix_sum_orders(written).graph


class _Denoiser(torch.nn.Module):
    """The network with one output and no options."""

    def __init__(self, model: Diffusion) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return self.model.predict_noise(image, timestep)


def _write_out_sizes(graph: ir.Graph) -> None:
    """Replace, in place, the computed sizes of every Reshape by constants, with -1 for what depends on the batch.

    torch's attention computes them from shapes of which all but the batch is known. ONNX Runtime computes sizes on the
    processor even in a session on a GPU, and `kaem.engines.session` lets nothing there run elsewhere than asked.
    """
    for node in graph:
        if node.op_type != "Reshape" or constant(node.inputs[1]) is not None or node.outputs[0].shape is None:
            continue
        sides = [side if isinstance(side, int) else -1 for side in node.outputs[0].shape]
        if sides and sides.count(-1) <= 1:
            patch = Patch(node, f"{node.outputs[0].name}_sizes")
            node.replace_input_with(1, patch.constant(np.array(sides, np.int64)))


def _split_group_norms(model: ir.Model) -> None:
    """Rewrite every GroupNormalization, in place, as the InstanceNormalization of its groups, then scale and offset.

    ONNX Runtime has no kernel of the former: it runs some fifteen small nodes of the operator's definition instead.
    """
    for node in [node for node in model.graph if node.op_type == "GroupNormalization"]:

        def write(op: Op, node: ir.Node = node) -> ir.Value:
            source, scale, offset = node.inputs
            sides = row_shape(source) or ()
            groups = node.attributes.get_int("num_groups", 1)
            shape = op.Shape(source)
            grouped = op.Reshape(source, [0, groups, math.prod(sides) // groups or -1])
            ones, zeros = (add_constant(op, make(groups, np.float32), "ends") for make in (np.ones, np.zeros))
            epsilon = node.attributes.get_float("epsilon", 1e-5)
            normal = op.Reshape(op.InstanceNormalization(grouped, ones, zeros, epsilon=epsilon), shape)
            each = (-1, *[1] * (len(sides) - 1))
            factor, summand = (np.asarray(constant(value)).reshape(each) for value in (scale, offset))
            return op.Add(op.Mul(normal, add_constant(op, factor, "scale")), add_constant(op, summand, "offset"))

        patch = Patch(node, f"{node.outputs[0].name}_groups")
        patch.replace(node.outputs[0], patch.write(write))
        model.graph.remove(node, safe=True)
    common.RemoveUnusedNodesPass()(model)
