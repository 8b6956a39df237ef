"""What Prometheus reads: counters and histograms of every event, and gauges of how things are now.

Besides our own names there are those that dashboards know already: `grpc_server_*` as the Go and Java libraries have
them, and `nv_inference_*` as Triton has them, in microseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serve.catalog.model import Models, ServedModel
from serve.events import Observer

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ROWS = tuple(float(1 << power) for power in range(0, 17, 2))
_CALL = ("grpc_type", "grpc_service", "grpc_method")
_TYPES = {
    "StreamSamples": "server_stream",
    "Watch": "server_stream",
    "ModelStreamInfer": "bidi_stream",
    "ServerReflectionInfo": "bidi_stream",
}
_STREAMS = ("StreamSamples", "ModelStreamInfer")  # of samples
_SAMPLING = (*_STREAMS, "Sample", "Decode", "ModelInfer", "sample.png")
_CODES = {"OK": "OK", "CANCELLED": "Canceled"}  # as Go spells them; the others follow their words
_TRITON_REASONS = {"CANCELLED": "CANCELED", "RESOURCE_EXHAUSTED": "REJECTED", "INTERNAL": "BACKEND"}


class Metrics(Observer):
    """The metrics of one server, in a registry of their own.

    Args:
        models: What it serves.
        is_ready: Whether it lets calls in.
        draining: Models that it serves no more and that have requests to complete.
    """

    def __init__(
        self, models: Models, is_ready: Callable[[], bool], *, draining: Callable[[], Sequence[ServedModel]]
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a time per series that nobody asked for
        self.registry = CollectorRegistry()
        self._models = models
        self._is_ready = is_ready
        self._draining = draining
        ProcessCollector(registry=self.registry)
        self._requests = self._counter("kaem_requests", "Calls answered, by method and status.", "method", "code")
        self._samples = self._counter("kaem_samples", "Samples handed to the transport.", "model", "version")
        self._batches = self._counter("kaem_batches", "Batches computed, by their size.", "bucket")
        self._batch_failures = self._counter("kaem_batch_failures", "Batches that the engine could not compute.")
        self._padding = self._counter("kaem_padding_rows", "Rows computed that nobody wanted, to fill a bucket.")
        self._rejected = self._counter("kaem_rejected", "Requests refused at once, by what was missing.", "reason")
        self._cancelled = self._counter("kaem_cancelled", "Requests left by their reader, by stage.", "stage")
        self._expired = self._counter("kaem_expired", "Requests whose deadline passed.")
        self._loads = self._counter("kaem_model_loads", "Loads of models, by what came of them.", "model", "outcome")
        self._losses = self._counter("kaem_device_losses", "Processes of devices that were lost.", "model", "device")
        self._batch_rows = Histogram(
            "kaem_batch_rows", "Rows of a batch that somebody wanted.", buckets=_ROWS, registry=self.registry
        )
        self._queue = self._seconds("kaem_queue_seconds", "From being let in until the first row is in a batch.")
        self._compute = self._seconds("kaem_compute_seconds", "The engine's time of a batch, by its size.", "bucket")
        self._send_wait = self._seconds("kaem_send_wait_seconds", "Until the transport took a message: slow readers.")
        self._first_chunk = self._seconds("kaem_first_chunk_seconds", "From being let in until the first chunk.")
        self._streams = Gauge("kaem_inflight_streams", "Streams of samples being answered.", registry=self.registry)
        self._started = self._counter("grpc_server_started", "Calls begun.", *_CALL)
        self._handled = self._counter("grpc_server_handled", "Calls completed.", *_CALL, "grpc_code")
        self._handling = self._seconds("grpc_server_handling_seconds", "Whole time of a call.", *_CALL)
        self._triton = _TritonFigures()
        self.registry.register(self._triton)
        self.registry.register(_Now(self))

    def on_call_started(self, method: str) -> None:
        """Count it."""
        self._started.labels(*_call_labels(method)).inc()
        if _last(method) in _STREAMS:
            self._streams.inc()

    def on_call_ended(self, method: str, code: str, seconds: float) -> None:
        """Count and time it."""
        labels = _call_labels(method)
        self._requests.labels(method, code).inc()
        self._handled.labels(*labels, _go_code(code)).inc()
        self._handling.labels(*labels).observe(seconds)
        if _last(method) in _STREAMS:
            self._streams.dec()
        if _last(method) in _SAMPLING:
            self._triton.note_call(code, seconds)

    def on_rejected(self, reason: str) -> None:
        """Count it."""
        self._rejected.labels(reason).inc()

    def on_queued(self, seconds: float) -> None:
        """Time it."""
        self._queue.observe(seconds)
        self._triton.queue_us.inc(1e6 * seconds)

    def on_batch(self, *, size: int, rows: int, seconds: float) -> None:
        """Count and time it."""
        self._batches.labels(size).inc()
        self._batch_rows.observe(rows)
        self._padding.inc(size - rows)
        self._compute.labels(size).observe(seconds)
        self._triton.executions.inc()
        self._triton.inferences.inc(rows)
        self._triton.compute_us.inc(1e6 * seconds)

    def on_batch_failed(self, *, size: int, rows: int) -> None:
        """Count it."""
        self._batch_failures.inc()

    def on_device(self, *, model: str, device: str, is_up: bool) -> None:
        """Count a loss; a device is there with none from its start."""
        self._losses.labels(model, device).inc(not is_up)

    def on_first_chunk(self, seconds: float) -> None:
        """Time it."""
        self._first_chunk.observe(seconds)

    def on_sent(self, *, model: str, version: int, rows: int, seconds: float) -> None:
        """Count the samples and time the sending."""
        self._samples.labels(model, version).inc(rows)
        self._send_wait.observe(seconds)

    def on_cancelled(self, stage: str) -> None:
        """Count it."""
        self._cancelled.labels(stage).inc()

    def on_expired(self) -> None:
        """Count it."""
        self._expired.inc()

    def on_loaded(self, *, model: str, version: int, seconds: float) -> None:
        """Count it."""
        self._loads.labels(model, "loaded").inc()

    def on_load_failed(self, *, model: str, version: int) -> None:
        """Count it."""
        self._loads.labels(model, "failed").inc()

    def now(self) -> Iterator[Metric]:
        """Return the gauges."""
        draining = self._draining()
        schedulers = [model.scheduler for model in (*self._models, *draining)]
        ready, samples = float(self._is_ready()), sum(scheduler.queue_samples for scheduler in schedulers)
        held = sum(scheduler.queue_bytes for scheduler in schedulers)
        jobs = sum(scheduler.num_jobs for scheduler in schedulers)
        yield GaugeMetricFamily("kaem_ready", "1 while calls are let in.", ready)
        yield GaugeMetricFamily("kaem_queue_samples", "Samples that could go into a batch now.", samples)
        yield GaugeMetricFamily("kaem_queue_bytes", "Bytes set aside for running requests.", held)
        yield GaugeMetricFamily("nv_inference_pending_request_count", "Requests of samples that are running.", jobs)
        yield GaugeMetricFamily("kaem_models_draining", "Old models that have requests to complete.", len(draining))
        labels = ("model", "version", "digest", "provider", "numerics_id")
        info = GaugeMetricFamily("kaem_model_info", "What is served; always 1.", labels=labels)
        for model in self._models:
            told = model.info
            digest = model.manifest.graph_fingerprint
            info.add_metric((told.name, str(told.version), digest, told.provider, told.numerics_id), 1.0)
        yield info
        seat = ("model", "version", "device")
        up = GaugeMetricFamily("kaem_device_up", "1 while a device's process computes.", labels=seat)
        for model in self._models:
            for device, is_up in model.device_pool.states.items() if model.device_pool is not None else ():
                up.add_metric((model.info.name, str(model.info.version), device), float(is_up))
        yield up

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(name, meaning, labels, registry=self.registry)

    def _seconds(self, name: str, meaning: str, *labels: str) -> Histogram:
        return Histogram(name, meaning, labels, buckets=_SECONDS, registry=self.registry)


class _Now(Collector):
    """Asks for the gauges when Prometheus does."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics.now()

    def describe(self) -> Iterable[Metric]:
        return ()


