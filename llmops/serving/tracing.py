"""OpenTelemetry traces of requests: a span for each, one inside it for the engine's part, sent over OTLP.

Off unless the profile has `tracing`; OpenTelemetry is imported only then. Attribute names are those of
OpenTelemetry's conventions for generative AI where they have one. Prompts and answers are never in a span.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from llmops import __version__
from llmops.errors import ConfigError
from llmops.serving.http import Scope, header
from llmops.serving.profile import Tracing
from llmops.serving.request_log import Entry

EXPORTER = "opentelemetry.exporter.otlp.proto.http"
OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
NOTED = {
    "model": "gen_ai.request.model",
    "n_prompt_tokens": "gen_ai.usage.input_tokens",
    "n_completion_tokens": "gen_ai.usage.output_tokens",
    "status": "http.response.status_code",
    "request_id": "llmops.request_id",
    "answered_by": "llmops.adapter",
    "arm": "llmops.arm",
    "lineage": "llmops.lineage",
    "tenant": "llmops.tenant",
    "queue_ms": "llmops.queue_ms",
    "ttft_ms": "llmops.ttft_ms",
}
"""Attributes of a request's span, by the field of the log's entry they are taken from."""


class Tracer:
    """Makes spans and sends them from a thread of its own; what cannot be sent is dropped."""

    def __init__(self, settings: Tracing) -> None:
        """Prepare the exporter.

        Raises:
            ConfigError: OpenTelemetry is not installed.
        """
        if find_spec("opentelemetry") is None or find_spec(EXPORTER) is None:
            raise ConfigError("profile: tracing needs OpenTelemetry; pip install 'llmops[otel]'")
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.sample_frac)),
            resource=Resource.create({"service.name": "llmops", "service.version": __version__}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(settings.endpoint)))
        self._tracer = self._provider.get_tracer("llmops.serving")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, scope: Scope) -> Span:
        """The span of a request, inside the client's own where it sent a traceparent."""
        given = {name: header(scope, name.encode()) for name in ("traceparent", "tracestate")}
        carrier = {name: value.decode("latin-1") for name, value in given.items() if value is not None}
        return Span(self._tracer, self._propagator, scope["path"], self._propagator.extract(carrier))

    def close(self) -> None:
        """Send what waits; blocks for as long as the collector takes, at most a few seconds."""
        self._provider.force_flush(2000)
        self._provider.shutdown()


class Span:
    """One request's span, and inside it the engine's part."""

    def __init__(self, tracer: Any, propagator: Any, path: str, parent: Any) -> None:
        """Begin now."""
        from opentelemetry.trace import SpanKind

        self._tracer, self._propagator = tracer, propagator
        self._operation = OPERATIONS.get(path, path)
        self._span = tracer.start_span(self._operation, parent, SpanKind.SERVER)
        self._engine: Any = None

    def asked(self) -> dict[str, str]:
        """Begin the engine's part; returns the headers that make the engine's own spans part of it."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        if self._engine is not None:  # asked again after a lost connection
            self._engine.end()
        self._engine = self._tracer.start_span("engine", set_span_in_context(self._span), SpanKind.CLIENT)
        headers: dict[str, str] = {}
        self._propagator.inject(headers, set_span_in_context(self._engine))
        return headers

    def end(self, entry: Entry) -> None:
        """End both with what the log says of the request."""
        from opentelemetry.trace import StatusCode

        span = self._span
        if self._engine is not None:
            self._engine.end()
        if span.is_recording():
            span.update_name(f"{self._operation} {entry.model}" if entry.known else self._operation)
            span.set_attribute("gen_ai.operation.name", self._operation)
            for name, attribute in NOTED.items():
                if (value := getattr(entry, name)) is not None:
                    span.set_attribute(attribute, value)
            if entry.error is not None:
                span.set_attribute("error.type", str(entry.status))
                span.set_status(StatusCode.ERROR, entry.error)
        span.end()
