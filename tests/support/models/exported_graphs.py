"""Every kind of graph that kaem exports, by name: what a target must take. A new kind is one more line below."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import onnx
import onnx_ir as ir
import torch
from baselines import random_baseline
from heads import graph_of_prior
from models import VARIANTS, random_model
from onnxscript import GraphBuilder

from kaem_export import graph
from kaem_export.families import diffusion
from kaem_export.families.exported_families import exported_family
from kaem_export.families.family import Request, Sampling
from kaem_export.graph import finish_graph
from kaem_export.options import Options
from kaem_export.rewrite.optimise import optimise

_trace_once = functools.cache(graph.trace_generator)
"""Tracing a generator takes seconds; kinds that differ in their prior alone share one."""


@functools.cache
def _of_variant(name: str, own_generator: bool = True, keep_components: bool = False) -> onnx.ModelProto:
    _, model = random_model(*VARIANTS[name])
    generator = model.float().generator if own_generator else _small_generator()
    with patch.object(graph, "trace_generator", _trace_once):
        return graph_of_prior(model.prior, generator, keep_components=keep_components)


@functools.cache
def _small_generator() -> torch.nn.Module:
    return random_model()[1].float().generator


@functools.cache
def _rewritten(options: Options) -> onnx.ModelProto:
    return optimise(_of_variant("experts in a frame"), options).model


@functools.cache
def _of_family(family: str) -> onnx.ModelProto:
    config, model = random_baseline(family)
    return exported_family(config).compile(config, model, Request()).graph


@functools.cache
def _wide(options: Options, *overrides: str) -> onnx.ModelProto:
    """Layers that are worth another form; the last one and its sigmoid follow them into branches."""
    _, model = random_model(*(overrides or _WIDE))
    return optimise(graph_of_prior(model.prior, model.float().generator), options).model


@functools.cache
def _unet():
    """Settings, a network with attention at the lower one of two resolutions, and its nodes."""
    config, model = random_baseline("ddpm", "diffusion.channels=[8,8]")
    return config, model, diffusion.unet_graph(model)


@functools.cache
def _diffusion(sampling: Sampling) -> onnx.ModelProto:
    config, model, nodes = _unet()
    with patch.object(diffusion, "unet_graph", lambda _: nodes):
        return exported_family(config).compile(config, model, Request(sampling=sampling)).graph


_WIDE = ("generator.dense=0", "generator.channels=[64,48]", "data.image_shape=[1,16,16]")
_WIDE_KAN = ("generator.kind=kan", "generator.channels=[]", "generator.hidden=[100]")

KINDS: dict[str, Callable[[], onnx.ModelProto]] = {
    "mixture": partial(_of_variant, "gaussian mixture", own_generator=False),
    "independent": partial(_of_variant, "gaussian independent", own_generator=False),
    "experts": partial(_of_variant, "experts", own_generator=False),
    "experts in a frame": partial(_of_variant, "experts in a frame", own_generator=False),
    "experts in own frames": partial(_of_variant, "experts in own frames", own_generator=False),
    "mixture in a frame": partial(_of_variant, "mixture in a frame", own_generator=False),
    "components of a mixture": partial(_of_variant, "gaussian mixture", own_generator=False, keep_components=True),
    "summands of latents": partial(_of_variant, "gaussian independent", own_generator=False, keep_components=True),
    "shared uniforms": partial(_of_variant, "shared uniforms", own_generator=False),
    "latent joined to every layer": partial(_of_variant, "latent joined to every layer"),
    "VAE": partial(_of_family, "vae"),
    "after the exact rewrites": partial(_rewritten, Options()),
    "float16 generator": partial(_rewritten, Options(precision="float16")),
    "KAN of radial functions": partial(_of_variant, "kan generator"),
    "KAN of splines": partial(_of_variant, "splines"),
    "KAN of waves": partial(_of_variant, "waves"),
    "KAN of polynomials": partial(_of_variant, "polynomials"),
    "KAN of orthogonal polynomials": partial(_of_variant, "orthogonal polynomials"),
    "KAN of wavelets": partial(_of_variant, "wavelets"),
}
"""For each a function that gives it with a free batch size and float32 images. None of them chooses or repeats."""

LOOPS: dict[str, Callable[[], onnx.ModelProto]] = {
    "latent EBM": partial(_of_family, "latent_ebm"),
    "DDIM": partial(_diffusion, Sampling(sampler="ddim", steps=5)),
    "DDPM": partial(_diffusion, Sampling(sampler="ddpm", steps=5)),
}
"""Those that sample in steps, in the same form."""

LARGE_BATCH: dict[str, Callable[[], onnx.ModelProto]] = {
    "large-batch form in a branch": partial(_wide, Options(optimize="large-batch")),
    "large-batch form alone": partial(_wide, Options(optimize="large-batch", batch=(16, 32))),
}
"""Those for many rows on a processor, in the same form."""

INT8: dict[str, Callable[[], onnx.ModelProto]] = {
    "int8 convolutions": partial(_wide, Options(precision="int8")),
    "int8 dense layers": partial(_wide, Options(precision="int8"), *_WIDE_KAN),
}
"""Those for processors alone, in the same form."""


def with_bytes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with 8-bit images, as `build_graph` makes them: from the same float ones."""
    copy = onnx.ModelProto()  # for names are given to the tensors of both
    copy.CopyFrom(model)
    rounded = ir.from_proto(copy)
    image, latent = sorted(rounded.graph.outputs, key=lambda value: value.name)
    rounded.graph.outputs.clear()
    image.name = "image_float"
    for held in list(rounded.graph.initializers.values()):  # a new builder does not know which names are taken
        held.name = f"held_{held.name}"
    return finish_graph(GraphBuilder(rounded.graph), image, latent, "uint8")


def with_batch(model: onnx.ModelProto, rows: int) -> onnx.ModelProto:
    """Return the model with the fixed batch size `rows`, shapes inferred anew."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = rows
    del fixed.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(fixed, strict_mode=True)