class _TritonFigures(Collector):
    """Counters under Triton's names, which do not end in _total as our library would have them."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.success = self._counter("nv_inference_request_success", "Requests of samples answered.")
        self.failure = self._counter("nv_inference_request_failure", "Requests of samples that failed.", "reason")
        self.inferences = self._counter("nv_inference_count", "Rows computed that somebody wanted.")
        self.executions = self._counter("nv_inference_exec_count", "Batches computed.")
        self.request_us = self._counter("nv_inference_request_duration_us", "Whole time of the requests.")
        self.queue_us = self._counter("nv_inference_queue_duration_us", "Their time until the first batch.")
        self.compute_us = self._counter("nv_inference_compute_infer_duration_us", "The engine's time of the batches.")

    def note_call(self, code: str, seconds: float) -> None:
        """Count and time a call."""
        if code == "OK":
            self.success.inc()
            self.request_us.inc(1e6 * seconds)
        else:
            self.failure.labels(_TRITON_REASONS.get(code, "OTHER")).inc()

    def collect(self) -> Iterable[Metric]:
        return self._registry.collect()

    def describe(self) -> Iterable[Metric]:
        return ()

    def _counter(self, name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(name, meaning, labels, registry=self._registry)


def _last(method: str) -> str:
    return method.rpartition("/")[2]


def _call_labels(method: str) -> tuple[str, str, str]:
    _, service, name = method.split("/")
    return _TYPES.get(name, "unary"), service, name


def _go_code(code: str) -> str:
    return _CODES.get(code) or "".join(word.capitalize() for word in code.split("_"))
