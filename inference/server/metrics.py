"""Counters and gauges of the server, in a registry of their own, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from inference.server.sequence import SequenceState


class Metrics:
    """Everything that /metrics tells. Safe to use from several threads."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("honglou_requests", "Answers, by path and status.", ["path", "status"], registry=registry)
        self.prompt_tokens = Counter("honglou_prompt_tokens", "Tokens of prompts that were read.", registry=registry)
        self.generated_tokens = Counter("honglou_generated_tokens", "Tokens that were written.", registry=registry)
        self.texts = Counter("honglou_texts", "Texts, by why they ended.", ["reason"], registry=registry)
        self.close_draws = Counter(
            "honglou_close_draws", "Draws so close to a boundary that another batch may decide otherwise.", registry=registry
        )
        self.waiting = Gauge("honglou_texts_waiting", "Texts in the queue.", registry=registry)
        self.running = Gauge("honglou_texts_running", "Texts that are being written.", registry=registry)
        self.connections = Gauge("honglou_connections", "Open connections.", registry=registry)
        self.batch_size = Histogram(
            "honglou_batch_size", "Texts that got a token in one step.", buckets=(1, 2, 4, 8, 16, 32, 64, 128), registry=registry
        )
        self.first_text_seconds = Histogram(
            "honglou_first_text_seconds",
            "From a request to its first text.",
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            registry=registry,
        )

    def ended(self, sequence: SequenceState) -> None:
        """Count a text that is over."""
        self.texts.labels(sequence.finish_reason).inc()
        self.close_draws.inc(sequence.num_close)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)
