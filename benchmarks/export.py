"""Exported generators against torch.onnx's plain export, torch eager and torch.compile, same weights.

    python benchmarks/export.py --seconds 5 [--only svhn] [--no-compile]
    python benchmarks/export.py --checkpoint runs/results/svhn/kaem/seed0/ckpt.pt

One thread: processor time of that thread, so that other processes on the machine do not count; medians of ratios within
rounds, every variant once a round in random order, with 95 % intervals. All cores: wall time, for waiting for other
threads is what is compared. Weights are random: time does not depend on them.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from kaem.backend import installed_runtime, open_session
from kaem.errors import VerificationError
from kaem.noise import uniforms
from kaem_export.compile import export
from kaem_export.graph import traced_generator
from kaem_export.optimise import optimise
from kaem_export.options import Options
from kaem_export.passes.cost import graph_cost
from kaem_export.passes.int8 import psnr
from kaem_export.timing import estimate, interleaved, speedup
from kaem_train.model.generator import build_generator
from kaem_train.sections import GeneratorConfig

WORKLOADS = {
    "svhn": (81, (3, 32, 32), GeneratorConfig(kind="cnn", channels=(256, 128, 64))),
    "celeba": (81, (3, 64, 64), GeneratorConfig(kind="cnn", channels=(512, 256, 128, 64))),
    "kan": (81, (1, 28, 28), GeneratorConfig(kind="kan", hidden=(162,))),
    "kan-nist": (41, (1, 28, 28), GeneratorConfig(kind="kan", hidden=(82,))),
}
_LEVELS = {"default": Options(), "large-batch": Options(optimize="large-batch")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of measurement for every cell")
    parser.add_argument("--batches", default="1,8,64,256")
    parser.add_argument("--only", choices=WORKLOADS)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--checkpoint", type=Path, help="measure this trained model instead of random generators")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    runtime = installed_runtime()
    print(f"{time.strftime('%Y-%m-%d')}, {_processor()}, {len(os.sched_getaffinity(0))} cores, ", end="")
    print(
        f"load {os.getloadavg()[0]:.1f}, {runtime.distribution} {runtime.version}, torch {torch.__version__}, ", end=""
    )
    print(f"sgemm {_roof() / 1e9:.0f} GFLOP/s on one thread\n")
    if options.checkpoint:
        _trained(options.checkpoint, options.seconds)
        return
    for name in [options.only] if options.only else WORKLOADS:
        batches = [int(size) for size in options.batches.split(",")]
        _one_thread(name, batches, options.seconds, with_compile=not options.no_compile)
        _all_cores(name, [size for size in batches if size >= 8], options.seconds)


def _generator(name: str) -> tuple[torch.nn.Module, int]:
    num_latents, shape, config = WORKLOADS[name]
    torch.manual_seed(0)
    generator = build_generator(num_latents, shape, config).eval()
    for value in generator.parameters():
        if value.dim() == 1:
            torch.nn.init.normal_(value, std=0.1)
    return generator, num_latents


def _one_thread(name: str, batches: list[int], seconds: float, *, with_compile: bool) -> None:
    generator, num_latents = _generator(name)
    plain = traced_generator(generator, num_latents)
    graphs = {"plain": plain} | {level: optimise(plain, options).model for level, options in _LEVELS.items()}
    if graphs["large-batch"] == graphs["default"]:
        del graphs["large-batch"]
    print(f"**{name}**, one thread, random weights: times faster than the plain export\n")
    print(
        "| rows | plain, us per row | "
        + " | ".join([*list(graphs)[1:], "torch eager", "torch.compile", "best, of the roof"])
        + " |"
    )
    print("|---" * (len(graphs) + 4) + "|")
    roof = _roof()
    for batch in batches:
        latent = uniforms(0, 0, batch, num_latents)
        calls = {label: partial(_session(graph).run, ["image"], {"latent": latent}) for label, graph in graphs.items()}
        calls["torch eager"] = partial(_without_gradient, generator, torch.from_numpy(latent))
        if with_compile:
            compiled = torch.compile(generator, dynamic=False)
            calls["torch.compile"] = partial(_without_gradient, compiled, torch.from_numpy(latent))
        times = interleaved(list(calls.values()), time.thread_time, seconds=seconds)
        first = np.median(times[:, 0]) / batch
        cells = [_cell(times, index) for index in range(1, len(calls))] + ([] if with_compile else ["not measured"])
        flops = graph_cost(plain, batch).flops
        best = min(np.median(times[:, index]) for index in range(len(graphs))) / batch
        print(f"| {batch} | {1e6 * first:.0f} | " + " | ".join(cells) + f" | {flops / best / roof:.0%} |", flush=True)
    print()


def _all_cores(name: str, batches: list[int], seconds: float) -> None:
    """Rows split over single-threaded calls, against threads inside the operators."""
    generator, num_latents = _generator(name)
    plain = traced_generator(generator, num_latents)
    cores = len(os.sched_getaffinity(0))
    threaded = _session(plain, threads=cores)
    split = {"plain": _session(plain)} | {
        level: _session(optimise(plain, option).model) for level, option in _LEVELS.items()
    }
    print(
        f"**{name}**, {cores} cores, wall time: "
        f"times faster than the plain export with ONNX Runtime's own {cores} threads inside operators\n"
    )
    print("| rows | " + " | ".join(f"{label}, rows split" for label in split) + " |")
    print("|---" * (len(split) + 1) + "|")
    with ThreadPoolExecutor(cores) as pool:
        for batch in batches:
            latent = uniforms(0, 0, batch, num_latents)
            parts = np.array_split(latent, cores)
            calls = [partial(threaded.run, ["image"], {"latent": latent})]
            calls += [partial(_in_parts, pool, session, parts) for session in split.values()]
            times = interleaved(calls, time.perf_counter, seconds=seconds)
            print(
                f"| {batch} | " + " | ".join(_cell(times, index) for index in range(1, len(calls))) + " |", flush=True
            )
    print()


def _trained(checkpoint: Path, seconds: float) -> None:
    """Time of the export, the prior's share of the graph, and what narrow types cost and give."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "model.onnx"
        wall, processor = time.perf_counter(), time.process_time()
        export(checkpoint, target)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        model = onnx.load(target)
    del model.metadata_props[:]
    print(f"export of {checkpoint.parent.name}: {processor:.1f} s of processor time, {wall:.1f} s on the clock\n")
    whole = ir.from_proto(model)
    (source,) = (value for value in whole.graph.outputs if value.name == "latent")
    part = ir.convenience.extract(whole.graph, list(whole.graph.inputs), [source])
    part.opset_imports.update(whole.opset_imports)
    prior = ir.to_proto(ir.Model(part, ir_version=whole.ir_version))
    variants = {"float32": model, "float16": None, "int8": None}
    for precision in ("float16", "int8"):
        try:
            variants[precision] = optimise(model, Options(precision=precision)).model
        except VerificationError as error:
            print(f"{precision}: {error.message}\n")
    graphs = {name: graph for name, graph in variants.items() if graph is not None}
    for name, graph in list(graphs.items())[1:]:
        print(f"{name}: {psnr(model, graph):.1f} dB against float32, {len(graph.SerializeToString()) / 1e6:.2f} MB")
    print(
        "\n| rows | us per row | prior's share | "
        + " | ".join(f"{name}, times faster" for name in list(graphs)[1:])
        + " |"
    )
    print("|---" * (len(graphs) + 2) + "|")
    for batch in (1, 8, 64, 256):
        feed = {"uniform": uniforms(0, 0, batch, model.graph.input[0].type.tensor_type.shape.dim[1].dim_value)}
        calls = [partial(_session(graph).run, ["image"], feed) for graph in graphs.values()]
        calls.append(partial(_session(prior).run, ["latent"], feed))
        times = interleaved(calls, time.thread_time, seconds=seconds)
        share = estimate(times[:, -1] / times[:, 0])
        cells = [f"{1e6 * np.median(times[:, 0]) / batch:.0f}", f"{share.median:.1%}"]
        print(
            f"| {batch} | " + " | ".join([*cells, *(_cell(times, i) for i in range(1, len(graphs)))]) + " |", flush=True
        )


def _in_parts(pool, session, parts):
    return list(pool.map(lambda rows: session.run(["image"], {"latent": rows}), parts))


def _without_gradient(module, latent):
    with torch.inference_mode():
        return module(latent)


def _session(model: onnx.ModelProto, threads: int = 1):
    if threads == 1:
        return open_session(model.SerializeToString(), "cpu", source="the graph")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _cell(times, index) -> str:
    gain = speedup(times, index, 0)
    return f"{gain.median:.2f} ({gain.low:.2f} - {gain.high:.2f})"


def _roof() -> float:
    """Operations a second of a large product with constant weights in ONNX Runtime, on one thread."""
    size = 1024
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["image"])],
        "roof",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", size])],
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", size])],
        [numpy_helper.from_array(uniforms(0, 0, size, size), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    rows = uniforms(1, 0, size, size)
    times = interleaved([partial(_session(model).run, ["image"], {"x": rows})], time.thread_time, seconds=1.0)
    return 2 * size**3 / float(np.median(times))


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    flags = next((line for line in lines if line.startswith("flags")), "")
    return model + (" with AVX-512" if "avx512f" in flags else " with AVX2" if "avx2" in flags else "")


if __name__ == "__main__":
    main()
