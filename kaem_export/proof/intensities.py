"""Intensities in [0, 1]: what a generator's graph ends with, and what the prior's samples make of it."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from kaem.artifact import Figure
from kaem.engines.cpu import LocalSampler
from kaem.noise import uniforms

_BOUNDED = frozenset({"HardSigmoid", "Hardmax", "Sigmoid", "Softmax"})
_MOVING = frozenset({"Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators whose result holds numbers of their first input alone."""

_SEED = 11
_ROWS = 1024
_ROWS_PER_CALL = 128

_WHITE = {"float32": 1.0, "uint8": 255.0}


def clipped(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model whose `image` lies in [0, 1]: as it is where its last operator says so, else with a Clip.

    Numbers inside keep their bits.
    """
    graph = model.graph
    if _is_bounded(graph):
        return model
    for node in graph.node:
        node.output[:] = ["unclipped" if name == "image" else name for name in node.output]
        node.input[:] = ["unclipped" if name == "image" else name for name in node.input]
    ends = {"darkest": np.float32(0), "brightest": np.float32(1)}
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in ends.items())
    graph.node.append(helper.make_node("Clip", ["unclipped", *ends], ["image"]))
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


def _is_bounded(graph: onnx.GraphProto) -> bool:
    makers = {name: node for node in graph.node for name in node.output}
    known = {tensor.name: tensor for tensor in graph.initializer}
    node = makers.get("image")
    while node is not None and node.op_type in _MOVING:
        node = makers.get(node.input[0])
    if node is None or node.op_type != "Clip" or len(node.input) < 3:
        return node is not None and node.op_type in _BOUNDED
    ends = [known.get(name) for name in node.input[1:]]
    if None in ends:
        return False
    low, high = (float(numpy_helper.to_array(end)) for end in ends if end is not None)
    return 0.0 <= low <= high <= 1.0
