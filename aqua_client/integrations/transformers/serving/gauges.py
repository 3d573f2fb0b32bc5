"""The server's metrics, for Prometheus: requests, tokens, the KV cache and its paging."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

OUTCOMES = ("stop", "length", "cancelled", "failed", "refused")
FIRST_TOKEN_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
# Of what the engine says, what is a level; the rest only grows.
LEVELS = ("open_requests", "waiting_requests", "parked_requests", "kv_used_bytes", "kv_bytes")


class Gauges:
    """A witness of every request. `engine` gives the figures of the moment, by name."""

    def __init__(self, engine: Callable[[], Mapping[str, float]]) -> None:
        self._registry = CollectorRegistry()
        self._engine = engine
        self._requests = Counter(
            "aqua_serving_requests",
            "Requests by how they ended.",
            ["outcome"],
            registry=self._registry,
        )
        self._tokens = Counter(
            "aqua_serving_tokens",
            "Tokens of prompts, and of answers.",
            ["kind"],
            registry=self._registry,
        )
        self._first = Histogram(
            "aqua_serving_first_token_seconds",
            "From the request to the first token of its answer.",
            buckets=FIRST_TOKEN_SECONDS,
            registry=self._registry,
        )
        for outcome in OUTCOMES:
            self._requests.labels(outcome)
        self._registry.register(self)

    def began(self, prompt_tokens: int) -> None:
        """A request was taken."""
        self._tokens.labels("prompt").inc(prompt_tokens)

    def spoke(self, seconds: float) -> None:
        """Its first token came."""
        self._first.observe(seconds)

    def ended(self, outcome: str, tokens: int) -> None:
        """It has ended."""
        self._requests.labels(outcome).inc()
        self._tokens.labels("answer").inc(tokens)

    def refused(self) -> None:
        """It was not taken: there were too many."""
        self._requests.labels("refused").inc()

    def text(self) -> bytes:
        """All of them, as they are scraped."""
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        """Nothing is asked before the first scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """What the engine says."""
        for name, value in self._engine().items():
            words = name.replace("_", " ")
            if name in LEVELS:
                yield GaugeMetricFamily(f"aqua_serving_{name}", f"Now: {words}.", value=value)
            else:
                yield CounterMetricFamily(f"aqua_serving_{name}", f"So far: {words}.", value=value)
