"""What every rewrite did: nodes, bytes, operations, and measured time."""

from __future__ import annotations

from dataclasses import dataclass

from kaem_export.rewrite.effects import Cost, MedianInterval, estimate, graph_cost, speedup, thread_seconds
from kaem_export.rewrite.optimise import Optimised

_SECONDS = 3.0
_ROUNDS = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One rewrite at one batch size.

    Attributes:
        name: Name of the rewrite.
        batch: Rows computed, in calls of as many as kaem makes.
        cost: Cost of the graph it left, per row.
        microseconds: Processor time per row on one thread.
        gain: How many times faster than the graph before it; None for the first.
        total_gain: How many times faster than the first; None for that.
    """

    name: str
    batch: int
    cost: Cost
    microseconds: MedianInterval
    gain: MedianInterval | None
    total_gain: MedianInterval | None


def explain(optimised: Optimised, batches: tuple[int, ...] = (1, 64), *, seconds: float = _SECONDS) -> list[Row]:
    """Measure the graph after every rewrite, all of them interleaved.

    Args:
        optimised: What `optimise` returned.
        batches: Batch sizes to measure at; a graph of one fixed size is measured at that alone, and so is its history.
        seconds: About how long to measure at each.

    Returns:
        All rewrites at the first batch size, then at the next.
    """
    sizes = {step.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value for step in optimised.steps} - {0}
    steps = optimised.steps
    if sizes:
        batches = (min(sizes),)
    rows = []
    for batch in batches:
        times = thread_seconds(
            [step.model for step in steps],
            batch,
            seconds=seconds,
            least_rounds=_ROUNDS,
            rows_per_call=[step.rows_per_call for step in steps],
        )
        for index, step in enumerate(steps):
            rows.append(
                Row(
                    name=step.name,
                    batch=batch,
                    cost=graph_cost(step.model, batch),
                    microseconds=estimate(times[:, index] / batch * 1e6),
                    gain=speedup(times, index, index - 1) if index else None,
                    total_gain=speedup(times, index, 0) if index else None,
                )
            )
    return rows
