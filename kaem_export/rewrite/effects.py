"""What a graph costs per row: nodes, bytes of constants, floating-point operations.

How long graphs take, compared so that a busy machine cannot decide the comparison.

All graphs run in turn, in a new random order every round, each on one thread whose own processor time is counted: time
that other processes take is not in it. What is reported of two graphs is the median over rounds of the ratio within a
round, with a 95 % interval from the order statistics, which assumes nothing about how times are distributed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from kaem.engines.session import open_session
from kaem.noise import uniforms
from kaem_export.rewrite.editing import constant

_FREE = frozenset(
    {
        *("Cast", "Concat", "Constant", "Expand", "Flatten", "Gather", "Identity", "If", "Loop", "Reshape", "Shape"),
        *("Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
    }
)
"""Operators that move numbers without computing any."""


class Cost(NamedTuple):
    """Of one row: what runs at the batch size that was asked for; bytes are those of the whole file's constants."""

    nodes: int
    constant_bytes: int
    flops: float


def graph_cost(model: onnx.ModelProto, batch: int) -> Cost:
    """Return what a graph costs per row at a batch size: of two branches the one that runs, of a loop all steps."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in (*copy.graph.input, *copy.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    del copy.graph.value_info[:]
    fixed = ir.from_proto(onnx.shape_inference.infer_shapes(copy, data_prop=True))
    num_nodes, flops = _sum(fixed.graph, batch)
    return Cost(num_nodes, sum(_constant_bytes(graph) for graph in _graphs(fixed.graph)), flops / batch)


def node_flops(node: ir.Node, rows: int) -> int:
    """Return multiplications and additions of one node for a number of rows, 1 per element where nothing is summed."""
    kind, result = node.op_type, node.outputs[0]
    if kind in _FREE:
        return 0
    count = _size(result, rows)
    if kind in ("Gemm", "MatMul", "MatMulInteger", "Conv", "ConvTranspose", "ConvInteger"):
        return 2 * count * _summands(node, rows)
    if kind.startswith("Reduce"):
        return _size(node.inputs[0], rows)
    return count


def _summands(node: ir.Node, rows: int) -> int:
    """Return how many products one element of the result sums up; of a ConvTranspose, on average."""
    first, weight = node.inputs[:2]
    sides = _sides(weight, rows)
    if node.op_type in ("MatMul", "MatMulInteger"):
        return _sides(first, rows)[-1]
    if node.op_type == "Gemm":
        return _sides(first, rows)[0 if node.attributes.get_int("transA", 0) else 1]
    if node.op_type in ("Conv", "ConvInteger"):
        return math.prod(sides[1:])
    steps = math.prod(node.attributes.get_ints("strides", [1] * (len(sides) - 2)))
    is_point = math.prod(_sides(first, rows)[2:]) == 1  # of a 1 x 1 image every output sees one tap
    return sides[0] * (1 if is_point else math.prod(sides[2:]) // steps)


def _sum(graph: ir.Graph, batch: int) -> tuple[int, int]:
    num_nodes = flops = 0
    for node in graph:
        num_nodes += 1
        flops += node_flops(node, batch)
        if node.op_type == "If":
            below = _sum(node.attributes[_branch(node, batch)].as_graph(), batch)
            num_nodes, flops = num_nodes + below[0], flops + below[1]
        elif node.op_type == "Loop":
            below = _sum(node.attributes["body"].as_graph(), batch)
            trips = constant(node.inputs[0])
            num_nodes, flops = num_nodes + below[0], flops + below[1] * (1 if trips is None else int(trips))
    return num_nodes, flops


def _branch(node: ir.Node, batch: int) -> str:
    """Return which branch of an If runs: those of kaem ask whether the batch has at least so many rows."""
    condition = None if node.inputs[0] is None else node.inputs[0].producer()
    if condition is not None and condition.op_type == "Squeeze" and condition.inputs[0] is not None:
        condition = condition.inputs[0].producer()
    least = None if condition is None or condition.op_type != "GreaterOrEqual" else constant(condition.inputs[1])
    return "then_branch" if least is not None and batch >= int(least.reshape(())) else "else_branch"


def _graphs(graph: ir.Graph) -> list[ir.Graph]:
    below = [
        entry.as_graph() for node in graph for entry in node.attributes.values() if entry.type == ir.AttributeType.GRAPH
    ]
    return [graph, *(deeper for branch in below for deeper in _graphs(branch))]


def _constant_bytes(graph: ir.Graph) -> int:
    return sum(value.const_value.nbytes for value in graph.initializers.values() if value.const_value is not None)


def _size(value: ir.Value | None, rows: int) -> int:
    return math.prod(_sides(value, rows))


def _sides(value: ir.Value | None, rows: int) -> tuple[int, ...]:
    if value is None or value.shape is None:
        return ()
    return tuple(side if isinstance(side, int) else rows for side in value.shape.dims)


_SEED = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class MedianInterval:
    """A median and the ends of its 95 % interval."""

    median: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Whether the interval does not hold a value."""
        return not self.low <= value <= self.high


