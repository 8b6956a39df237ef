"""What ModelStatistics tells: how often a model was asked since the server started, and how long things took.

Requests of every protocol count. A load tool asks before and after it measures and shows the differences; it wants
the counts of the three parts of computing to be equal, so batches have inputs and outputs that take no time.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field

from kaem.protocol import inference_pb2
from serve.calls.call_context import current
from serve.events import Observer


@dataclass(slots=True)
class _Timed:
    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.ns += round(1e9 * seconds)

    def message(self) -> inference_pb2.StatisticDuration:
        return inference_pb2.StatisticDuration(count=self.count, ns=self.ns)


@dataclass(slots=True)
class _Figures:
    success: _Timed = field(default_factory=_Timed)
    fail: _Timed = field(default_factory=_Timed)
    queue: _Timed = field(default_factory=_Timed)
    batches: dict[int, _Timed] = field(default_factory=lambda: defaultdict(_Timed))
    rows: int = 0
    last_ms: int = 0


class Statistics(Observer):
    """The figures of all models by name and version; told of calls, and through `of` of what their schedulers do."""

    def __init__(self) -> None:
        self._figures: dict[tuple[str, int], _Figures] = defaultdict(_Figures)
        self._counting = threading.Lock()

    def of(self, name: str, version: int) -> Observer:
        """Return what is to be told of the jobs and batches of a model."""
        return _ModelObserver((name, version), self._figures[name, version], self._counting)

    def on_call_ended(self, method: str, code: str, seconds: float) -> None:
        """Count and time it to the model that it has asked for samples."""
        call = current.get()
        if call is not None and call.model is not None:
            figures = self._figures[call.model]
            with self._counting:
                (figures.success if code == "OK" else figures.fail).add(seconds)

    def message(self, name: str, version: int) -> inference_pb2.ModelStatistics:
        """Write the figures of a model."""
        with self._counting:
            figures = self._figures[name, version]
            batches = dict(sorted(figures.batches.items()))
            compute = _Timed(
                sum(timed.count for timed in batches.values()), sum(timed.ns for timed in batches.values())
            )
            return inference_pb2.ModelStatistics(
                name=name,
                version=str(version),
                last_inference=figures.last_ms,
                inference_count=figures.rows,
                execution_count=compute.count,
                inference_stats=inference_pb2.InferStatistics(
                    success=figures.success.message(),
                    fail=figures.fail.message(),
                    queue=figures.queue.message(),
                    compute_input=_Timed(compute.count).message(),
                    compute_infer=compute.message(),
                    compute_output=_Timed(compute.count).message(),
                ),
                batch_stats=[
                    inference_pb2.InferBatchStatistics(batch_size=size, compute_infer=timed.message())
                    for size, timed in batches.items()
                ],
            )


class _ModelObserver(Observer):
    def __init__(self, model: tuple[str, int], figures: _Figures, counting: threading.Lock) -> None:
        self._model = model
        self._figures = figures
        self._counting = counting

    def on_admitted(self, *, is_bulk: bool, rows: int) -> None:
        self._note_model()

    def on_rejected(self, reason: str) -> None:
        self._note_model()

    def on_queued(self, seconds: float) -> None:
        with self._counting:
            self._figures.queue.add(seconds)

    def on_batch(self, *, size: int, rows: int, seconds: float) -> None:
        with self._counting:
            self._figures.batches[size].add(seconds)
            self._figures.rows += rows
            self._figures.last_ms = round(1e3 * time.time())

    def _note_model(self) -> None:
        call = current.get()
        if call is not None:
            call.model = self._model
