"""Metrics, probes, traces and logs of real servers under real load, against what was sent."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import re
import ssl
import subprocess
import sys
import time
import urllib.error
from concurrent import futures
from contextlib import closing, contextmanager
from pathlib import Path

import grpc
import pytest
from certificates import Pair
from live_server import LAUNCH, PARTIAL, Backend, LiveServer, free_port, server_of, stub_of
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from scraping import Scrape, get

from kaem.errors import ConfigError
from kaem.protocol import kaem_pb2, kaem_pb2_grpc
from serve.monitoring.logs import JsonLines, TextLines
from serve.monitoring.tracing import Tracing, goes_straight
from serve.settings import ServeSettings

ROOT = Path(__file__).parents[2]
SECTION_4 = """
kaem_requests_total{method,code} kaem_samples_total{model,version} kaem_batches_total{bucket} kaem_batch_rows
kaem_padding_rows_total kaem_queue_samples kaem_queue_bytes kaem_inflight_streams kaem_queue_seconds
kaem_compute_seconds{bucket} kaem_send_wait_seconds kaem_first_chunk_seconds kaem_rejected_total{reason}
kaem_cancelled_total{stage} kaem_model_info{digest,provider,numerics_id} kaem_ready
grpc_server_started_total grpc_server_handled_total{grpc_code} grpc_server_handling_seconds
nv_inference_request_success nv_inference_request_failure{reason} nv_inference_count nv_inference_exec_count
nv_inference_pending_request_count nv_inference_request_duration_us nv_inference_queue_duration_us
nv_inference_compute_infer_duration_us
"""  # what dashboards and alerts are written against
SAMPLER = "/kaem.v1.Sampler"


@contextmanager
def monitored(**settings):
    with LiveServer(Backend(), http_port=0, **settings) as live, stub_of(live.address) as stub:
        yield live, stub


async def _until(is_true):
    async with asyncio.timeout(20):
        while not is_true():
            await asyncio.sleep(0.005)


@pytest.fixture(scope="module")
def after_load():
    """A server that has answered a known load, that load, and the figures then."""
    ask = kaem_pb2.SampleRequest
    with monitored(max_batch=64) as (live, stub):
        with futures.ThreadPoolExecutor(8) as pool:
            streams = [
                pool.submit(lambda n=n: sum(c.count for c in stub.StreamSamples(ask(count=n), timeout=30)))
                for n in (1, 70, 1000, 20_000, 333)
            ]
            unary = [pool.submit(lambda n=n: stub.Sample(ask(count=n), timeout=30).count) for n in (5, 17, 64)]
            received = sum(call.result() for call in (*streams, *unary))
        for request, timeout in ((ask(count=3, model="none"), 30), (ask(count=0), 30), (ask(count=10**9), 0.3)):
            with pytest.raises(grpc.RpcError):
                list(stub.StreamSamples(request, timeout=timeout))
        endless = stub.StreamSamples(ask(count=10**9, max_chunk_rows=8), timeout=60, metadata=PARTIAL)
        received_of_endless = next(endless).count
        ended = live.server.observer.ended  # which is told before the metrics are, in the same breath
        live.run(_until(lambda: len(ended) == 11))
        during = Scrape(live.server.http_address)
        endless.cancel()
        live.run(_until(lambda: len(ended) == 12 and not live.scheduler.num_jobs))
        yield live, received, received_of_endless, during, Scrape(live.server.http_address)


def test_samples_counted_are_the_samples_received(after_load):
    live, received, endless, _, scrape = after_load
    sent = sum(rows for _, rows in live.server.observer.sent)
    assert scrape("kaem_samples_total", model="fake") == sent
    assert received + endless <= sent  # a cancelled stream had more on its way
    whole = sum(1 for name, code in live.server.observer.ended if code == "OK" and name.startswith(SAMPLER))
    assert scrape("kaem_requests_total", code="OK") == whole == 8


def test_a_server_whose_calls_all_completed_has_counted_each_sample_exactly_once():
    with monitored() as (live, stub):
        received = 0
        for count in (1, 10, 5000):
            received += sum(
                chunk.count for chunk in stub.StreamSamples(kaem_pb2.SampleRequest(count=count), timeout=30)
            )
        live.run(_until(lambda: not live.server.gate.num_inside))
        scrape = Scrape(live.server.http_address)
        assert scrape("kaem_samples_total") == received == 5011
        assert scrape("kaem_batch_rows_sum") == scrape("nv_inference_count") == received
        assert scrape("kaem_padding_rows_total") == live.backend.rows - received - _rows_of_warm_up(live)
        assert scrape("kaem_queue_seconds_count") == scrape("kaem_first_chunk_seconds_count") == 3
        assert scrape("kaem_first_chunk_seconds_sum") >= scrape("kaem_queue_seconds_sum") > 0


def _rows_of_warm_up(live):
    scraped = Scrape(live.server.http_address)
    computed = sum(
        int(sample.labels["bucket"]) * sample.value for sample in scraped.samples if sample.name == "kaem_batches_total"
    )
    return live.backend.rows - computed


def test_calls_are_counted_by_method_and_status(after_load):
    *_, scrape = after_load
    stream, unary = f"{SAMPLER}/StreamSamples", f"{SAMPLER}/Sample"
    assert scrape("kaem_requests_total", method=stream, code="OK") == 5
    assert scrape("kaem_requests_total", method=unary, code="OK") == 3
    assert scrape("kaem_requests_total", method=stream, code="NOT_FOUND") == 1
    assert scrape("kaem_requests_total", method=stream, code="INVALID_ARGUMENT") == 1
    assert scrape("kaem_requests_total", method=stream, code="RESOURCE_EXHAUSTED") == 1
    assert scrape("kaem_requests_total", method=stream, code="CANCELLED") == 1
    labels = {"grpc_service": "kaem.v1.Sampler", "grpc_method": "StreamSamples", "grpc_type": "server_stream"}
    assert scrape("grpc_server_started_total", **labels) == 9
    for code, number in {"OK": 5, "NotFound": 1, "InvalidArgument": 1, "ResourceExhausted": 1, "Canceled": 1}.items():
        assert scrape("grpc_server_handled_total", **labels, grpc_code=code) == number
    assert scrape("grpc_server_handling_seconds_count", **labels) == 9
    assert scrape("nv_inference_request_success") == 8
    assert scrape("nv_inference_request_failure") == 4
    assert scrape("nv_inference_request_failure", reason="REJECTED") == 1


def test_a_request_refused_for_its_deadline_and_one_left_are_told_apart(after_load):
    *_, scrape = after_load
    assert scrape("kaem_rejected_total", reason="deadline") == scrape("kaem_rejected_total") == 1
    assert scrape("kaem_cancelled_total") == 1


def test_gauges_rise_with_what_runs_and_fall_to_zero_after_it(after_load):
    *_, during, scrape = after_load
    assert during("kaem_inflight_streams") == during("nv_inference_pending_request_count") == 1
    assert during("kaem_queue_bytes") > 0
    for name in (
        "kaem_inflight_streams",
        "kaem_queue_bytes",
        "kaem_queue_samples",
        "nv_inference_pending_request_count",
    ):
        assert scrape(name) == 0, name
    assert scrape("kaem_ready") == 1


def test_computed_rows_are_wanted_rows_and_padding(after_load):
    live, *_, scrape = after_load
    batches = [sample for sample in scrape.samples if sample.name == "kaem_batches_total"]
    computed = sum(int(sample.labels["bucket"]) * sample.value for sample in batches)
    assert computed == scrape("kaem_batch_rows_sum") + scrape("kaem_padding_rows_total")
    number = sum(sample.value for sample in batches)
    assert number == scrape("kaem_batch_rows_count") == scrape("kaem_compute_seconds_count")
    assert {int(sample.labels["bucket"]) for sample in batches} <= set(live.scheduler.costs.sizes)


def test_the_model_is_named_with_what_its_bits_depend_on(after_load):
    live, *_, scrape = after_load
    [info] = [sample for sample in scrape.samples if sample.name == "kaem_model_info"]
    assert (info.value, info.labels["provider"]) == (1, "cpu")
    assert info.labels["numerics_id"] == live.backend.numerics_id


def test_every_promised_metric_has_its_name_and_labels(after_load):
    live, *_, scrape = after_load
    _, text = get(f"{live.server.http_address}/metrics")
    described = set(re.findall(r"^# TYPE (\S+)", text, flags=re.MULTILINE))
    for word in SECTION_4.split():
        name, _, labels = word.partition("{")
        assert name in described, name
        for sample in scrape.samples:
            if sample.name in (name, f"{name}_count"):
                assert set(labels.rstrip("}").split(",")) - {""} <= set(sample.labels), word


def test_devices_that_are_lost_are_counted():
    with monitored() as (live, _):
        for is_up in (True, False, True, False):
            live.server._watchers.on_device(model="fake", device="cuda:0", is_up=is_up)
        live.server._watchers.on_device(model="fake", device="cuda:1", is_up=True)
        scrape = Scrape(live.server.http_address)
    assert [scrape("kaem_device_losses_total", model="fake", device=f"cuda:{at}") for at in range(2)] == [2, 0]


def test_every_metric_of_the_dashboard_exists(after_load):
    live, *_ = after_load
    _, text = get(f"{live.server.http_address}/metrics")
    described = set(re.findall(r"^# TYPE (\S+)", text, flags=re.MULTILINE))
    board = json.loads((ROOT / "deploy" / "grafana" / "kaem-server.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    names = set(re.findall(r"\b((?:kaem|grpc|process|nv)_\w+)\{", " ".join(expressions)))
    assert len(expressions) > 15
    assert len(names) > 15
    for name in names:
        assert name in described or re.sub(r"_(bucket|sum|count)$", "", name) in described, name


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text; version=abc",
        "application/openmetrics-text; version=1.0.0.0.0; escaping=",
        "application/openmetrics-text; version=99.0; escaping=nonsense",
        "application/openmetrics-text;version",
        "text/plain; version=x.y",
        "text/plain; version=\u00b2.0.0",
        "; , ;,,",
        "\u00ff",
        "x" * 5000,
        "application/openmetrics-text; version=" + "9" * 5000,
    ],
)
def test_metrics_are_answered_whatever_format_is_asked_for(accept):
    with monitored() as (live, _):
        connection = http.client.HTTPConnection(live.server.http_address.removeprefix("http://"), timeout=20)
        with closing(connection):
            connection.request("GET", "/metrics", headers={"accept": accept})
            answer = connection.getresponse()
            assert answer.status == 200
            assert b"kaem_ready 1.0" in answer.read()


def test_a_share_of_the_dashboard_is_zero_and_not_absent_while_nothing_has_failed():
    board = json.loads((ROOT / "deploy" / "grafana" / "kaem-server.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    [share] = [text for text in expressions if "grpc_code=~" in text]
    numerator, _, denominator = share.partition(" / ")
    assert re.fullmatch(r"\(sum\(.*\) or vector\(0\)\)", numerator)
    assert "grpc_code" not in denominator


def test_clients_that_leave_are_no_errors_of_the_log(caplog):
    """An answer that nobody takes any more, whether it is a chunk, a status, or the whole of a unary call."""
    with LiveServer(Backend()) as live:
        for number in range(120):
            with stub_of(live.address) as stub:
                request = kaem_pb2.SampleRequest(count=1000 * (number % 4) or 1)
                calls = [stub.Sample.future(request, timeout=0.001 * (number % 6) + 0.001) for _ in range(6)]
                time.sleep(0.001 * (number % 7))
                for call in calls:
                    call.cancel()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_lines_for_people_show_what_a_terminal_would_obey():
    record = logging.LogRecord("x", logging.INFO, "x.py", 1, "a %s", ("\x1b[31m\nb\u202e\udcff é",), None)
    assert TextLines("%(message)s").format(record) == r"a \x1b[31m\nb\u202e\udcff é"


def test_probes_follow_the_life_of_the_server():
    backend = Backend()
    with monitored(grace=20) as (live, stub):
        backend = live.backend
        url = live.server.http_address
        assert get(f"{url}/healthz") == (200, "ok\n")
        assert get(f"{url}/readyz") == (200, "ok\n")
        assert get(f"{url}/other")[0] == 404
        backend.may_run.clear()
        running = stub.Sample.future(kaem_pb2.SampleRequest(count=3), timeout=20)
        live.run(_until(lambda: live.server.gate.num_inside))
        draining = live.start(live.server.drain())
        live.run(_until(lambda: live.server.gate.closed_because))
        assert get(f"{url}/readyz") == (503, "the server is shutting down\n")
        assert get(f"{url}/healthz") == (200, "ok\n")
        assert "kaem_ready 0.0" in get(f"{url}/metrics")[1]
        backend.may_run.set()
        assert running.result().count == 3
        draining.result(timeout=20)
        with pytest.raises(urllib.error.URLError):
            get(f"{url}/healthz")


def test_a_server_that_warms_up_is_alive_but_not_ready():
    port = free_port()
    backend = Backend()
    backend.may_run.clear()
    with futures.ThreadPoolExecutor(1) as pool:
        starting = pool.submit(lambda: LiveServer(backend, http_port=port))
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 20
        while True:
            try:
                assert get(f"{url}/healthz") == (200, "ok\n")
                break
            except urllib.error.URLError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        assert get(f"{url}/readyz") == (503, "the server is loading its model\n")
        backend.may_run.set()
        with starting.result(timeout=30):
            assert get(f"{url}/readyz") == (200, "ok\n")


def test_http_is_off_unless_a_port_is_named_and_its_extra_is_not_needed_then(artifact_path):
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('prometheus_client', 'starlette', 'uvicorn', 'opentelemetry'):\n"
        "            raise ModuleNotFoundError(f'No module named {name}', name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "from cli.main import main\n"
        "sys.argv = ['kaem', 'serve', *sys.argv[1:]]\n"
        "main()"
    )

    def serve(*options):
        words = [sys.executable, "-c", code, str(artifact_path), "--port", "0", *options]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    running = [serve(), serve("--http-port", "0"), serve("--traces")]
    address = running[0].stdout.readline()
    assert address.startswith("grpc://127.0.0.1:")
    for process, extra in ((running[1], "kaem[http]"), (running[2], "kaem[telemetry]")):
        _, log = process.communicate(timeout=60)
        assert process.returncode == 2
        assert f"pip install '{extra}'" in log
    running[0].terminate()
    running[0].communicate(timeout=60)


def test_an_http_address_that_cannot_be_used_stops_the_start_in_words():
    with pytest.raises(ConfigError, match="reachable by other machines"):
        LiveServer(Backend(), http_host="0.0.0.0", http_port=0)
    with LiveServer(Backend(), http_port=0) as live:
        port = int(live.server.http_address.rpartition(":")[2])
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is in use") as caught:
            LiveServer(Backend(), http_port=port)
        assert "--http-port" in caught.value.hint


@pytest.mark.parametrize(
    "settings", [{"http_port": -1}, {"http_port": 65536}, {"http_host": ""}, {"log_format": "xml"}, {"log_format": ""}]
)
def test_a_setting_of_telemetry_out_of_range_is_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        ServeSettings(**settings)


def test_http_has_the_certificate_of_the_server_renews_it_and_asks_probes_for_none(tmp_path):
    first, second = Pair("first"), Pair("second")
    Pair("server", issuer=first, hosts=("127.0.0.1",)).write(tmp_path, "server")
    first.write(tmp_path, "first")
    files = {"certificate_file": "server.crt", "key_file": "server.key", "client_ca_file": "first.crt"}

    def trusting(authority):
        return ssl.create_default_context(cadata=authority.certificate_pem.decode())

    with LiveServer(Backend(), http_port=0, **{key: str(tmp_path / name) for key, name in files.items()}) as live:
        url = live.server.http_address
        assert url.startswith("https://")
        assert get(f"{url}/readyz", trusting(first)) == (200, "ok\n")
        Pair("server", issuer=second, hosts=("127.0.0.1",)).write(tmp_path, "server")
        assert get(f"{url}/readyz", trusting(second)) == (200, "ok\n")
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            get(f"{url}/readyz", trusting(first))


class TracedServer(LiveServer):
    """Its spans are kept in `spans`."""

    async def _make(self, backend, settings):
        self.spans = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.spans))
        return server_of(backend, settings, Tracing(provider))

    def finished(self):
        self.run(_until(lambda: not self.server.gate.num_inside))
        return self.spans.get_finished_spans()


TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)


def test_a_call_continues_the_trace_of_its_client_and_says_where_its_time_went():
    backend = Backend()
    with TracedServer(backend) as live, stub_of(live.address) as stub:
        backend.may_run.clear()
        blocking = stub.Sample.future(kaem_pb2.SampleRequest(count=1), timeout=20)
        live.run(_until(lambda: live.server.gate.num_inside and not live.scheduler.queue_samples))
        call = stub.StreamSamples(kaem_pb2.SampleRequest(count=5000), timeout=20, metadata=TRACEPARENT)
        live.run(_until(lambda: live.scheduler.queue_samples))
        time.sleep(0.1)  # what the queue span must show
        backend.may_run.set()
        assert sum(chunk.count for chunk in call) == 5000
        assert blocking.result().count == 1
        spans = [span for span in live.finished() if f"{span.context.trace_id:032x}" == TRACE]
    named = {span.name: span for span in spans}
    root = named["kaem.v1.Sampler/StreamSamples"]
    assert sorted(named) == ["compute", "kaem.v1.Sampler/StreamSamples", "queue", "send"]
    assert f"{root.parent.span_id:016x}" == PARENT
    assert root.kind.name == "SERVER"
    assert root.attributes["kaem.samples"] == 5000
    assert root.attributes["rpc.method"] == "StreamSamples"
    queue, compute, send = (named[name] for name in ("queue", "compute", "send"))
    assert {span.parent.span_id for span in (queue, compute, send)} == {root.context.span_id}
    assert root.start_time <= queue.start_time
    assert queue.end_time == compute.start_time
    assert abs(compute.end_time - send.start_time) < 1e6
    assert send.end_time == root.end_time
    assert queue.end_time - queue.start_time > 0.09e9


def test_failed_calls_have_spans_too_and_health_has_none():
    with TracedServer(Backend()) as live, stub_of(live.address) as stub:
        live.backend.error = RuntimeError("broken")
        with pytest.raises(grpc.RpcError):
            stub.Sample(kaem_pb2.SampleRequest(count=1), timeout=10)
        with pytest.raises(grpc.RpcError):
            stub.Sample(kaem_pb2.SampleRequest(count=1, model="none"), timeout=10)
        roots = {
            span.attributes["rpc.response.status_code"]: span
            for span in live.finished()
            if span.name.startswith("kaem.v1")
        }
        assert roots["INTERNAL"].status.status_code.name == "ERROR"
        assert roots["NOT_FOUND"].status.status_code.name == "UNSET"  # the client's mistake, not ours


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self):
        self.requests = []

    def Export(self, request, context):  # noqa: N802
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_traces_reach_a_collector_and_a_server_that_stops_sends_its_last_ones(monkeypatch, host):
    for variable in ("grpc_proxy", "https_proxy", "http_proxy"):  # nothing on this machine is reached through one
        monkeypatch.setenv(variable, "http://127.0.0.1:1")
    for variable in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(variable, raising=False)
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{host}:{port}")
    straight = [("grpc.enable_http_proxy", 0)]
    with LiveServer(Backend(), traces=True) as live, grpc.insecure_channel(live.address, straight) as channel:
        stub = kaem_pb2_grpc.SamplerStub(channel)
        stub.Sample(kaem_pb2.SampleRequest(count=4), timeout=10, metadata=TRACEPARENT)
    resources = [resource for request in collector.requests for resource in request.resource_spans]
    server.stop(0).wait()
    spans = [span for resource in resources for scope in resource.scope_spans for span in scope.spans]
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    assert {span.name for span in spans} == {"kaem.v1.Sampler/Sample", "queue", "compute", "send"}
    names = {entry.key: entry.value.string_value for entry in resources[0].resource.attributes}
    assert names["service.name"] == "kaem"


@pytest.mark.parametrize(
    ("endpoint", "is_straight"),
    [
        ("http://localhost:4317", True),
        ("localhost:4317", True),
        ("http://[::1]:4317", True),
        ("https://127.8.0.1", True),
        ("http://collector.example:4317", False),
        ("collector.example:4317", False),
        ("http://inside.example:4317", True),  # which no_proxy names
    ],
)
def test_a_proxy_of_the_environment_is_for_collectors_elsewhere(monkeypatch, endpoint, is_straight):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "inside.example")
    monkeypatch.delenv("no_grpc_proxy", raising=False)
    assert goes_straight(endpoint) == is_straight


def test_json_logs_are_objects_with_the_request_the_client_was_told(artifact_path, tmp_path):
    token = "alice-" + "a" * 26
    (tmp_path / "tokens").write_text(f"alice {token}\n")
    options = ["--port", "0", "--log-format", "json", "--log-calls", "--token-file", str(tmp_path / "tokens")]
    words = [*LAUNCH, str(artifact_path), *options]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    target = process.stdout.readline().strip().removeprefix("grpc://")
    metadata = (("authorization", f"Bearer {token}"),)
    with stub_of(target) as stub:
        assert stub.Sample(kaem_pb2.SampleRequest(count=4), timeout=20, metadata=metadata).count == 4
        with pytest.raises(grpc.RpcError) as caught:
            stub.Sample(kaem_pb2.SampleRequest(count=4, model="none"), timeout=20, metadata=metadata)
    told = {entry.key: entry.value for entry in caught.value.trailing_metadata()}
    process.terminate()
    _, log = process.communicate(timeout=60)
    entries = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    calls = {entry["code"]: entry for entry in entries if "code" in entry}
    assert calls["NOT_FOUND"]["request_id"] == told["kaem-request-id"]
    assert (calls["OK"]["samples"], calls["OK"]["caller"], calls["OK"]["method"]) == (4, "alice", f"{SAMPLER}/Sample")
    assert {"time", "level", "logger", "message"} <= set(entries[0])
    assert token not in log


def test_a_line_of_json_stays_one_line_whatever_the_message_holds():
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, 'odd "%s"', ("a\nb",), sys.exc_info())
    line = JsonLines().format(record)
    assert "\n" not in line
    entry = json.loads(line)
    assert entry["message"] == 'odd "a\nb"'
    assert "ValueError: two\nlines" in entry["error"]
