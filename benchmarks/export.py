"""Exported generators against torch.onnx's plain export, torch eager and torch.compile, same weights.

    python benchmarks/export.py --seconds 5 [--only svhn] [--no-compile]
    python benchmarks/export.py --checkpoint runs/results/svhn/kaem/seed0/ckpt.pt

One thread: processor time of that thread, so that other processes on the machine do not count; medians of ratios within
rounds, every variant once a round in random order, with 95 % intervals. All cores: wall time, for waiting for other
threads is what is compared; rows split over single-threaded calls as kaem does, torch with its own threads. Weights are
random: time does not depend on them. int8 is timed without its accuracy gate, which random weights need not pass; of a
trained model both are shown.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support" / "models"))

from heads import graph_of_prior
from models import random_model

from kaem.engines.session import installed_runtime, open_session
from kaem.engines.workers import row_workers
from kaem.errors import VerificationError
from kaem.noise import uniforms
from kaem_export.compile import export
from kaem_export.graph import trace_generator
from kaem_export.options import Options
from kaem_export.rewrite import int8
from kaem_export.rewrite.effects import estimate, graph_cost, interleaved
from kaem_export.rewrite.optimise import optimise
from kaem_export.rewrite.toom_cook import layer
from kaem_train.config import GeneratorConfig
from kaem_train.model.generators.generator import build_generator

WORKLOADS = {
    "svhn": (81, (3, 32, 32), GeneratorConfig(kind="cnn", channels=(256, 128, 64))),
    "celeba": (81, (3, 64, 64), GeneratorConfig(kind="cnn", channels=(512, 256, 128, 64))),
    "kan": (81, (1, 28, 28), GeneratorConfig(kind="kan", hidden=(162,))),
    "kan-nist": (41, (1, 28, 28), GeneratorConfig(kind="kan", hidden=(82,))),
}
_LEVELS = {"default": Options(), "large-batch": Options(optimize="large-batch")}
_REST_S = 0.02
"""Before every call on all cores: torch's and ONNX Runtime's own threads spin when they are done, on the next one's."""