def estimate(samples: NDArray[np.float64]) -> MedianInterval:
    """Return the median of samples (R,) with the interval that holds the true one in 95 of 100 repetitions.

    With fewer than six samples no such interval exists; it is then the whole line.
    """
    from scipy import stats  # slow to load, and few exports measure anything

    ordered = np.sort(samples)
    rank = int(stats.binom.ppf(0.025, len(ordered), 0.5))
    if rank < 1:
        return MedianInterval(median=float(np.median(ordered)), low=-np.inf, high=np.inf)
    return MedianInterval(median=float(np.median(ordered)), low=float(ordered[rank - 1]), high=float(ordered[-rank]))


def thread_seconds(
    models: Sequence[onnx.ModelProto],
    batch: int,
    *,
    seconds: float,
    least_rounds: int = 9,
    rows_per_call: Sequence[int] | None = None,
) -> NDArray[np.float64]:
    """Time graphs of one input and an output `image` against each other.

    Args:
        models: Graphs with the same input.
        batch: Rows to compute.
        seconds: About how long to measure.
        rows_per_call: For every graph how many rows one call may have, 0 for all of them; by default all for all.
        least_rounds: But never fewer rounds than these.

    Returns:
        Processor seconds of every round and graph: shape (R, models).
    """
    source = models[0].graph.input[0]
    rows = uniforms(_SEED, 0, batch, source.type.tensor_type.shape.dim[1].dim_value)
    sessions = [open_session(model.SerializeToString(), "cpu", source="the graph") for model in models]
    limits = rows_per_call or [0] * len(models)
    calls = [
        partial(_in_parts, session, source.name, rows, limit or batch)
        for session, limit in zip(sessions, limits, strict=True)
    ]
    return interleaved(calls, time.thread_time, seconds=seconds, least_rounds=least_rounds)


def _in_parts(session: Any, name: str, rows: NDArray[np.float32], limit: int) -> None:
    for first in range(0, len(rows), limit):
        session.run(["image"], {name: rows[first : first + limit]})


def interleaved(
    calls: Sequence[Callable[[], object]],
    clock: Callable[[], float],
    *,
    seconds: float,
    least_rounds: int = 9,
    rest: float = 0.0,
) -> NDArray[np.float64]:
    """Run every call once a round, in a new random order each: clock readings (R, calls), without two first rounds.

    Args:
        calls: What is compared.
        clock: Seconds, of the thread or on the wall.
        seconds: How long to go on.
        least_rounds: However long that takes.
        rest: Seconds of sleep before every call, until threads of the one before that spin have given up.
    """
    order = np.random.default_rng(_SEED)
    rounds: list[NDArray[np.float64]] = []
    begin = time.monotonic()
    while len(rounds) < least_rounds + 2 or time.monotonic() - begin < seconds:
        row = np.empty(len(calls))
        for index in order.permutation(len(calls)):
            if rest:
                time.sleep(rest)
            before = clock()
            calls[index]()
            row[index] = clock() - before
        rounds.append(row)
    return np.array(rounds[2:])


def speedup(seconds: NDArray[np.float64], graph: int, baseline: int) -> MedianInterval:
    """Return how many times faster one graph is than another, from times as above."""
    return estimate(seconds[:, baseline] / seconds[:, graph])
