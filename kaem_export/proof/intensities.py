"""Intensities in [0, 1]: what a generator's graph ends with, and what the prior's samples make of it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import GraphBuilder

from kaem.artifact import Figure
from kaem.engines.cpu import LocalSampler
from kaem.noise import uniforms
from kaem_export.onnx_builder import add_constant
from kaem_export.rewrite.editing import constant

_BOUNDED = frozenset({"HardSigmoid", "Hardmax", "Sigmoid", "Softmax"})
_MOVING = frozenset({"Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators whose result holds numbers of their first input alone."""

_SEED = 11
_ROWS = 1024
_ROWS_PER_CALL = 128

_WHITE = {"float32": 1.0, "uint8": 255.0}


def clip_intensities(model: ir.Model) -> ir.Model:
    """Return a generator whose one output lies in [0, 1]: as it is where its last operator says so, else with a Clip.

    Numbers inside keep their bits.
    """
    (image,) = model.graph.outputs
    if not _is_bounded(image):
        op = GraphBuilder(model.graph).op
        ends = (add_constant(op, np.float32(value), name) for value, name in ((0, "darkest"), (1, "brightest")))
        model.graph.outputs[0] = op.Clip(image, *ends)
    return model


def range_figure(sampler: LocalSampler, generator: torch.nn.Module) -> Figure:
    """Measure how far images of the prior's samples leave [0, 1], and what the graph clips to keep them there.

    Args:
        sampler: The artifact.
        generator: That it was made of, in float32.
    """
    uniform = uniforms(_SEED, 0, _ROWS, sampler.manifest.noise_dim)
    beyond, outside, total = 0.0, 0, 0
    least, most = np.inf, -np.inf
    for first in range(0, _ROWS, _ROWS_PER_CALL):
        rows = uniform[first : first + _ROWS_PER_CALL]
        images = sampler.decode(rows).astype(np.float32)
        images = images / np.float32(_WHITE[sampler.manifest.image_type])
        beyond = float(np.max([beyond, -images.min(), images.max() - np.float32(1)]))  # keeps a NaN, as max does not
        with torch.no_grad():
            raw = generator(torch.from_numpy(sampler.latents(rows)))
        outside += int(((raw < 0.0) | (raw > 1.0)).sum())
        total += raw.numel()
        least, most = min(least, float(raw.min())), max(most, float(raw.max()))
    what = f"how far images of {_ROWS} prior samples leave [0, 1]"
    if outside:
        what += f"; the generator reaches [{least:.3g}, {most:.3g}], of which the graph clips {outside / total:.2%}"
    return Figure(name="image_range", value=beyond, bound=0.0, meaning=what)


def _is_bounded(image: ir.Value) -> bool:
    node = image.producer()
    while node is not None and node.op_type in _MOVING and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.op_type != "Clip" or len(node.inputs) < 3:
        return node is not None and node.op_type in _BOUNDED
    low, high = (constant(end) for end in node.inputs[1:])
    return low is not None and high is not None and 0.0 <= float(low) <= float(high) <= 1.0