_EXPERTS = ("prior.variant=experts",)
_ROWS_PER_CALL = {"large-batch": layer.ROWS_PER_CALL, "int8": int8.ROWS_PER_CALL}
_PRIORS = {
    "mixture of 32": (1.5, ("prior.variant=mixture",)),
    "32 experts": (1.5, _EXPERTS),
    "32 experts in own frames": (1.5, (*_EXPERTS, "prior.frame=own")),
    "32 Gaussian experts in own frames, as the presets' refit leaves them": (0.0, (*_EXPERTS, "prior.frame=own")),
}


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
        _alone(name, [size for size in batches if size == 1 or size >= 64], options.seconds, not options.no_compile)
        _all_cores(name, batches, options.seconds, with_compile=not options.no_compile)
        _prior_shares(name, [size for size in batches if size >= 64], options.seconds)


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
    plain = trace_generator(generator, num_latents)
    graphs = {"plain": plain} | {level: optimise(plain, options).model for level, options in _LEVELS.items()}
    if graphs["large-batch"] == graphs["default"]:
        del graphs["large-batch"]
    graphs["int8"] = int8.layers_to_int8(graphs["default"])
    print(f"**{name}**, one thread, random weights: times faster than the plain export\n")
    names = [*list(graphs)[1:], "torch eager", "torch.compile", "float32, times torch", "best float32, of the roof"]
    print("| rows | plain, us per row | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 2) + "|")
    roof = _roof()
    for batch in batches:
        latent = uniforms(0, 0, batch, num_latents)
        calls = {label: _call(_session(graph), label, {"latent": latent}) for label, graph in graphs.items()}
        calls |= _torch_calls(generator, latent, with_compile=with_compile)
        times = interleaved(list(calls.values()), time.thread_time, seconds=seconds)
        columns = {label: times[:, index] for index, label in enumerate(calls)}
        exact = [label for label in graphs if label != "int8"]
        best = min(exact, key=lambda label: np.median(columns[label]))
        cells = [_ratio(columns["plain"], columns[label]) for label in list(calls)[1:]]
        cells += [] if with_compile else ["not measured"]
        cells.append(_ratio(_fastest_torch(columns), columns[best]))
        share = graph_cost(plain, batch).flops * batch / np.median(columns[best]) / roof
        first = 1e6 * np.median(columns["plain"]) / batch
        print(f"| {batch} | {first:.0f} | " + " | ".join(cells) + f" | {share:.0%} |", flush=True)
    print()


def _alone(name: str, batches: list[int], seconds: float, with_compile: bool) -> None:
    """The faster of our graphs with one other beside it, so that both find more of their weights in the caches."""
    generator, num_latents = _generator(name)
    plain = trace_generator(generator, num_latents)
    print(f"**{name}**, one thread, two at a time: times faster than each\n")
    print("| rows | graph | plain | torch eager | torch.compile |\n|---|---|---|---|---|")
    for batch in batches:
        latent = uniforms(0, 0, batch, num_latents)
        found = optimise(plain, _LEVELS["large-batch" if batch >= 64 else "default"])
        level = "large-batch" if found.large_batch_rows else "default"
        graph = _call(_session(found.model), level, {"latent": latent})
        others = {"plain": _call(_session(plain), "plain", {"latent": latent})}
        others |= _torch_calls(generator, latent, with_compile=with_compile)
        pairs = (interleaved([other, graph], time.thread_time, seconds=seconds) for other in others.values())
        cells = [_ratio(times[:, 0], times[:, 1]) for times in pairs] + ([] if with_compile else ["not measured"])
        print(f"| {batch} | {level} | " + " | ".join(cells) + " |", flush=True)
    print()


def _all_cores(name: str, batches: list[int], seconds: float, *, with_compile: bool) -> None:
    """Rows split over single-threaded calls, against threads inside the operators, ONNX Runtime's and torch's."""
    generator, num_latents = _generator(name)
    plain = trace_generator(generator, num_latents)
    cores = len(os.sched_getaffinity(0))
    threaded = _session(plain, threads=cores)
    split = {"plain": _session(plain)} | {
        level: _session(optimise(plain, option).model) for level, option in _LEVELS.items()
    }
    split["int8"] = _session(int8.layers_to_int8(optimise(plain).model))
    print(
        f"**{name}**, {cores} cores, wall time: "
        f"times faster than the plain export with ONNX Runtime's own {cores} threads inside operators\n"
    )
    names = [f"{label}, rows split" for label in split] + ["torch eager", "torch.compile", "float32, times torch"]
    print("| rows | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    torch.set_num_threads(cores)
    with row_workers(cores) as pool:
        for batch in batches:
            latent = uniforms(0, 0, batch, num_latents)
            parts = np.array_split(latent, min(cores, batch))
            calls = {"threads": partial(threaded.run, ["image"], {"latent": latent})}
            calls |= {label: partial(_in_parts, pool, session, label, parts) for label, session in split.items()}
            calls |= _torch_calls(generator, latent, with_compile=with_compile)
            times = interleaved(list(calls.values()), time.perf_counter, seconds=4 * seconds, rest=_REST_S)
            columns = {label: times[:, index] for index, label in enumerate(calls)}
            best = min(("plain", *_LEVELS), key=lambda label: np.median(columns[label]))
            cells = [_ratio(columns["threads"], columns[label]) for label in list(calls)[1:]]
            cells += [] if with_compile else ["not measured"]
            cells.append(_ratio(_fastest_torch(columns), columns[best]))
            print(f"| {batch} | " + " | ".join(cells) + " |", flush=True)
    torch.set_num_threads(1)
    print()


def _prior_shares(name: str, batches: list[int], seconds: float) -> None:
    """What share of the time of the whole graph its prior takes, by kind of prior; random energies, one thread."""
    generator, num_latents = _generator(name)
    print(f"**{name}**, one thread: the prior's share of the whole graph in its large-batch form\n")
    print("| prior | " + " | ".join(f"{batch} rows" for batch in batches) + " |")
    print("|---" * (len(batches) + 1) + "|")
    for label, (amplitude, settings) in _PRIORS.items():
        words = (f"prior.num_latents={num_latents}", "prior.num_components=32", "prior.low=-8", "prior.high=8")
        prior = random_model(*words, *settings, amplitude=amplitude)[1].prior
        whole = graph_of_prior(prior, generator)
        whole = optimise(whole, _LEVELS["large-batch"]).model
        shares = [_prior_share(whole, batch, seconds) for batch in batches]
        print(f"| {label} | " + " | ".join(shares) + " |", flush=True)
    print()


def _prior_share(model: onnx.ModelProto, batch: int, seconds: float) -> str:
    feed = {"uniform": uniforms(0, 0, batch, model.graph.input[0].type.tensor_type.shape.dim[1].dim_value)}
    calls = [
        _call(_session(model), "large-batch", feed),
        _call(_session(_prior_alone(model)), "large-batch", feed, output="latent"),
    ]
    times = interleaved(calls, time.thread_time, seconds=seconds)
    share = estimate(times[:, 1] / times[:, 0])
    return f"{share.median:.1%} ({share.low:.1%} - {share.high:.1%})"


def _prior_alone(model: onnx.ModelProto) -> onnx.ModelProto:
    whole = ir.from_proto(model)
    (source,) = (value for value in whole.graph.outputs if value.name == "latent")
    part = ir.convenience.extract(whole.graph, list(whole.graph.inputs), [source])
    part.opset_imports.update(whole.opset_imports)
    return ir.to_proto(ir.Model(part, ir_version=whole.ir_version))


def _torch_calls(generator: torch.nn.Module, latent, *, with_compile: bool):
    calls = {"torch eager": partial(_without_gradient, generator, torch.from_numpy(latent))}
    if with_compile:
        compiled = torch.compile(generator, dynamic=False)
        calls["torch.compile"] = partial(_without_gradient, compiled, torch.from_numpy(latent))
    return calls


def _fastest_torch(columns):
    return min((column for label, column in columns.items() if label.startswith("torch")), key=np.median)


def _ratio(slow, fast) -> str:
    gain = estimate(slow / fast)
    return f"{gain.median:.2f} ({gain.low:.2f} - {gain.high:.2f})"


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
    prior = _prior_alone(model)
    variants = {"float32": model, "float16": None, "int8": None}
    for precision in ("float16", "int8"):
        try:
            variants[precision] = optimise(model, Options(precision=precision)).model
        except VerificationError as error:
            print(f"{precision}: {error.message}\n")
    graphs = {name: graph for name, graph in variants.items() if graph is not None}
    for name, graph in list(graphs.items())[1:]:
        print(
            f"{name}: {int8.psnr(model, graph):.1f} dB against float32, {len(graph.SerializeToString()) / 1e6:.2f} MB"
        )
    print(
        "\n| rows | us per row | prior's share | "
        + " | ".join(f"{name}, times faster" for name in list(graphs)[1:])
        + " |"
    )
    print("|---" * (len(graphs) + 2) + "|")
    for batch in (1, 8, 64, 256):
        feed = {"uniform": uniforms(0, 0, batch, model.graph.input[0].type.tensor_type.shape.dim[1].dim_value)}
        calls = [_call(_session(graph), name, feed) for name, graph in graphs.items()]
        calls.append(partial(_session(prior).run, ["latent"], feed))
        times = interleaved(calls, time.thread_time, seconds=seconds)
        share = estimate(times[:, -1] / times[:, 0])
        cells = [f"{1e6 * np.median(times[:, 0]) / batch:.0f}", f"{share.median:.1%}"]
        cells += [_ratio(times[:, 0], times[:, index]) for index in range(1, len(graphs))]
        print(f"| {batch} | " + " | ".join(cells) + " |", flush=True)


def _in_parts(pool, session, label, parts):
    return list(pool.map(lambda rows: _call(session, label, {"latent": rows})(), parts))


def _call(session, label, feed, output="image"):
    """Run a graph as kaem does: some on a limited number of rows at a time."""
    ((name, rows),) = feed.items()
    most = _ROWS_PER_CALL[label] if label in _ROWS_PER_CALL else len(rows)
    parts = [{name: rows[first : first + most]} for first in range(0, len(rows), most)]
    return lambda: [session.run([output], part) for part in parts]


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
