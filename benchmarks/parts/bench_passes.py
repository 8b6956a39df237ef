"""What each rewrite of an exported graph costs, and what it is worth: the graph before it and after it.

    python -m pytest benchmarks/parts/bench_passes.py

Three small generators, two of them traced by torch's exporter, go through the rewrites in the order in which `kaem
export` applies them, so each finds what those before it leave. `rewriting` is the time of the rewrite itself, from a
graph whose shapes are known; the other groups run both graphs in ONNX Runtime on one thread. Times are processor time.
Weights are random: time does not depend on them. Whole workloads, beside torch: `benchmarks/export.py`.
"""

from __future__ import annotations

import time
from functools import cache, partial

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from graphs import floats, graph_of

from kaem.engines.session import open_session
from kaem.noise import uniforms
from kaem_export.graph import trace_generator
from kaem_export.rewrite.editing import with_shapes
from kaem_export.rewrite.effects import graph_cost
from kaem_export.rewrite.half import to_float16
from kaem_export.rewrite.int8 import layers_to_int8
from kaem_export.rewrite.optimise import EXACT, LARGE_BATCH
from kaem_export.rewrite.toom_cook.layer import add_large_batch_branch
from kaem_train.config import GeneratorConfig
from kaem_train.model.generators.generator import build_generator

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.benchmark(timer=time.process_time)]

_LATENTS = 16


def _own(**settings) -> onnx.ModelProto:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = build_generator(_LATENTS, (1, 32, 32), GeneratorConfig(**settings))
    return trace_generator(generator.eval(), _LATENTS)


def _normalised() -> onnx.ModelProto:
    """A decoder of somebody else's: torch's exporter folds the normalisation of a layer by itself."""
    statistics = {name: floats(32, seed=seed) for seed, name in enumerate(("scale", "shift", "mean"))}
    graph = graph_of(
        """x = Reshape(latent, point)  y = ConvTranspose(x, first)
           z = BatchNormalization(y, scale, shift, mean, variance)  r = Relu(z)
           t = ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(r, last, bias)  image = Sigmoid(t)""",
        *(_LATENTS, (1, 8, 8)),
        point=np.array([-1, _LATENTS, 1, 1]),
        first=floats(_LATENTS, 32, 4, 4),
        last=floats(32, 1, 4, 4),
        bias=floats(1),
        variance=np.abs(floats(32, seed=3)),
        **statistics,
    )
    return ir.to_proto(graph)


GENERATORS = {
    "CNN": partial(_own, kind="cnn", channels=(64, 48, 32)),
    "KAN": partial(_own, kind="kan", channels=(), hidden=(32,)),
    "normalised": _normalised,
}
_LARGE = partial(add_large_batch_branch, least_rows=LARGE_BATCH)
LATER = {"add_large_batch_branch": _LARGE, "to_float16": to_float16}
"""Rewrites that come after the exact ones; `layers_to_int8` is another, on the model as it is stored."""

WORTH = [
    *(("CNN", name) for name in ("fold_constants", "fold_affine_chains", "first_layer_to_gemm")),
    *(("CNN", name) for name in ("add_large_batch_branch", "layers_to_int8")),
    *(("KAN", name) for name in ("fold_constants", "fold_kan_layers", "first_layer_to_gemm")),
    ("normalised", "fold_scales"),
]
"""What changes which generator; float16 is for GPUs and not timed here."""


def _changing(model: onnx.ModelProto) -> ir.Model:
    """A rewrite changes what it is given, so it is given its own."""
    return with_shapes(ir.from_proto(model))


@cache
def steps_of(generator: str) -> dict[str, tuple[onnx.ModelProto, onnx.ModelProto]]:
    """The graph before and after each rewrite, by its name."""
    model, steps = GENERATORS[generator](), {}
    for rewrite in EXACT:
        steps[rewrite.__name__] = model, ir.to_proto(rewrite(_changing(model)))
        model = steps[rewrite.__name__][1]
    steps |= {name: (model, ir.to_proto(rewrite(_changing(model)))) for name, rewrite in LATER.items()}
    return steps | {"layers_to_int8": (model, layers_to_int8(model))}


REWRITES = {rewrite.__name__: rewrite for rewrite in EXACT} | LATER


@pytest.mark.parametrize("name", [*REWRITES, "layers_to_int8"])
@pytest.mark.parametrize("generator", GENERATORS)
def bench_rewriting(benchmark, generator, name, amount):
    before, _ = steps_of(generator)[name]
    benchmark.group, benchmark.name = f"rewriting, {generator}", name
    if name in REWRITES:
        benchmark.pedantic(REWRITES[name], setup=lambda: ((_changing(before),), {}), rounds=9)
    else:
        benchmark.pedantic(layers_to_int8, (before,), rounds=9)
    amount(1, "graphs")


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize(("generator", "name"), WORTH)
def bench_graph(benchmark, amount, generator, name, rows, place):
    before, after = steps_of(generator)[name]
    assert before.graph != after.graph
    model = before if place == "before" else after
    session = open_session(model.SerializeToString(), "cpu", source="the graph")
    benchmark.group, benchmark.name = f"{generator}, {name}, batch {rows}", place
    (images,) = benchmark(session.run, ["image"], {"latent": 4 * uniforms(0, 0, rows, _LATENTS)})
    assert images.shape[0] == rows
    assert np.isfinite(images).all()
    cost = graph_cost(model, rows)
    benchmark.extra_info |= {"nodes": cost.nodes, "kFLOP a row": cost.flops / 1e3}
    amount(rows, "images")
