"""Every kind of graph that kaem exports, by name: what a target must take. A new kind is one more line in `KINDS`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial

import onnx
from models import VARIANTS, random_model

from kaem_export import compile as compilation
from kaem_export import graph
from kaem_export.graph import build_graph


@functools.cache
def _of_variant(name: str) -> onnx.ModelProto:
    _, model = random_model(*VARIANTS[name])
    tables, _, _ = compilation._tables(model.prior)
    return build_graph(tables, model.float().generator, "float32", compilation._frame(model.prior))


KINDS: dict[str, Callable[[], onnx.ModelProto]] = {
    "mixture": partial(_of_variant, "gaussian mixture"),
    "independent": partial(_of_variant, "gaussian independent"),
    "experts in a frame": partial(_of_variant, "experts in a frame"),
    "experts in own frames": partial(_of_variant, "experts in own frames"),
    "shared uniforms": partial(_of_variant, "shared uniforms"),
    "latent joined to every layer": partial(_of_variant, "latent joined to every layer"),
    "KAN of radial functions": partial(_of_variant, "kan generator"),
    "KAN of splines": partial(_of_variant, "splines"),
    "KAN of waves": partial(_of_variant, "waves"),
    "KAN of polynomials": partial(_of_variant, "polynomials"),
    "KAN of wavelets": partial(_of_variant, "wavelets"),
}
"""For each a function that gives it with a free batch size and float32 images."""


def with_bytes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with 8-bit images, as `build_graph` makes them: from the same float ones."""
    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    graph._append_uint8(rounded)
    return rounded


def with_batch(model: onnx.ModelProto, rows: int) -> onnx.ModelProto:
    """Return the model with the fixed batch size `rows`, shapes inferred anew."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = rows
    del fixed.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(fixed, strict_mode=True)
