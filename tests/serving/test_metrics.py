"""What /metrics says, read by Prometheus' own parser, and traces as a collector gets them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.serving.bare import Bare, bare_gateway, target
from tests.serving.gateway import wait_for

ROOT = Path(__file__).parents[2]
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(bare: Bare) -> Samples:
    text = httpx.get(f"{bare.url}/metrics").text
    found = text_string_to_metric_families(text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in found for s in f.samples}


def one(found: Samples, name: str, **labels: str) -> float:
    """The sum of a metric over all series that have these labels."""
    return sum(v for (n, own), v in found.items() if n == name and labels.items() <= dict(own).items())


def test_stream_is_counted_by_name_and_adapter(tmp_path: Path) -> None:
    with bare_gateway(tmp_path) as bare:
        bare.engine.chunk_s = 0.03  # so that every piece comes alone
        bare.chat(stream=True)
        found = samples(bare)
        mine = {"model": "docs", "adapter": target("docs").digest[:12]}
        assert one(found, "llmops_requests_total", status="200", **mine) == 1
        assert one(found, "llmops_ttft_seconds_count", **mine) == 1
        assert one(found, "llmops_inter_token_seconds_count", **mine) == 2  # usage comes with the last word
        assert 0.05 < one(found, "llmops_inter_token_seconds_sum", **mine) < 5
        assert one(found, "llmops_inter_token_seconds_bucket", le="0.02", **mine) == 0
        assert one(found, "llmops_duration_seconds_count", **mine) == 1
        assert one(found, "llmops_queue_seconds_bucket", le="+Inf", **mine) == 1
        assert one(found, "llmops_tokens_total", kind="prompt", **mine) == 7
        assert one(found, "llmops_tokens_total", kind="completion", **mine) == 3
        assert one(found, "llmops_request_errors_total", **mine) == 0
        assert all(own for (name, own) in found if name == "llmops_requests_total")


def test_engine_s_prefix_cache_shows_by_adapter(tmp_path: Path) -> None:
    with bare_gateway(tmp_path) as bare:

        async def reply(_request: Any, body: dict[str, Any]) -> Any:
            from aiohttp import web

            usage = {
                "prompt_tokens": 9,
                "completion_tokens": 1,
                "prompt_tokens_details": {"cached_tokens": 8},
            }
            return web.json_response({"model": body["model"], "choices": [], "usage": usage})

        bare.engine.reply = reply
        bare.chat()
        assert one(samples(bare), "llmops_tokens_total", kind="cached_prompt") == 8
        assert bare.logged()[-1]["n_cached_tokens"] == 8


def test_errors_and_clients_that_left_are_told_apart(tmp_path: Path) -> None:
    with bare_gateway(tmp_path) as bare:
        bare.chat("nobody")
        bare.engine.chunk_s = 0.5
        body = {"model": "docs", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        for n_read in (0, 1):
            with httpx.stream("POST", f"{bare.url}/v1/chat/completions", json=body, timeout=30) as answer:
                lines = answer.iter_lines()
                assert len([next(lines) for _ in range(n_read)]) == n_read
        wait_for(lambda: one(samples(bare), "llmops_cancellations_total") == 2)
        found = samples(bare)
        assert one(found, "llmops_cancellations_total", phase="first_token") == 1
        assert one(found, "llmops_cancellations_total", phase="stream") == 1
        assert one(found, "llmops_request_errors_total") == 1
        assert one(found, "llmops_requests_total", model="unknown", adapter="none", status="404") == 1


def _names_in(expression: str) -> set[str]:
    """Metrics that a PromQL expression reads."""
    return set(re.findall(r"\b(llmops_\w+)", expression))


def _shown(bare: Bare) -> set[str]:
    text = httpx.get(f"{bare.url}/metrics").text
    suffixes = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",), "gauge": ("",)}
    types = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
    return {
        name.removesuffix("_total") + suffix if kind == "counter" else name + suffix
        for name, kind in types
        for suffix in suffixes[kind]
    }


def test_dashboard_and_alerts_read_metrics_that_exist(tmp_path: Path) -> None:
    dashboard = json.loads((ROOT / "serving" / "grafana" / "llmops.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    read = [target["expr"] for panel in panels for target in panel["targets"]]
    rules = yaml.safe_load((ROOT / "serving" / "prometheus" / "alerts.yaml").read_text())
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    read += [rule["expr"] for rule in alerts]
    with bare_gateway(tmp_path) as bare:
        bare.chat()
        shown = _shown(bare)
    used = set().union(*map(_names_in, read))
    assert all(_names_in(expression) for expression in read)
    assert used <= shown, used - shown
    assert {rule["labels"]["severity"] for rule in alerts} == {"page", "ticket"}
    assert all(rule["annotations"].keys() == {"summary", "description"} for rule in alerts)


class Collector:
    """A collector of OTLP over HTTP that keeps every span."""

    def __init__(self) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        self.spans: list[Any] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                told = ExportTraceServiceRequest.FromString(self.rfile.read(length))
                spans.extend(s for r in told.resource_spans for scope in r.scope_spans for s in scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.server.shutdown()


def test_trace_runs_from_the_client_through_the_gateway_to_the_engine(
    tmp_path: Path, collector: Collector
) -> None:
    with bare_gateway(tmp_path, tracing={"endpoint": collector.url}) as bare:
        parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        bare.chat(headers={"traceparent": parent})
        handed = bare.engine.headers[-1]["traceparent"].split("-")
        bare.chat("nobody")
    server, inner, lost = sorted(collector.spans, key=lambda s: (s.status.code, s.kind != 2))
    assert [s.trace_id.hex() for s in (server, inner)] == [parent.split("-")[1]] * 2 == [handed[1]] * 2
    assert (server.parent_span_id.hex(), inner.parent_span_id) == (parent.split("-")[2], server.span_id)
    assert (handed[2], handed[3]) == (inner.span_id.hex(), "01")
    said = {a.key: a.value.string_value or a.value.int_value for a in server.attributes}
    assert server.name == "chat docs"
    assert said["llmops.adapter"] == target("docs").digest
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == (7, 3)
    assert said["http.response.status_code"] == 200
    assert "nobody" in lost.status.message
    assert not any("Hi." in str(span) for span in collector.spans)


def test_gateway_without_tracing_loads_no_opentelemetry() -> None:
    code = "import sys, llmops.serving.app; print(sorted(m for m in sys.modules if m.startswith('opentelemetry')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
