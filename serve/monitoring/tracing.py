"""OpenTelemetry traces: a span for every call, in the trace that its W3C `traceparent` names, and three below it.

`queue` lasts from being let in until the first row is in a batch, `compute` until the first chunk is made, `send` until
the call ends: together they are the call, so whichever is long is where its time went. A stream goes on computing
while it sends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
import urllib.parse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import kaem
from kaem.client.addresses import Target
from serve.calls.call_context import Call, current
from serve.events import Observer

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider as SdkProvider

_SHUT_DOWN_S = 1.0  # a collector that does not answer would be waited for half a minute
_ENDPOINT = "http://localhost:4317"  # where OpenTelemetry sends unless it is told otherwise
_UNTRACED = ("grpc.health.", "grpc.reflection.")
_OURS = ("UNKNOWN", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNIMPLEMENTED", "DEADLINE_EXCEEDED")  # errors of servers


@dataclass(slots=True, eq=False)
class _Trace:
    span: Span
    admitted_ns: int | None = None  # of a job that has no chunk yet
    sending: Span | None = None


class Tracing(Observer):
    """Records a trace of every call but those of health and reflection.

    Args:
        provider: Where spans go.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("kaem.serve", kaem.__version__)
        self._propagator = TraceContextTextMapPropagator()
        self._traces: dict[Call, _Trace] = {}

    def on_call_started(self, method: str) -> None:
        """Begin the span of a call."""
        call = current.get()
        service, _, name = method.removeprefix("/").partition("/")
        if call is None or service.startswith(_UNTRACED):
            return
        carrier = {key: value for key, value in call.metadata.items() if isinstance(value, str)}
        span = self._tracer.start_span(
            f"{service}/{name}",
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes={
                "rpc.system": "http" if service == "http" else "grpc",
                "rpc.service": service,
                "rpc.method": name,
                "kaem.request_id": call.request_id,
            },
        )
        call.trace_id = f"{span.get_span_context().trace_id:032x}"
        self._traces[call] = _Trace(span)

    def on_admitted(self, *, is_bulk: bool, rows: int) -> None:
        """Note when a job was let in."""
        trace = self._trace()
        if trace is not None:
            trace.admitted_ns = time.time_ns()

    def on_first_chunk(self, seconds: float) -> None:
        """End `queue` and `compute`, begin `send`."""
        call, trace = current.get(), self._trace()
        if call is None or trace is None:
            return
        now = time.time_ns()
        self._end_waiting(call, trace, now)
        self._end_sending(call, trace, now)
        trace.sending = self._tracer.start_span("send", context=set_span_in_context(trace.span), start_time=now)

    def on_call_ended(self, method: str, code: str, seconds: float) -> None:
        """End the span of a call, and whatever is open below it."""
        call, trace = current.get(), self._trace()
        if call is None or trace is None:
            return
        del self._traces[call]
        now = time.time_ns()
        self._end_waiting(call, trace, now)
        self._end_sending(call, trace, now)
        trace.span.set_attribute("rpc.response.status_code", code)
        trace.span.set_attribute("kaem.samples", call.rows_sent)
        if call.caller is not None:
            trace.span.set_attribute("kaem.caller", call.caller.name)
        if code in _OURS:
            trace.span.set_status(Status(StatusCode.ERROR, code))
        trace.span.end(now)

    def _trace(self) -> _Trace | None:
        call = current.get()
        return None if call is None else self._traces.get(call)

    def _end_waiting(self, call: Call, trace: _Trace, now: int) -> None:
        """Record the time a job has spent until its first chunk, or until it was left before that."""
        if trace.admitted_ns is None:
            return
        admitted, trace.admitted_ns = trace.admitted_ns, None
        was_computed = call.queued_s is not None
        planned = min(now, admitted + round(1e9 * call.queued_s)) if call.queued_s is not None else now
        self._record(trace, "queue", admitted, planned)
        if was_computed:
            self._record(trace, "compute", planned, now)
        call.queued_s = None

    def _record(self, trace: _Trace, name: str, start: int, end: int) -> None:
        self._tracer.start_span(name, context=set_span_in_context(trace.span), start_time=start).end(end)

    def _end_sending(self, call: Call, trace: _Trace, now: int) -> None:
        if trace.sending is not None:
            trace.sending.set_attribute("kaem.samples", call.rows_sent)
            trace.sending.end(now)
            trace.sending = None


def open_provider() -> SdkProvider:
    """Return a provider that sends spans over OTLP to where the standard OTEL_* environment variables say."""
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider as SdkProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    where = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    options: Any = (("grpc.enable_http_proxy", 0),) if goes_straight(where or _ENDPOINT) else None
    named = Resource({SERVICE_NAME: "kaem"}).merge(OTELResourceDetector().detect())  # OTEL_SERVICE_NAME wins
    provider = SdkProvider(resource=named, shutdown_on_exit=False)  # it is shut down once, and not waited for again
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(channel_options=options)))
    return provider


def goes_straight(endpoint: str) -> bool:
    """Return whether a collector is reached without a proxy: one on this machine always, whatever the environment says.

    Args:
        endpoint: `http://host:port`, with or without its scheme.
    """
    host = urllib.parse.urlsplit(endpoint if "//" in endpoint else f"//{endpoint}").hostname or ""
    return Target(f"{host}:0").proxy_variable is None


async def shut_down(provider: SdkProvider) -> None:
    """Send what a provider still has, if its collector takes it in a moment; what is left after that is lost."""
    is_done, loop = asyncio.Event(), asyncio.get_running_loop()

    def work() -> None:
        provider.shutdown()
        with contextlib.suppress(RuntimeError):  # nobody waits any more
            loop.call_soon_threadsafe(is_done.set)

    # Neither the loop's executor nor a thread that is joined at the end of the process: it may hang.
    threading.Thread(target=work, name="kaem-traces", daemon=True).start()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_SHUT_DOWN_S):
            await is_done.wait()
