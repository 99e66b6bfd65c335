"""What Prometheus is told at ``/metrics``: names and units by its conventions (prometheus.io/docs/practices/naming)."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from asyncgen.engine import Engine
from asyncgen.records import Completion
from asyncgen.server.answers import prompt_tokens

__all__ = ["Meters"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TOKEN_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Meters:
    """What one server counts, and beside it what its engine does."""

    def __init__(self, engine: Engine) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(_EngineCollector(engine))
        self._http = Counter(
            "asyncgen_http_requests", "Requests that were answered", ("path", "status"), registry=registry
        )
        self._http_seconds = Histogram(
            "asyncgen_http_request_duration_seconds",
            "From a request's head to the end of its answer",
            ("path",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._stories = Counter(
            "asyncgen_stories", "Stories that were answered whole", ("finish_reason",), registry=registry
        )
        self._prompt_tokens = Counter("asyncgen_prompt_tokens", "Tokens of their prompts", registry=registry)
        self._tokens = Counter("asyncgen_tokens", "Tokens of the stories", registry=registry)
        self._first = Histogram(
            "asyncgen_first_token_seconds",
            "From a question to the first piece of a stream",
            buckets=_SECONDS,
            registry=registry,
        )
        self._queue = Histogram(
            "asyncgen_queue_seconds", "Time a story waited for the model", buckets=_SECONDS, registry=registry
        )
        self._generation = Histogram(
            "asyncgen_generation_seconds", "Time the model took for a story", buckets=_SECONDS, registry=registry
        )
        self._token_seconds = Histogram(
            "asyncgen_token_seconds", "The same for each of its tokens", buckets=_TOKEN_SECONDS, registry=registry
        )

    def began(self, seconds: float) -> None:
        """A stream has its first piece ``seconds`` after the question."""
        self._first.observe(seconds)

    def answered(self, completion: Completion) -> None:
        """A story was answered whole."""
        self._stories.labels(completion.finish_reason).inc()
        self._prompt_tokens.inc(prompt_tokens(completion))
        self._tokens.inc(completion.tokens)
        self._queue.observe(completion.waited)
        self._generation.observe(completion.seconds)
        if completion.tokens:
            self._token_seconds.observe(completion.seconds / completion.tokens)

    def replied(self, path: str, status: int, seconds: float) -> None:
        """A request was answered, with a story or otherwise."""
        self._http.labels(path, status).inc()
        self._http_seconds.labels(path).observe(seconds)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All of it, and its media type: OpenMetrics for who wants that (Prometheus does), else Prometheus's text."""
        if "application/openmetrics-text" in accept:
            content: bytes = openmetrics.generate_latest(self._registry)  # type: ignore[no-untyped-call]
            return content, openmetrics.CONTENT_TYPE_LATEST
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


class _EngineCollector(Collector):
    """What the engine does, looked at when somebody asks."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """See ``Collector``."""
        seen = self._engine.snapshot()
        rows = self._engine.limits.rows
        gauges: dict[str, tuple[str, float]] = {
            "asyncgen_stories_open": ("Stories that wait or run", seen.requests),
            "asyncgen_stories_open_limit": ("Stories that may wait or run", seen.max_requests),
            "asyncgen_queue_depth": ("Stories that wait for the model", seen.waiting),
            "asyncgen_slots": ("Rows that the model can generate at once", rows),
            "asyncgen_slots_used": ("Rows that are being generated", seen.rows_running),
            "asyncgen_device_memory_bytes": ("Memory of accelerators that is held", seen.device_bytes),
        }
        counters: dict[str, tuple[str, float]] = {
            "asyncgen_busy_seconds": ("Time spent generating", seen.busy_seconds),
            "asyncgen_generated_tokens": (
                "Tokens generated, those of stories that nobody got included",
                seen.generated,
            ),
            "asyncgen_failed_stories": ("Stories that ended in an error", seen.failed),
            "asyncgen_cancelled_stories": ("Stories that nobody waited for any more", seen.cancelled),
            "asyncgen_out_of_memory": (
                "Batches that did not fit into memory and were tried in parts",
                seen.out_of_memory,
            ),
            "asyncgen_prefix_hits": ("Prompts whose shared beginning was computed already", seen.prefix_hits),
            "asyncgen_prefix_misses": ("Shared beginnings that were computed", seen.prefix_misses),
        }
        for name, (text, number) in gauges.items():
            yield GaugeMetricFamily(name, text, value=number)
        for name, (text, number) in counters.items():
            yield CounterMetricFamily(name, text, value=number)
